use std::{
    io::{self, Write as _},
    os::fd::OwnedFd,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// What the interpreter is started with: reads the sources out of the file whose number it is given, and
/// runs the one that comes first. A short line, for lists of processes show it.
pub const START: &str = "import json, os, sys; file = int(sys.argv[1]); \
    sources = json.loads(os.pread(file, os.fstat(file).st_size, 0)); exec(sources['bootstrap.py'])";

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../../python/", $path)))),*]
    };
}

/// The Python half, by its paths.
const SOURCES: [(&str, &str); 17] = sources![
    "bootstrap.py",
    "c_python_backend_utils.py",
    "triton_python_backend_utils.py",
    "nereid_stub/__init__.py",
    "nereid_stub/arena.py",
    "nereid_stub/channel.py",
    "nereid_stub/config.py",
    "nereid_stub/cuda.py",
    "nereid_stub/datatypes.py",
    "nereid_stub/dlpack.py",
    "nereid_stub/errors.py",
    "nereid_stub/host.py",
    "nereid_stub/requests.py",
    "nereid_stub/services.py",
    "nereid_stub/strings.py",
    "nereid_stub/tensor.py",
    "nereid_stub/wire.py",
];

/// A file without a name that holds the Python half as a JSON object, for every process to read.
///
/// # Errors
/// When the system refuses the memory.
pub fn file() -> io::Result<OwnedFd> {
    let text = serde_json::to_string(&std::collections::BTreeMap::from(SOURCES))?;
    let file = memfd_create("nereid-python-sources", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_python_file_is_there() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        let mut files: Vec<_> = std::fs::read_dir(&root)
            .unwrap()
            .chain(std::fs::read_dir(root.join("nereid_stub")).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
            .map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();
        let mut known: Vec<_> = SOURCES.iter().map(|(path, _)| (*path).to_owned()).collect();
        known.sort();
        assert_eq!(files, known);
    }
}
