//! Finding and opening the library, and what of it lives as long as the process.

use std::{
    env,
    ffi::{CStr, c_char, c_void},
    panic::catch_unwind,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{Mutex, Once, PoisonError},
};

use ort_sys::{
    ORT_API_VERSION, OrtAllocator, OrtAllocatorType, OrtApi, OrtApiBase, OrtEnv, OrtLoggingLevel,
    OrtMemType, OrtMemoryInfo, OrtStatusPtr,
};

use super::{
    ANY_VERSION, VERSION,
    handle::{Handle, OrtError, check},
};
use crate::backend::{
    BackendError,
    libraries::{open_companions, words},
};

/// The command that repairs a missing or mismatched library.
const INSTALL: &str = "nereid backend install onnxruntime";

/// An open library. It is never closed and its environment never released: sessions, and values
/// that clients are still being sent, may outlive whatever scope one would tie it to, and ONNX
/// Runtime's own threads do not survive a teardown at process exit.
pub(super) struct Runtime {
    pub api: &'static OrtApi,
    pub env: NonNull<OrtEnv>,
    /// ONNX Runtime's default allocator on the host.
    pub allocator: NonNull<OrtAllocator>,
    /// Describes memory of the host.
    pub host: Handle<OrtMemoryInfo>,
    pub version: String,
    /// The execution providers that the library was built with, such as `CUDAExecutionProvider`.
    pub providers: Vec<String>,
    pub path: PathBuf,
    /// Opens what execution providers need.
    companions: Once,
}

// SAFETY: the environment and the default allocator may be used from any thread.
unsafe impl Send for Runtime {}
// SAFETY: as above, at once too.
unsafe impl Sync for Runtime {}

