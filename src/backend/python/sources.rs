use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

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
const SOURCES: [(&str, &str); 16] = sources![
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
    "nereid_stub/wire.py",
];

/// Files without a name, for every process.
pub struct Files {
    /// The Python half as a JSON object.
    pub sources: OwnedFd,
    /// The native half, a Python module that is a shared library.
    pub native: OwnedFd,
}

impl Files {
    /// # Errors
    /// When the system refuses the memory.
    pub fn create() -> io::Result<Self> {
        let sources = serde_json::to_string(&std::collections::BTreeMap::from(SOURCES))?;
        let data = memory("nereid-python-sources", MFdFlags::empty())?;
        let code = code_memory("nereid-python-native")?;
        Ok(Self {
            sources: sealed(data, sources.as_bytes())?,
            native: sealed(code, nereid_python_embedded::NATIVE)?,
        })
    }
}

/// Memory that may be mapped as code. From Linux 6.3 on, who means that says so; before, the flag is unknown.
fn code_memory(name: &str) -> nix::Result<OwnedFd> {
    match memory(name, MFdFlags::from_bits_retain(libc::MFD_EXEC)) {
        Err(Errno::EINVAL) => memory(name, MFdFlags::empty()),
        made => made,
    }
}

fn memory(name: &str, flags: MFdFlags) -> nix::Result<OwnedFd> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | flags)
}

/// `file` with `bytes` in it, which no process can change.
fn sealed(file: OwnedFd, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(file);
    file.write_all(bytes)?;
    let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let seals = SealFlag::F_SEAL_WRITE | size | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

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

    #[test]
    fn a_process_can_change_neither_half() {
        let files = Files::create().unwrap();
        for (file, begins) in [(files.sources, &b"{\""[..]), (files.native, b"\x7fELF")] {
            let mut first = [0; 4];
            let file = File::from(file);
            file.read_exact_at(&mut first, 0).unwrap();
            assert!(first.starts_with(begins), "{first:?}");
            let refused = [file.write_at(b"x", 0).unwrap_err(), file.set_len(1).unwrap_err()];
            assert!(refused.iter().all(|error| error.kind() == io::ErrorKind::PermissionDenied));
        }
    }
}
