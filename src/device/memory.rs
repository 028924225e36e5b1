use std::{
    any::Any,
    ops::Range,
    ptr::NonNull,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use super::DeviceError;
use crate::memory::Buffer;

/// A device's memory, as the device keeps it. It is given back when the last handle is dropped, which
/// operations under way hold too.
pub trait Allocation: Any + Send + Sync {
    /// Where it lies, as kernels see it.
    fn address(&self) -> u64;

    /// Its size in bytes.
    fn size(&self) -> usize;

    /// The device that it belongs to.
    fn device(&self) -> usize;
}

/// A handle on memory of a device.
#[derive(Clone)]
pub struct DeviceMemory(Arc<dyn Allocation>);

impl DeviceMemory {
    /// A handle on what a device has allocated, or on memory that was opened from elsewhere.
    pub fn new(allocation: Arc<dyn Allocation>) -> Self {
        Self(allocation)
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// The device that it belongs to.
    pub fn device(&self) -> usize {
        self.0.device()
    }

    /// All of it.
    pub fn whole(&self) -> DeviceSlice {
        DeviceSlice { memory: self.clone(), start: 0, len: self.size() }
    }

    /// A part of it.
    ///
    /// # Errors
    /// When the range does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Result<DeviceSlice, DeviceError> {
        self.whole().slice(range)
    }

    /// The same, which does not keep the memory.
    pub(super) fn downgrade(&self) -> Weak<dyn Allocation> {
        Arc::downgrade(&self.0)
    }

    /// The allocation as its device made it.
    pub(super) fn allocation(&self) -> &dyn Allocation {
        &*self.0
    }
}

/// Bytes of a device's memory, which it keeps alive.
#[derive(Clone)]
pub struct DeviceSlice {
    memory: DeviceMemory,
    start: usize,
    len: usize,
}

impl DeviceSlice {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that the bytes are of.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Where in the memory they lie.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Where the first byte lies, as kernels see it.
    pub fn address(&self) -> u64 {
        self.memory.0.address() + self.start as u64
    }

    /// Whether a byte of both is the same one.
    pub fn overlaps(&self, other: &Self) -> bool {
        let end = |slice: &Self| slice.address() + slice.len as u64;
        self.memory.device() == other.memory.device()
            && self.address() < end(other)
            && other.address() < end(self)
    }

    /// It and the bytes that follow it in the same memory, if `next` are those.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let is_next =
            Arc::ptr_eq(&self.memory.0, &next.memory.0) && self.start + self.len == next.start;
        is_next.then(|| Self { len: self.len + next.len, ..self.clone() })
    }

    /// A part of it.
    ///
    /// # Errors
    /// When the range does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Result<DeviceSlice, DeviceError> {
        if range.start > range.end || range.end > self.len {
            let Range { start, end } = range;
            return Err(DeviceError::Range { start, end, len: self.len });
        }
        let len = range.end - range.start;
        Ok(Self { memory: self.memory.clone(), start: self.start + range.start, len })
    }
}

/// A buffer of the host that copies from a device arrive in.
pub struct Landing(Arc<LandingBuffer>);

struct LandingBuffer {
    /// Read by nobody before all targets are gone.
    buffer: Buffer,
    first: NonNull<u8>,
}

// SAFETY: the buffer may go to any thread, and `first` points into it.
unsafe impl Send for LandingBuffer {}
// SAFETY: only targets touch the bytes, each its own, and the buffer only when they are gone.
unsafe impl Sync for LandingBuffer {}

impl Landing {
    /// Gives the buffer to copies; the target is all of it, to be split among them.
    pub fn new(mut buffer: Buffer) -> (Self, HostTarget) {
        let len = buffer.len();
        let first = NonNull::new(buffer.as_mut_ptr()).unwrap_or(NonNull::dangling());
        let shared = Arc::new(LandingBuffer { buffer, first });
        (Self(shared.clone()), HostTarget { shared, start: 0, len })
    }

    /// The bytes, once every copy is done; none while one is under way still.
    pub fn finish(self) -> Option<Bytes> {
        Arc::into_inner(self.0).map(|landed| landed.buffer.freeze())
    }
}

/// Bytes of the host that one copy may write, and nobody else.
pub struct HostTarget {
    shared: Arc<LandingBuffer>,
    start: usize,
    len: usize,
}

impl HostTarget {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `len` bytes away, at most all.
    pub fn split_to(&mut self, len: usize) -> HostTarget {
        let len = len.min(self.len);
        let first = HostTarget { shared: self.shared.clone(), start: self.start, len };
        self.start += len;
        self.len -= len;
        first
    }

    /// Writes `bytes`, as many as fit.
    pub fn write(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        // SAFETY: `len` bytes from the pointer on lie inside the buffer and are this target's alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(), len) };
    }

    /// The first of the bytes.
    pub(super) fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` lies inside the buffer, or one behind it.
        unsafe { self.shared.first.as_ptr().add(self.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::BufferPool;

    #[test]
    fn targets_part_a_buffer_and_the_bytes_come_when_all_are_gone() {
        let pool = BufferPool::new(1 << 16, 1 << 16).unwrap();
        let (landing, mut rest) = Landing::new(pool.allocate(6).unwrap());
        let mut first = rest.split_to(2);
        rest.write(b"cdefgh");
        first.write(b"ab");
        assert_eq!((first.len(), rest.len(), rest.split_to(9).len()), (2, 4, 4));
        drop((first, rest));
        assert_eq!(&landing.finish().unwrap()[..], b"abcdef");
        let (landing, target) = Landing::new(pool.allocate(6).unwrap());
        assert!(landing.finish().is_none());
        drop(target);
        assert_eq!(pool.used(), 0);
    }
}
