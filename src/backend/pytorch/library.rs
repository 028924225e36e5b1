//! Finding and opening the libraries: torch's own, then ours that links them.

use std::{
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use libloading::os::unix::{Library as Opened, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::{
    BRIDGE, BUILD, INSTALLATION, VERSION,
    table::{self, Entry, GpuMemory, Table},
};
use crate::{
    backend::{
        BackendError,
        libraries::{open_companions, words},
    },
    observe::gpu::GpuStock,
};

/// The command that repairs a missing or mismatched libtorch.
const INSTALL: &str = "nereid backend install pytorch";

/// The open libraries. They are never closed: tensors that clients are still being sent may outlive
/// whatever scope one would tie them to, and torch's own threads do not survive a teardown.
pub(super) struct Library {
    pub table: &'static Table,
    pub version: String,
    folder: PathBuf,
}

impl Library {
    /// Opens the libraries of `folder`, or returns them if that has been done.
    pub fn open(folder: &Path) -> Result<&'static Self, BackendError> {
        static OPEN: Mutex<Vec<&'static Library>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = open.iter().find(|library| library.folder == folder) {
            return Ok(library);
        }
        let library: &'static Self = Box::leak(Box::new(Self::load(folder)?));
        open.push(library);
        Ok(library)
    }

    fn load(folder: &Path) -> Result<Self, BackendError> {
        let torch = torch_libraries(folder)?;
        let bridge = folder.join(BRIDGE);
        if !bridge.is_file() {
            return Err(BackendError(format!(
                "there is no {BRIDGE} in {}, which links libtorch for the server; `{BUILD}` in \
                 Nereid's source builds it",
                folder.display()
            )));
        }
        open_companions(folder);
        let cpu = torch.join("libtorch_cpu.so");
        let host = open(&cpu, RTLD_LOCAL).map_err(|detail| refusal(&cpu, &detail, INSTALL))?;
        let version = torch_version(&host).map_err(|detail| refusal(&cpu, &detail, INSTALL))?;
        // Before anything asks torch for GPUs, which it would then be sure not to have.
        let cuda = torch.join("libtorch_cuda.so");
        if cuda.is_file() {
            match open(&cuda, RTLD_GLOBAL) {
                Ok(library) => std::mem::forget(library),
                Err(detail) => log::warn!(
                    target: "pytorch",
                    "torch runs on the host alone, because {} cannot be opened: {detail}",
                    cuda.display()
                ),
            }
        }
        let library = open(&bridge, RTLD_LOCAL);
        let library = library.map_err(|detail| refusal(&bridge, &detail, BUILD))?;
        let table = table_of(&library).map_err(|detail| refusal(&bridge, &detail, BUILD))?;
        // Nothing of them may be unloaded while the table is in use, which is for ever.
        std::mem::forget((host, library));
        Ok(Self { table, version, folder: folder.to_owned() })
    }

    /// What torch's caching allocator holds of each GPU that torch has.
    pub fn gpu_stocks(&self) -> Vec<GpuStock> {
        // SAFETY: it takes nothing.
        let count = unsafe { (self.table.gpu_count)() };
        let stock = |gpu: i32| {
            let mut memory = GpuMemory::default();
            // SAFETY: the call writes the place.
            let outcome = unsafe { (self.table.gpu_memory)(gpu, &mut memory) };
            let GpuMemory { reserved_bytes, allocated_bytes } = memory;
            let gpu = u32::try_from(gpu).ok().filter(|_| outcome == table::SUCCESS)?;
            Some(GpuStock { gpu, reserved_bytes, allocated_bytes })
        };
        (0..count).filter_map(stock).collect()
    }
}

fn refusal(path: &Path, detail: &str, command: &str) -> BackendError {
    BackendError(format!("cannot use PyTorch at {}: {detail}; run `{command}`", path.display()))
}