impl Runtime {
    /// Opens the library in `folder`, or returns it if that has been done.
    pub fn open(folder: &Path) -> Result<&'static Self, BackendError> {
        static OPEN: Mutex<Vec<&'static Runtime>> = Mutex::new(Vec::new());
        let path = locate(folder)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = open.iter().find(|runtime| runtime.path == path) {
            return Ok(runtime);
        }
        let runtime: &'static Self = Box::leak(Box::new(Self::load(path)?));
        open.push(runtime);
        Ok(runtime)
    }

    fn load(path: PathBuf) -> Result<Self, BackendError> {
        let refuse = |detail: String| {
            BackendError(format!(
                "cannot use ONNX Runtime at {}: {detail}; run `{INSTALL}`",
                path.display()
            ))
        };
        // SAFETY: the file is the library that the operator installed; its initialisers are trusted
        // as the server's own code is.
        let library =
            unsafe { libloading::Library::new(&path) }.map_err(|error| refuse(words(&error)))?;
        // SAFETY: this is the type that the C API gives its one exported function.
        let base = unsafe {
            library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")
        }
        .map_err(|error| refuse(words(&error)))?;
        // SAFETY: the function takes nothing and returns a static table or null.
        let base =
            unsafe { base().as_ref() }.ok_or_else(|| refuse("it offers no C API".to_owned()))?;
        // SAFETY: the table is valid, and the version a static string.
        let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
        let version = version.to_string_lossy().into_owned();
        check_version(&version, env::var_os(ANY_VERSION).is_some_and(|value| value == "1"))
            .map_err(&refuse)?;
        // SAFETY: the table is valid; what it returns is static or null.
        let api: &'static OrtApi =
            unsafe { (base.GetApi)(ORT_API_VERSION).as_ref() }.ok_or_else(|| {
                refuse(format!("version {version} has no C API of version {ORT_API_VERSION}"))
            })?;
        // Nothing of it may be unloaded while `api` is in use, which is for ever.
        std::mem::forget(library);
        Self::start(api, version, path.clone()).map_err(|error| refuse(error.to_string()))
    }

    fn start(api: &'static OrtApi, version: String, path: PathBuf) -> Result<Self, OrtError> {
        let mut env = std::ptr::null_mut();
        // SAFETY: the name is a static string, and `log_message` may be called from any thread.
        let status = unsafe {
            (api.CreateEnvWithCustomLogger)(
                log_message,
                std::ptr::null_mut(),
                severity_of(log::max_level()),
                c"nereid".as_ptr(),
                &mut env,
            )
        };
        let env = created(api, status, &mut env)?;
        let mut allocator = std::ptr::null_mut();
        // SAFETY: the function writes a pointer that is valid as long as the library.
        let status = unsafe { (api.GetAllocatorWithDefaultOptions)(&mut allocator) };
        let allocator = created(api, status, &mut allocator)?;
        // SAFETY: creating function and release belong together.
        let host = unsafe {
            Handle::create(api, api.ReleaseMemoryInfo, |out| {
                (api.CreateCpuMemoryInfo)(
                    OrtAllocatorType::OrtDeviceAllocator,
                    OrtMemType::OrtMemTypeDefault,
                    out,
                )
            })
        }?;
        let providers = available_providers(api)?;
        Ok(Self { api, env, allocator, host, version, providers, path, companions: Once::new() })
    }

    /// Turns the status of a call into a result.
    ///
    /// # Safety
    /// `status` comes from a call of this library and is not used again.
    pub unsafe fn check(&self, status: OrtStatusPtr) -> Result<(), OrtError> {
        // SAFETY: the caller's promise.
        unsafe { check(self.api, status) }
    }

    /// Describes the memory of a GPU.
    pub fn memory_of_gpu(&self, ordinal: i32) -> Result<Handle<OrtMemoryInfo>, OrtError> {
        let kind = OrtAllocatorType::OrtDeviceAllocator;
        let (name, usage) = (c"Cuda".as_ptr(), OrtMemType::OrtMemTypeDefault);
        // SAFETY: creating function and release belong together; the name is a static string.
        unsafe {
            Handle::create(self.api, self.api.ReleaseMemoryInfo, |out| {
                (self.api.CreateMemoryInfo)(name, kind, ordinal, usage, out)
            })
        }
    }

    /// Opens what execution providers for GPUs need, before the first of them is asked for.
    pub fn open_companions(&self) {
        let folder = self.path.parent().unwrap_or(&self.path);
        self.companions.call_once(|| open_companions(folder));
    }

    /// Whether the library has an execution provider, named without its suffix
    /// `ExecutionProvider`.
    pub fn offers(&self, provider: &str) -> bool {
        self.providers
            .iter()
            .any(|name| name.strip_suffix("ExecutionProvider").is_some_and(|name| name == provider))
    }

    /// # Errors
    /// When the library has no such execution provider; the message names those that it has.
    pub fn check_offers(&self, provider: &str) -> Result<(), OrtError> {
        if self.offers(provider) {
            return Ok(());
        }
        let (path, others) = (self.path.display(), self.providers.join(", "));
        Err(OrtError {
            code: ort_sys::OrtErrorCode::ORT_NOT_FOUND as i32,
            message: format!(
                "the library at {path} has no {provider}ExecutionProvider, only {others}"
            ),
        })
    }
}

fn created<T>(
    api: &OrtApi,
    status: OrtStatusPtr,
    pointer: &mut *mut T,
) -> Result<NonNull<T>, OrtError> {
    // SAFETY: the callers pass the status of the call that they have just made.
    unsafe { check(api, status) }?;
    NonNull::new(*pointer)
        .ok_or_else(|| OrtError { code: 1, message: "no object was returned".to_owned() })
}

fn available_providers(api: &OrtApi) -> Result<Vec<String>, OrtError> {
    let mut names = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: both places are written; the array is released below.
    unsafe { check(api, (api.GetAvailableProviders)(&mut names, &mut count)) }?;
    let providers = (0..usize::try_from(count).unwrap_or(0))
        // SAFETY: the array holds `count` strings.
        .map(|index| unsafe { CStr::from_ptr(*names.add(index)) }.to_string_lossy().into_owned())
        .collect();
    // SAFETY: the array comes from the call above and is not used again.
    unsafe { check(api, (api.ReleaseAvailableProviders)(names, count)) }?;
    Ok(providers)
}

