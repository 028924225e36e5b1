//! NVRTC, NVIDIA's compiler as a library, opened at run time.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;

use crate::backend::{BackendError, libraries::words};

/// The names of the library, in the order in which they are tried.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// What the library opens by name alone when it compiles; opened beforehand, it is found.
const BUILTINS: &str = "libnvrtc-builtins";

type Program = *mut c_void;

/// The compiler.
pub(super) struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    /// What the functions are in.
    _libraries: Vec<Library>,
}

/// A program in the compiler, destroyed at the end.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Nvrtc {
    /// Opens the library in `{directory}/cuda/`, else that of `$CUDA_HOME`, else the one that the
    /// system's loader finds.
    ///
    /// # Errors
    /// When there is none, or it lacks a function; the message names the command that installs one.
    pub fn open(directory: Option<&Path>) -> Result<Self, BackendError> {
        let home = std::env::var_os("CUDA_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let folders = directory
            .map(|directory| directory.join("cuda"))
            .into_iter()
            .chain(home.iter().flat_map(|home| ["lib64", "lib"].map(|folder| home.join(folder))));
        let mut tried = Vec::new();
        for folder in folders {
            let mut libraries = Vec::new();
            if let Some(builtins) = find(&folder, BUILTINS) {
                // SAFETY: NVIDIA's library of headers and tables; it has no initialisers that care.
                libraries.extend(unsafe { Library::new(builtins) });
            }
            for name in NAMES {
                let path = folder.join(name);
                if path.is_file() {
                    // SAFETY: NVIDIA's compiler, which may be opened on any thread.
                    libraries.push(unsafe { Library::new(&path) }.map_err(|error| {
                        let words = words(&error);
                        BackendError(format!("'{}' cannot be opened: {words}", path.display()))
                    })?);
                    return Self::of(libraries);
                }
            }
            tried.push(folder.display().to_string());
        }
        for name in NAMES {
            // SAFETY: as above.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Self::of(vec![library]);
            }
        }
        tried.push("the system's libraries".to_owned());
        Err(BackendError(format!(
            "no libnvrtc, which compiles CUDA sources, in {}; run: nereid backend install cuda",
            tried.join(", ")
        )))
    }

    fn of(libraries: Vec<Library>) -> Result<Self, BackendError> {
        let library = libraries.last().ok_or_else(|| BackendError("no libnvrtc".to_owned()))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the function has this type since CUDA 7; it lives as long as the library,
                // which is kept beside it.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|error| {
                    BackendError(format!("libnvrtc has no function {}: {}", $name, words(&error)))
                })?
            };
        }
        Ok(Self {
            version: function!("nvrtcVersion"),
            error_string: function!("nvrtcGetErrorString"),
            create: function!("nvrtcCreateProgram"),
            compile: function!("nvrtcCompileProgram"),
            log_size: function!("nvrtcGetProgramLogSize"),
            log: function!("nvrtcGetProgramLog"),
            ptx_size: function!("nvrtcGetPTXSize"),
            ptx: function!("nvrtcGetPTX"),
            destroy: function!("nvrtcDestroyProgram"),
            _libraries: libraries,
        })
    }

    /// Such as `13.0`.
    pub fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both numbers live through the call.
        unsafe { (self.version)(&mut major, &mut minor) };
        format!("{major}.{minor}")
    }

    /// Compiles `source`, called `name` in messages, to PTX for GPUs of this compute capability and
    /// later ones; it ends with a zero.
    ///
    /// # Errors
    /// The compiler's own messages.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        (major, minor): (u32, u32),
        options: &[String],
    ) -> Result<Vec<u8>, BackendError> {
        let text = |text: &str| {
            let has_zero = |_| BackendError(format!("'{name}' holds a zero byte"));
            CString::new(text).map_err(has_zero)
        };
        let (source, file) = (text(source)?, text(name)?);
        let mut program = ptr::null_mut();
        // SAFETY: the texts live through the call; there are no headers.
        let status = unsafe {
            (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check(status, name)?;
        let compilation = Compilation { nvrtc: self, program };

        let mut all = vec![
            text(&format!("--gpu-architecture=compute_{major}{minor}"))?,
            text("--std=c++17")?,
        ];
        for option in options {
            all.push(text(option)?);
        }
        let pointers: Vec<_> = all.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and so are the options.
        let status = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if status != 0 {
            let log = compilation.text(self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim();
            let reason = if log.is_empty() { self.words(status) } else { log.to_owned() };
            return Err(BackendError(format!("'{name}' does not compile:\n{reason}")));
        }
        compilation.text(self.ptx_size, self.ptx).map_err(|status| {
            BackendError(format!("'{name}' gives no PTX: {}", self.words(status)))
        })
    }

    fn check(&self, status: c_int, name: &str) -> Result<(), BackendError> {
        match status {
            0 => Ok(()),
            _ => Err(BackendError(format!("'{name}' cannot be compiled: {}", self.words(status)))),
        }
    }

    fn words(&self, status: c_int) -> String {
        // SAFETY: the library gives static text for every number.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: as above, and it is not null.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

impl Compilation<'_> {
    /// A text of the program, by the functions that give its size and its bytes.
    fn text(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, c_int> {
        let mut len = 0;
        // SAFETY: the program is alive.
        match unsafe { size(self.program, &mut len) } {
            0 => {}
            status => return Err(status),
        }
        let mut bytes = vec![0_u8; len];
        // SAFETY: the program is alive, and the place as large as it says.
        match unsafe { get(self.program, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            status => Err(status),
        }
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created once and is destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

/// The file in `folder` whose name begins so.
fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| {
        let name = name.to_string_lossy();
        name.starts_with(prefix) && !name.contains(".alt.")
    });
    names.sort();
    names.first().map(|name| folder.join(name))
}