/// The folder of torch's libraries: that of an installation elsewhere if the back end's folder names
/// one, else its own.
pub(super) fn torch_libraries(folder: &Path) -> Result<PathBuf, BackendError> {
    let elsewhere = fs::read_to_string(folder.join(INSTALLATION)).ok();
    let torch = elsewhere.map_or_else(|| folder.to_owned(), |path| PathBuf::from(path.trim()));
    let libraries = torch.join("lib");
    if libraries.join("libtorch_cpu.so").is_file() {
        return Ok(libraries);
    }
    Err(BackendError(format!(
        "PyTorch is not installed: there is no libtorch_cpu.so in {}; run `{INSTALL}`",
        libraries.display()
    )))
}

fn open(path: &Path, visibility: i32) -> Result<Opened, String> {
    // SAFETY: the file is a library that the operator installed; its initialisers are trusted as the
    // server's own code is.
    unsafe { Opened::open(Some(path), RTLD_NOW | visibility) }.map_err(|error| words(&error))
}

/// The version of an open libtorch, if it is the one wanted: another would load, and give wrong
/// results without a word.
fn torch_version(library: &Opened) -> Result<String, String> {
    const SYMBOL: &CStr = c"aoti_torch_abi_version";
    // SAFETY: this is the type that torch's stable C interface gives the function.
    let number =
        unsafe { library.get::<unsafe extern "C" fn() -> u64>(SYMBOL.to_bytes_with_nul()) }
            .map_err(|_| format!("expected version {VERSION}, found one that is older than 2.9"))?;
    // SAFETY: the function takes nothing and returns a constant.
    let found = version_of(unsafe { number() });
    match found == VERSION {
        true => Ok(found),
        false => Err(format!("expected version {VERSION}, found version {found}")),
    }
}

/// Torch writes its version as one number, a byte for each part from the highest down.
fn version_of(number: u64) -> String {
    let [major, minor, patch, ..] = number.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

fn table_of(library: &Opened) -> Result<&'static Table, String> {
    // SAFETY: this is the function's type in every version of the table.
    let entry = unsafe { library.get::<Entry>(table::ENTRY.to_bytes_with_nul()) }
        .map_err(|error| error.to_string())?;
    // SAFETY: the function takes nothing; its version, which comes first, is all that is read yet.
    let (table, version) = unsafe {
        let table = entry();
        if table.is_null() {
            return Err("it offers no functions".to_owned());
        }
        (table, (*table).version)
    };
    if version != table::VERSION {
        let expected = table::VERSION;
        return Err(format!(
            "expected version {expected} of its functions, found version {version}"
        ));
    }
    // SAFETY: the table is of the version that this type describes, and is there for ever.
    let table = unsafe { &*table };
    // SAFETY: the text is as static as the table.
    let compiled_for = unsafe { table.torch_version.to_string() };
    match compiled_for == VERSION {
        true => Ok(table),
        false => Err(format!("expected it to be built for torch {VERSION}, not {compiled_for}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(folder: &Path) -> String {
        Library::open(folder).err().unwrap().0
    }

    #[test]
    fn what_is_missing_names_the_command_that_brings_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = error_of(folder.path());
        assert!(error.contains(INSTALL) && error.contains("libtorch_cpu.so"), "{error}");

        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libtorch_cpu.so"), "not a library").unwrap();
        let error = error_of(folder.path());
        assert!(error.contains(BUILD) && error.contains(BRIDGE), "{error}");

        fs::write(folder.path().join(BRIDGE), "not a library").unwrap();
        let error = error_of(folder.path());
        assert!(error.contains(INSTALL) && error.contains("libtorch_cpu.so"), "{error}");
    }

    #[test]
    fn an_installation_elsewhere_is_looked_for_where_it_was_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(INSTALLATION), "/no/torch\n").unwrap();
        assert!(error_of(folder.path()).contains("/no/torch/lib"));
    }

    #[test]
    fn a_library_without_a_version_is_refused_with_the_one_expected() {
        // SAFETY: the program itself, whose initialisers have run.
        let program = Opened::this();
        let error = torch_version(&program).unwrap_err();
        assert!(error.contains(VERSION), "{error}");
        assert!(table_of(&program).is_err());
    }

    #[test]
    fn the_version_is_read_out_of_its_number() {
        assert_eq!(version_of((2 << 56) | (11 << 48)), VERSION);
        assert_eq!(version_of((2 << 56) | (9 << 48) | (1 << 40)), "2.9.1");
    }
}