/// The library file in a folder: that of the wanted version before any other.
fn locate(folder: &Path) -> Result<PathBuf, BackendError> {
    const STEM: &str = "libonnxruntime.so";
    for name in [format!("{STEM}.{VERSION}"), STEM.to_owned()] {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(STEM))
        .map(|entry| entry.path())
        .collect();
    others.sort();
    others.pop().ok_or_else(|| {
        BackendError(format!(
            "ONNX Runtime is not installed: there is no {STEM}.{VERSION} in {}; run `{INSTALL}`",
            folder.display()
        ))
    })
}

fn check_version(found: &str, any: bool) -> Result<(), String> {
    if found == VERSION {
        return Ok(());
    }
    if any {
        log::warn!(
            target: "onnxruntime",
            "using ONNX Runtime {found}, not the expected version {VERSION}, because {ANY_VERSION} is set"
        );
        return Ok(());
    }
    Err(format!("expected version {VERSION}, found version {found}"))
}

/// The least severe messages to ask for; writing what nobody reads would cost time on every run.
fn severity_of(level: log::LevelFilter) -> OrtLoggingLevel {
    match level {
        log::LevelFilter::Trace => OrtLoggingLevel::ORT_LOGGING_LEVEL_VERBOSE,
        log::LevelFilter::Debug => OrtLoggingLevel::ORT_LOGGING_LEVEL_INFO,
        _ => OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING,
    }
}

/// Hands a message of ONNX Runtime to the `log` crate. `log_id` is the model's name.
unsafe extern "system" fn log_message(
    _parameter: *mut c_void,
    severity: OrtLoggingLevel,
    _category: *const c_char,
    log_id: *const c_char,
    location: *const c_char,
    message: *const c_char,
) {
    // ONNX Runtime's "info" tells what a developer of it wants to know, not an operator.
    let level = match severity {
        OrtLoggingLevel::ORT_LOGGING_LEVEL_VERBOSE => log::Level::Trace,
        OrtLoggingLevel::ORT_LOGGING_LEVEL_INFO => log::Level::Debug,
        OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING => log::Level::Warn,
        _ => log::Level::Error,
    };
    let text = |pointer: *const c_char| match NonNull::new(pointer.cast_mut()) {
        // SAFETY: ONNX Runtime passes strings that live until this function returns.
        Some(pointer) => unsafe { CStr::from_ptr(pointer.as_ptr()) }.to_string_lossy(),
        None => "".into(),
    };
    let write = || {
        log::log!(
            target: "onnxruntime", level,
            "{}: {} ({})", text(log_id), text(message).trim_end(), text(location)
        );
    };
    // A logger that panics must not unwind into C++; there is nobody left to tell.
    let _ = catch_unwind(std::panic::AssertUnwindSafe(write));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_the_command_that_installs_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = Runtime::open(folder.path()).err().unwrap().0;
        assert!(error.contains("nereid backend install onnxruntime"), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libonnxruntime.so"), "not a library").unwrap();
        let error = Runtime::open(folder.path()).err().unwrap().0;
        assert!(error.contains("nereid backend install onnxruntime"), "{error}");
        // In the loader's own words.
        assert!(error.contains("libonnxruntime.so: file too short"), "{error}");
    }

    #[test]
    fn the_wanted_version_is_preferred_to_others() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so.1.20.0", "libonnxruntime_providers_shared.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let file_name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(file_name(locate(folder.path()).unwrap()), "libonnxruntime.so.1.20.0");
        let wanted = format!("libonnxruntime.so.{VERSION}");
        std::fs::write(folder.path().join(&wanted), "").unwrap();
        assert_eq!(file_name(locate(folder.path()).unwrap()), wanted);
    }

    #[test]
    fn a_version_mismatch_names_both() {
        assert_eq!(check_version(VERSION, false), Ok(()));
        assert_eq!(check_version("1.20.0", true), Ok(()));
        let error = check_version("1.20.0", false).unwrap_err();
        assert!(error.contains("1.20.0") && error.contains(VERSION), "{error}");
    }
}
