"""What the interpreter of a model's process runs first: makes the package known and runs it.

The line that the process is started with has put the modules' sources into `sources`, by their paths.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

NATIVE = "nereid_stub.native"
CANNOT_LOAD = (
    "the Python interpreter {} cannot run models of the back end 'python': "
    "expected CPython 3.9 or later with the global interpreter lock, got {}"
)


class Carried(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Modules that came with the server, so that no file of theirs has to be found."""

    def __init__(self, sources, native):
        self._sources = sources
        self._native = f"/proc/self/fd/{native}"

    def _path(self, name):
        path = name.replace(".", "/")
        return next((each for each in (path + ".py", path + "/__init__.py") if each in self._sources), None)

    def find_spec(self, fullname, path, target=None):
        if fullname == NATIVE:
            loader = importlib.machinery.ExtensionFileLoader(fullname, self._native)
            return importlib.util.spec_from_loader(fullname, loader)
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


def load_native(file):
    """Loads the native half, which no other interpreter may try: it could end by a signal."""
    # Others than CPython need not have the flags.
    is_free_threaded = "t" in getattr(sys, "abiflags", "")
    kind = "free-threaded " * is_free_threaded + sys.implementation.name
    version = f"{kind} {sys.version.split()[0]}"
    if sys.implementation.name != "cpython" or sys.version_info < (3, 9) or is_free_threaded:
        refuse(version)
    try:
        importlib.import_module(NATIVE)
    except ImportError as error:
        refuse(f"{version}, which does not load the server's module: {error}")
    os.close(file)


def refuse(found):
    print(CANNOT_LOAD.format(sys.executable, found), file=sys.stderr, flush=True)
    raise SystemExit(3)


def begin(sources):
    text, native, inbound, outbound, memory, size = (int(each) for each in sys.argv[1:7])
    os.close(text)
    for file in (inbound, outbound, memory):
        os.set_inheritable(file, False)
    sys.meta_path.insert(0, Carried(sources, native))
    load_native(native)
    del sys.argv[1:]
    import nereid_stub

    nereid_stub.run(inbound, outbound, memory, size)


begin(sources)  # noqa: F821
