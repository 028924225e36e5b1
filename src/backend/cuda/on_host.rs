//! A kernel's source compiled for the processor, over the shim that this project's own kernels are
//! tested on, so that a model can be tried out on a device of the host. What it cannot do is in
//! `kernels/shim/cuda.h`.

use std::{ffi::c_void, fs, path::Path, process::Command, sync::Arc};

use libloading::Library;

use super::launch::LaunchPlan;
use crate::{
    backend::{BackendError, libraries::words},
    device::{HostArgument, Twin, kernels::Grid},
    repository::TemporaryFolder,
};

/// CUDA's part that kernels may use, and what runs their threads.
const SHIM: [(&str, &str); 2] = [
    ("cuda.h", include_str!("../../../kernels/shim/cuda.h")),
    ("fibers.cpp", include_str!("../../../kernels/shim/fibers.cpp")),
];

type Entry = unsafe extern "C" fn(*const Grid, *mut *mut c_void) -> i32;

/// Compiles the source at `path` with the system's C++ compiler, `$CXX` or `c++`.
///
/// # Errors
/// When it does not compile; the message is the compiler's.
pub(super) fn twin(path: &Path, plan: &LaunchPlan) -> Result<Twin, BackendError> {
    let fault = |error: std::io::Error| {
        BackendError(format!("'{}' cannot be compiled for the host: {error}", path.display()))
    };
    let folder = TemporaryFolder::create().map_err(|error| BackendError(error.to_string()))?;
    for (name, text) in SHIM {
        fs::write(folder.path().join(name), text).map_err(fault)?;
    }
    let (kernel, count) = (&plan.kernel, plan.arguments.len());
    let source = path.canonicalize().map_err(fault)?;
    let wrapper = format!(
        "#include \"cuda.h\"\n#include {source:?}\n\
         template <class... P> constexpr std::size_t shim_parameters(void (*)(P...)) {{ \
         return sizeof...(P); }}\n\
         static_assert(shim_parameters({kernel}) == {count}, \
         \"'arguments' gives {kernel} {count} arguments\");\n\
         ENTRY({kernel})\n"
    );
    let main = folder.path().join("main.cpp");
    fs::write(&main, wrapper).map_err(fault)?;
    let library = folder.path().join("model.so");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let done = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-I"])
        .arg(folder.path())
        .args([&main, &folder.path().join("fibers.cpp")])
        .arg("-o")
        .arg(&library)
        .output()
        .map_err(|error| {
            BackendError(format!(
                "'{}' is compiled for the host by {}, which cannot be run: {error}",
                path.display(),
                compiler.to_string_lossy()
            ))
        })?;
    if !done.status.success() {
        let words = String::from_utf8_lossy(&done.stderr).trim_end().to_owned();
        let path = path.display();
        return Err(BackendError(format!("'{path}' does not compile for the host:\n{words}")));
    }
    open(&library, plan)
}

fn open(library: &Path, plan: &LaunchPlan) -> Result<Twin, BackendError> {
    let fault = |error: libloading::Error| {
        BackendError(format!("the compiled kernel cannot be opened: {}", words(&error)))
    };
    // SAFETY: it was compiled above of the shim and the model's kernel; that what the model's owner
    // runs at its loading does no harm is for the owner to see to, as with any model that is code.
    let library = unsafe { Library::new(library) }.map_err(fault)?;
    let name = format!("shim_{}\0", plan.kernel);
    // SAFETY: `ENTRY` defines the function with this type, and it stays as long as the library.
    let entry = *unsafe { library.get::<Entry>(name.as_bytes()) }.map_err(fault)?;
    let (threads, shared_bytes) = (plan.block, plan.shared_bytes);
    Ok(Arc::new(move |blocks, arguments| {
        let _stays_open = &library;
        let mut values = arguments.iter_mut().map(value).collect::<Result<Vec<u64>, _>>()?;
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        let grid = Grid { blocks, threads, shared_bytes };
        // SAFETY: there are as many pointers as the kernel has parameters, which the compiler has
        // checked, each to eight bytes. Tensors are claimed by this launch alone; that the kernel stays
        // inside of them is, as on a GPU, up to it.
        match unsafe { entry(&grid, pointers.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err("threads of a block wait for each other for ever".to_owned()),
        }
    }))
}

/// An argument as a kernel takes it, in the low bytes.
fn value(argument: &mut HostArgument<'_>) -> Result<u64, String> {
    Ok(match argument {
        HostArgument::Read(bytes) => bytes.as_ptr().expose_provenance() as u64,
        HostArgument::Write(bytes) => bytes.as_mut_ptr().expose_provenance() as u64,
        HostArgument::Scalar(scalar) => scalar.bits(),
        HostArgument::ReadTable(_) | HostArgument::WriteTable(_) => {
            return Err("a model's kernel takes no tables".to_owned());
        }
    })
}
