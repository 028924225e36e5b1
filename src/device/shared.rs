use std::{
    any::Any,
    fmt,
    sync::{Mutex, PoisonError, Weak},
};

use rustc_hash::FxHashMap;

use super::{Allocation, Device, DeviceError, DeviceMemory};

/// What another process says of memory that it shares: 64 bytes, as `cudaIpcGetMemHandle` gives them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpcHandle(pub [u8; IpcHandle::BYTES]);

impl IpcHandle {
    /// Its size, which is CUDA's.
    pub const BYTES: usize = 64;
}

impl fmt::Debug for IpcHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Memory that other processes may open, as long as this is held.
pub struct ExportedMemory {
    /// What they open it by.
    pub handle: IpcHandle,
    pub(super) _memory: Box<dyn Any + Send>,
}

/// Memory of other processes: each is opened once in this one, however many name it, and closed when
/// the last that uses it is done.
#[derive(Default)]
pub struct OpenedMemory(Mutex<FxHashMap<(usize, IpcHandle), Weak<dyn Allocation>>>);

impl OpenedMemory {
    /// Opens what a handle leads to on a device, unless it is open. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When the device refuses the handle.
    pub fn open(
        &self,
        device: &dyn Device,
        handle: IpcHandle,
    ) -> Result<DeviceMemory, DeviceError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (device.properties().index, handle);
        if let Some(known) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(DeviceMemory::new(known));
        }
        let memory = device.open_shared(handle)?;
        open.retain(|_, known| known.strong_count() > 0);
        open.insert(key, memory.downgrade());
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::host::{HostDevice, HostSettings};

    #[test]
    fn memory_that_several_name_is_opened_once_and_closed_with_the_last() {
        let device = HostDevice::start(HostSettings::default()).unwrap();
        let exported = device.share(b"content").unwrap();
        let opened = OpenedMemory::default();
        let first = opened.open(&device, exported.handle).unwrap();
        let second = opened.open(&device, exported.handle).unwrap();
        let address = |memory: &DeviceMemory| memory.whole().address();
        assert_eq!((address(&first), first.size()), (address(&second), 7));
        let weak = first.downgrade();
        drop(first);
        assert!(weak.upgrade().is_some());
        drop(second);
        assert!(weak.upgrade().is_none());
        assert!(opened.open(&device, exported.handle).is_ok());
        let error = opened.open(&device, IpcHandle([7; 64])).err().unwrap();
        assert!(error.to_string().starts_with("failed to open CUDA IPC handle: "), "{error}");
    }
}
