use std::{cell::Cell, sync::OnceLock};

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUresult},
};

use crate::device::DeviceError;

thread_local! {
    /// Whether the thread's mode of capture has been set. By CUDA's default a thread must not wait or take
    /// memory while any other captures in the mode `GLOBAL`, as ONNX Runtime does: the capture would fail, and
    /// so would the call.
    static KEEPS_OUT_OF_CAPTURES: Cell<bool> = const { Cell::new(false) };
}

/// A device's primary context, and whether it is lost.
pub(super) struct Context {
    pub device: usize,
    pub handle: sys::CUdevice,
    pub raw: sys::CUcontext,
    lost: OnceLock<DeviceError>,
}

// SAFETY: a context may be made current on any thread, on several at once; the handle is a name.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of the GPU with a number.
    pub fn retain(device: usize) -> Result<Self, DeviceError> {
        let failed = |call| move |error| driver_error(device, call, error);
        let ordinal = i32::try_from(device).unwrap_or(i32::MAX);
        let handle = result::device::get(ordinal).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device is one that the driver has just named.
        let raw = unsafe { result::primary_ctx::retain(handle) }
            .map_err(failed("cuDevicePrimaryCtxRetain"))?;
        Ok(Self { device, handle, raw, lost: OnceLock::new() })
    }

    /// Makes calls of the driver in this context. `name` stands for them in errors.
    pub fn call<T>(
        &self,
        name: &'static str,
        calls: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, DeviceError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        self.enter().and_then(|()| calls()).map_err(|error| self.judge(name, error))
    }

    /// Makes calls that give something back; that they fail changes nothing.
    pub fn release(&self, name: &'static str, calls: impl FnOnce() -> Result<(), DriverError>) {
        if let Err(error) = self.enter().and_then(|()| calls()) {
            log::debug!("{}", driver_error(self.device, name, error));
        }
    }

    /// Makes the context the calling thread's, whose calls are none of other threads' captures.
    fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained as long as this value lives.
        unsafe { result::ctx::set_current(self.raw) }?;
        if KEEPS_OUT_OF_CAPTURES.get() {
            return Ok(());
        }
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the call exchanges the thread's mode for the one given.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result()?;
        KEEPS_OUT_OF_CAPTURES.set(true);
        Ok(())
    }

    pub fn lost(&self) -> Option<&DeviceError> {
        self.lost.get()
    }

    pub fn judge(&self, name: &'static str, error: DriverError) -> DeviceError {
        if !loses_the_context(error.0) {
            return driver_error(self.device, name, error);
        }
        let reason = format!("{name}: {}", words(error));
        let device = self.device;
        self.lost.get_or_init(|| DeviceError::Lost { device, reason }).clone()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `retain`; all that was made in it is gone, for it held this.
        if let Err(error) = unsafe { result::primary_ctx::release(self.handle) } {
            log::debug!("{}", driver_error(self.device, "cuDevicePrimaryCtxRelease", error));
        }
    }
}

fn driver_error(device: usize, call: &'static str, error: DriverError) -> DeviceError {
    DeviceError::Driver { device, call, reason: words(error) }
}

/// An error in the driver's words.
pub(super) fn words(error: DriverError) -> String {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    format!("{:?} ({})", error.0, text.as_deref().unwrap_or("no description"))
}

/// Errors after which, by the driver's documentation of `CUresult`, "the process must be terminated
/// and relaunched" to use CUDA again.
fn loses_the_context(result: CUresult) -> bool {
    matches!(
        result,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_DEINITIALIZED
    )
}
