"""What the interpreter of a model's process runs first: makes the package known and runs it.

The line that the process is started with has put the modules' sources into `sources`, by their paths.
"""

import importlib.abc
import importlib.util
import os
import sys


class Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Modules whose sources came with the server, so that no file of theirs has to be found."""

    def __init__(self, sources):
        self._sources = sources

    def _path(self, name):
        path = name.replace(".", "/")
        return next((each for each in (path + ".py", path + "/__init__.py") if each in self._sources), None)

    def find_spec(self, fullname, path, target=None):
        file = self._path(fullname)
        if file is None:
            return None
        is_package = file.endswith("/__init__.py")
        return importlib.util.spec_from_loader(fullname, self, origin=f"<{file}>", is_package=is_package)

    def get_source(self, fullname):
        return self._sources[self._path(fullname)]

    def get_code(self, fullname):
        file = self._path(fullname)
        return compile(self._sources[file], f"<{file}>", "exec", dont_inherit=True)


def begin(sources):
    text, inbound, outbound, memory, size = (int(each) for each in sys.argv[1:6])
    os.close(text)
    for file in (inbound, outbound, memory):
        os.set_inheritable(file, False)
    sys.meta_path.insert(0, Sources(sources))
    del sys.argv[1:]
    import nereid_stub

    nereid_stub.run(inbound, outbound, memory, size)


begin(sources)  # noqa: F821
