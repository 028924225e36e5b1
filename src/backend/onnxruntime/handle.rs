//! Ownership of the objects that the C API hands out.

use std::{ffi::CStr, ptr::NonNull};

use ort_sys::{OrtApi, OrtStatusPtr};

/// What ONNX Runtime itself says of a failure, in the form in which Triton passes it on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("onnx runtime error {code}: {message}")]
pub(super) struct OrtError {
    pub code: i32,
    pub message: String,
}

impl OrtError {
    /// Whether it says that a device has no memory left; the C API has no code of its own for that.
    pub fn is_out_of_memory(&self) -> bool {
        ["Failed to allocate memory", "out of memory"].iter().any(|it| self.message.contains(it))
    }
}

/// Turns a status into a result, and releases it.
///
/// # Safety
/// `status` comes from a call of this `api` and is not used again.
pub(super) unsafe fn check(api: &OrtApi, status: OrtStatusPtr) -> Result<(), OrtError> {
    if status.0.is_null() {
        return Ok(());
    }
    // SAFETY: the caller gives a status that is alive; its message lives as long as it does.
    let error = unsafe {
        OrtError {
            code: (api.GetErrorCode)(status.0) as i32,
            message: CStr::from_ptr((api.GetErrorMessage)(status.0)).to_string_lossy().into_owned(),
        }
    };
    // SAFETY: as above; this is its last use.
    unsafe { (api.ReleaseStatus)(status.0) };
    Err(error)
}

/// An object of the C API with one owner.
pub(super) struct Handle<T> {
    pointer: NonNull<T>,
    release: unsafe extern "system" fn(*mut T),
}

impl<T> Handle<T> {
    /// Owns the object that `make` writes.
    ///
    /// # Safety
    /// `make` calls one creating function of this `api`, and `release` is its counterpart.
    pub unsafe fn create(
        api: &OrtApi,
        release: unsafe extern "system" fn(*mut T),
        make: impl FnOnce(*mut *mut T) -> OrtStatusPtr,
    ) -> Result<Self, OrtError> {
        let mut pointer = std::ptr::null_mut();
        let status = make(&mut pointer);
        // SAFETY: the status comes from the call just made.
        unsafe { check(api, status) }?;
        let pointer = NonNull::new(pointer)
            .ok_or_else(|| OrtError { code: 1, message: "no object was returned".to_owned() })?;
        Ok(Self { pointer, release })
    }

    /// Owns an object that a call has returned.
    ///
    /// # Safety
    /// Nobody else owns `pointer`, and `release` is the function that releases it.
    pub unsafe fn adopt(
        pointer: NonNull<T>,
        release: unsafe extern "system" fn(*mut T),
    ) -> Handle<T> {
        Self { pointer, release }
    }

    pub fn as_ptr(&self) -> *mut T {
        self.pointer.as_ptr()
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: the handle is the only owner, and its maker vouched for `release`.
        unsafe { (self.release)(self.pointer.as_ptr()) };
    }
}

// SAFETY: ONNX Runtime ties none of its objects to a thread.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: through a shared handle this room only calls functions that ONNX Runtime allows from
// many threads at once: `Run` on a session, reading a value.
unsafe impl<T> Sync for Handle<T> {}
