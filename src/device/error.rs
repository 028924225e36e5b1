/// Why a device could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is not enough memory; some may come free.
    #[error("device {device} is out of memory: {asked} bytes asked for, {free} of {total} free")]
    OutOfMemory {
        /// The device.
        device: usize,
        /// The bytes asked for.
        asked: usize,
        /// The bytes free.
        free: usize,
        /// All that the device has.
        total: usize,
    },
    /// The device can do nothing more until the process starts anew.
    #[error("device {device} is lost: {reason}")]
    Lost {
        /// The device.
        device: usize,
        /// What lost it.
        reason: String,
    },
    /// A copy failed.
    #[error("a copy of {bytes} bytes on device {device} failed: {reason}")]
    Copy {
        /// The device.
        device: usize,
        /// Its size.
        bytes: usize,
        /// Why.
        reason: String,
    },
    /// A kernel could not be launched, or said that it failed.
    #[error("kernel '{kernel}' failed on device {device}: {reason}")]
    Launch {
        /// The device.
        device: usize,
        /// The kernel.
        kernel: String,
        /// Why.
        reason: String,
    },
    /// Work of a library failed.
    #[error("{who} failed on device {device}: {reason}")]
    Visit {
        /// The device.
        device: usize,
        /// Whose work it was.
        who: String,
        /// Why.
        reason: String,
        /// Whether the library found no memory for it.
        out_of_memory: bool,
    },
    /// The device has no code for a kernel.
    #[error("device {device} cannot load kernel '{kernel}': {reason}")]
    Kernel {
        /// The device.
        device: usize,
        /// The kernel.
        kernel: String,
        /// Why.
        reason: String,
    },
    /// Source and destination of a copy differ in length.
    #[error("a copy from {from} bytes to {to} bytes on device {device}: the lengths must be equal")]
    Lengths {
        /// The device.
        device: usize,
        /// The length of the source.
        from: usize,
        /// The length of the destination.
        to: usize,
    },
    /// A range does not lie inside the memory.
    #[error("bytes {start}..{end} do not lie inside device memory of {len} bytes")]
    Range {
        /// Where the range begins.
        start: usize,
        /// Where it ends.
        end: usize,
        /// The size of the memory.
        len: usize,
    },
    /// Memory, an event, a kernel or a graph of another device.
    #[error("{what} was made by another device than device {device}, which is to use it")]
    Foreign {
        /// The device that was to use it.
        device: usize,
        /// What it is.
        what: &'static str,
    },
    /// Two operations that no event orders touch the same bytes, and one of them writes.
    #[error(
        "two operations on device {device} touch bytes {start}..{end} of one allocation at once"
    )]
    Race {
        /// The device.
        device: usize,
        /// Where the later one's range begins.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// Something that a graph cannot hold, or a capture out of order.
    #[error("device {device} cannot capture: {reason}")]
    Capture {
        /// The device.
        device: usize,
        /// Why.
        reason: &'static str,
    },
    /// Memory of another process cannot be opened; the text is Triton's.
    #[error("failed to open CUDA IPC handle: {reason}")]
    Shared {
        /// The device.
        device: usize,
        /// Why.
        reason: String,
    },
    /// A call into the driver failed.
    #[error("{call} failed on device {device}: {reason}")]
    Driver {
        /// The device.
        device: usize,
        /// The call.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
}

impl DeviceError {
    /// Whether the device can be used no more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Whether the same could work once memory has come free.
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory_on().is_some()
    }

    /// The device whose memory has to come free for the same to work, if that is the matter.
    pub fn out_of_memory_on(&self) -> Option<usize> {
        match self {
            Self::OutOfMemory { device, .. } | Self::Visit { device, out_of_memory: true, .. } => {
                Some(*device)
            }
            _ => None,
        }
    }
}
