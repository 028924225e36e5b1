use std::{any::Any, sync::Arc};

use super::{DeviceError, DeviceSlice, HostTarget};

/// Work of a library that brings kernels of its own, and knows a stream by its
/// [`handle`](super::Stream::handle).
pub struct Visit {
    /// Who works, for errors.
    pub who: Arc<str>,
    /// Bytes that are only read.
    pub reads: Vec<DeviceSlice>,
    /// Bytes that may be read and are written. Beside these and its own, the library touches none.
    pub writes: Vec<DeviceSlice>,
    /// On a GPU called at once, by the caller's thread, to put the work onto the stream; on the host
    /// in its turn, to do it. A panic fails the visit.
    pub work: VisitWork,
}

/// See [`Visit::work`].
pub type VisitWork = Box<dyn FnOnce(&mut dyn Visited) -> Result<(), VisitError> + Send>;

/// The stream that a [`Visit`] is on.
pub trait Visited {
    /// Copies what the library has made, behind its work, to a place of the visit's
    /// [`writes`](Visit::writes) or on the host. `from` is kept until then.
    ///
    /// # Errors
    /// When the lengths differ or the device refuses.
    fn bring(&mut self, from: LibraryMemory, to: Destination<'_>) -> Result<(), VisitError>;
}

/// Where something is brought.
pub enum Destination<'a> {
    /// Memory of the device.
    Device(&'a DeviceSlice),
    /// Memory of the host.
    Host(HostTarget),
}

impl Destination<'_> {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Device(slice) => slice.len(),
            Self::Host(target) => target.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory of a library, on the visited device.
pub struct LibraryMemory {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) keeper: Box<dyn Send>,
}

impl LibraryMemory {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes from `address` on.
    ///
    /// # Safety
    /// They are memory of the visited device, which the visit's work on its stream has written when it
    /// has run, and stay so as long as `keeper` lives.
    pub unsafe fn new(address: u64, len: usize, keeper: Box<dyn Send>) -> Self {
        Self { address, len, keeper }
    }
}

/// Why a visit failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    /// The library found no memory; a smaller batch may have enough.
    #[error("{0}")]
    OutOfMemory(String),
    /// In the library's words.
    #[error("{0}")]
    Failed(String),
}

impl From<DeviceError> for VisitError {
    fn from(error: DeviceError) -> Self {
        match error.is_out_of_memory() {
            true => Self::OutOfMemory(error.to_string()),
            false => Self::Failed(error.to_string()),
        }
    }
}

impl VisitError {
    /// As an error of the device.
    pub(super) fn on(self, device: usize, who: &str) -> DeviceError {
        let (reason, out_of_memory) = match self {
            Self::OutOfMemory(reason) => (reason, true),
            Self::Failed(reason) => (reason, false),
        };
        DeviceError::Visit { device, who: who.to_owned(), reason, out_of_memory }
    }
}

/// Does a visit's work, whatever it does.
pub(super) fn work(work: VisitWork, visited: &mut dyn Visited) -> Result<(), VisitError> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(visited)));
    done.unwrap_or_else(|panic| Err(VisitError::Failed(words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("no message"))
}
