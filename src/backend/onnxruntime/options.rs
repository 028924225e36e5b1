//! Settings as the C API takes them.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    os::unix::ffi::OsStrExt as _,
};

use ort_sys::{ExecutionMode, OrtRunOptions, OrtSessionOptions};

use super::{
    handle::{Handle, OrtError},
    library::Runtime,
    session::{Device, OnStream},
    settings::{Provider, ProviderKind, SessionSettings},
};

/// Calls one of the C API's functions that change session options, with pointers that live through
/// the call.
macro_rules! set {
    ($options:expr, $function:ident $(, $argument:expr)*) => {{
        let options = &$options;
        // SAFETY: the options are alive, and so is whatever the arguments point to.
        let status = unsafe {
            (options.runtime.api.$function)(options.handle.as_ptr() $(, $argument)*)
        };
        // SAFETY: the status is that of the call above.
        unsafe { options.runtime.check(status) }?
    }};
}

/// The options that a session is made with.
pub(super) struct Options {
    runtime: &'static Runtime,
    pub handle: Handle<OrtSessionOptions>,
}

impl Options {
    pub fn new(
        runtime: &'static Runtime,
        name: &str,
        settings: &SessionSettings,
        device: Device,
        on_stream: Option<OnStream>,
    ) -> Result<Self, OrtError> {
        let api = runtime.api;
        // SAFETY: creating function and release belong together.
        let handle = unsafe {
            Handle::create(api, api.ReleaseSessionOptions, |out| (api.CreateSessionOptions)(out))
        }?;
        let options = Self { runtime, handle };
        let name = c_string(name.as_bytes())?;
        let mode = match settings.parallel {
            true => ExecutionMode::ORT_PARALLEL,
            false => ExecutionMode::ORT_SEQUENTIAL,
        };
        set!(options, SetSessionLogId, name.as_ptr());
        set!(options, SetSessionGraphOptimizationLevel, settings.optimization);
        set!(options, SetSessionExecutionMode, mode);
        set!(options, SetIntraOpNumThreads, settings.intra_op_threads);
        set!(options, SetInterOpNumThreads, settings.inter_op_threads);
        match settings.memory_arena {
            Some(true) => set!(options, EnableCpuMemArena),
            Some(false) => set!(options, DisableCpuMemArena),
            None => {}
        }
        match settings.memory_pattern {
            Some(true) => set!(options, EnableMemPattern),
            Some(false) => set!(options, DisableMemPattern),
            None => {}
        }
        for (key, value) in &settings.entries {
            let (key, value) = (c_string(key.as_bytes())?, c_string(value.as_bytes())?);
            set!(options, AddSessionConfigEntry, key.as_ptr(), value.as_ptr());
        }
        for library in &settings.custom_op_libraries {
            let library = c_string(library.as_os_str().as_bytes())?;
            set!(options, RegisterCustomOpsLibrary_V2, library.as_ptr());
        }
        if let Device::Gpu(ordinal) = device {
            options.runtime.open_companions();
            for provider in &settings.gpu_providers {
                options.add(provider, &on_gpu(provider.kind, ordinal, on_stream))?;
            }
        }
        for provider in &settings.host_providers {
            options.add(provider, &[])?;
        }
        Ok(options)
    }

    fn add(&self, provider: &Provider, added: &[(&str, String)]) -> Result<(), OrtError> {
        let api = self.runtime.api;
        self.runtime.check_offers(provider.kind.name())?;
        let mut settings = provider.options.clone();
        settings.extend(added.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let settings = Settings::new(&settings)?;
        let (keys, values, count) =
            (settings.keys.as_ptr(), settings.values.as_ptr(), settings.len());
        match provider.kind {
            ProviderKind::Cuda => {
                // SAFETY: creating function and release belong together.
                let cuda = unsafe {
                    Handle::create(api, api.ReleaseCUDAProviderOptions, |out| {
                        (api.CreateCUDAProviderOptions)(out)
                    })
                }?;
                // SAFETY: the options are alive, and the arrays hold `count` strings each.
                unsafe {
                    self.runtime.check((api.UpdateCUDAProviderOptions)(
                        cuda.as_ptr(),
                        keys,
                        values,
                        count,
                    ))
                }?;
                set!(self, SessionOptionsAppendExecutionProvider_CUDA_V2, cuda.as_ptr());
            }
            ProviderKind::TensorRt => {
                // SAFETY: creating function and release belong together.
                let tensorrt = unsafe {
                    Handle::create(api, api.ReleaseTensorRTProviderOptions, |out| {
                        (api.CreateTensorRTProviderOptions)(out)
                    })
                }?;
                // SAFETY: the options are alive, and the arrays hold `count` strings each.
                unsafe {
                    self.runtime.check((api.UpdateTensorRTProviderOptions)(
                        tensorrt.as_ptr(),
                        keys,
                        values,
                        count,
                    ))
                }?;
                set!(self, SessionOptionsAppendExecutionProvider_TensorRT_V2, tensorrt.as_ptr());
            }
            ProviderKind::OpenVino => {
                let name = c"OpenVINO".as_ptr();
                set!(self, SessionOptionsAppendExecutionProvider, name, keys, values, count);
            }
        }
        Ok(())
    }
}

/// Keys and values as the C API takes them.
struct Settings {
    _strings: Vec<CString>,
    keys: Vec<*const c_char>,
    values: Vec<*const c_char>,
}

impl Settings {
    fn new(settings: &BTreeMap<String, String>) -> Result<Self, OrtError> {
        let mut it = Self { _strings: Vec::new(), keys: Vec::new(), values: Vec::new() };
        for (key, value) in settings {
            let (key, value) = (c_string(key.as_bytes())?, c_string(value.as_bytes())?);
            it.keys.push(key.as_ptr());
            it.values.push(value.as_ptr());
            it._strings.extend([key, value]);
        }
        Ok(it)
    }

    fn len(&self) -> usize {
        self.keys.len()
    }
}

/// What a provider is told of the GPU that it is to work on, and of the stream.
fn on_gpu(
    kind: ProviderKind,
    ordinal: i32,
    on_stream: Option<OnStream>,
) -> Vec<(&'static str, String)> {
    let mut settings = vec![("device_id", ordinal.to_string())];
    if let Some(OnStream { handle, graphs }) = on_stream {
        settings.push(("user_compute_stream", handle.to_string()));
        if graphs && kind == ProviderKind::Cuda {
            settings.push(("enable_cuda_graph", "1".to_owned()));
        }
    }
    settings
}

/// Options of a run, from ONNX Runtime's own names for them to their values.
pub(super) fn run_options(
    runtime: &Runtime,
    entries: &[(&CStr, &str)],
) -> Result<Handle<OrtRunOptions>, OrtError> {
    let api = runtime.api;
    // SAFETY: creating function and release belong together.
    let options =
        unsafe { Handle::create(api, api.ReleaseRunOptions, |out| (api.CreateRunOptions)(out)) }?;
    for (key, value) in entries {
        let value = c_string(value.as_bytes())?;
        // SAFETY: the options are alive, and both strings are through the call.
        unsafe {
            runtime.check((api.AddRunConfigEntry)(options.as_ptr(), key.as_ptr(), value.as_ptr()))
        }?;
    }
    Ok(options)
}

/// A string as the C API takes it.
pub(super) fn c_string(bytes: &[u8]) -> Result<CString, OrtError> {
    CString::new(bytes).map_err(|_| OrtError {
        code: ort_sys::OrtErrorCode::ORT_INVALID_ARGUMENT as i32,
        message: format!("'{}' contains a zero byte", String::from_utf8_lossy(bytes)),
    })
}
