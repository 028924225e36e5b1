use std::{
    alloc::{Layout, alloc, dealloc},
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    device::{Allocation, DeviceError, DeviceSlice},
    memory::SharedObject,
};

/// What memory holds that nobody has written: a NaN in every float type, -1 in every integer.
pub const POISON: u8 = 0xff;
const ALIGNMENT: usize = 256;

/// The memory of a host device, counted.
pub(super) struct Supply {
    pub device: usize,
    pub total: usize,
    used: AtomicUsize,
}

impl Supply {
    pub fn new(device: usize, total: usize) -> Self {
        Self { device, total, used: AtomicUsize::new(0) }
    }

    pub fn free(&self) -> usize {
        self.total.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    pub fn out_of_memory(&self, asked: usize) -> DeviceError {
        let (device, free, total) = (self.device, self.free(), self.total);
        DeviceError::OutOfMemory { device, asked, free, total }
    }

    pub fn take(self: &Arc<Self>, len: usize) -> Result<HostAllocation, DeviceError> {
        let fits = |used: usize| used.checked_add(len).filter(|&sum| sum <= self.total);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| self.out_of_memory(len))?;
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT);
        // SAFETY: the layout is not empty.
        let first = layout.as_ref().ok().and_then(|layout| NonNull::new(unsafe { alloc(*layout) }));
        let (Some(first), Ok(layout)) = (first, layout) else {
            self.used.fetch_sub(len, Ordering::Relaxed);
            return Err(self.out_of_memory(len));
        };
        // SAFETY: the block is `len` bytes at least, and nobody else has it yet.
        unsafe { first.as_ptr().write_bytes(POISON, layout.size()) };
        let (block, claims) = (Block::Own(layout), Mutex::default());
        Ok(HostAllocation { supply: self.clone(), first, block, len, claims })
    }

    /// Memory of a shared-memory object, which takes nothing of the device's.
    pub fn lend(self: &Arc<Self>, object: SharedObject) -> HostAllocation {
        let (first, len) = (object.first(), object.len());
        let (block, claims) = (Block::Shared(object), Mutex::default());
        HostAllocation { supply: self.clone(), first, block, len, claims }
    }
}

/// Memory of a host device. Each operation claims the bytes that it touches while it does, so that
/// two at once are an error and never a data race.
pub(super) struct HostAllocation {
    supply: Arc<Supply>,
    first: NonNull<u8>,
    block: Block,
    len: usize,
    claims: Mutex<Vec<Claim>>,
}

/// What the bytes are of.
enum Block {
    /// The device's own memory.
    Own(Layout),
    /// A shared-memory object, which other processes may change at any time.
    Shared(SharedObject),
}

#[derive(Clone, Debug, PartialEq)]
struct Claim {
    range: Range<usize>,
    writes: bool,
}

// SAFETY: the block is plain memory; its bytes are only reached through claims, which part it.
unsafe impl Send for HostAllocation {}
// SAFETY: as above; the claims are behind a lock.
unsafe impl Sync for HostAllocation {}

impl Allocation for HostAllocation {
    fn address(&self) -> u64 {
        self.first.as_ptr().expose_provenance() as u64
    }

    fn size(&self) -> usize {
        self.len
    }

    fn device(&self) -> usize {
        self.supply.device
    }
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        let Block::Own(layout) = self.block else { return };
        // SAFETY: the block is this long, and nobody has claimed any of it, for claims borrow it.
        // A stale pointer finds poison as long as the allocator leaves it there.
        unsafe {
            self.first.as_ptr().write_bytes(POISON, layout.size());
            dealloc(self.first.as_ptr(), layout);
        }
        self.supply.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl HostAllocation {
    fn claim(&self, range: Range<usize>, writes: bool) -> Result<Claim, DeviceError> {
        if let Block::Shared(object) = &self.block
            && object.is_cut_short()
        {
            let (device, reason) =
                (self.supply.device, format!("'{}' was truncated", object.key()));
            return Err(DeviceError::Shared { device, reason });
        }
        let wanted = Claim { range, writes };
        let mut claims = self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if claims.iter().any(|claim| claim.conflicts_with(&wanted)) {
            let (device, Range { start, end }) = (self.supply.device, wanted.range);
            return Err(DeviceError::Race { device, start, end });
        }
        claims.push(wanted.clone());
        Ok(wanted)
    }

    fn release(&self, claim: &Claim) {
        let mut claims = self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = claims.iter().position(|held| held == claim) {
            claims.swap_remove(at);
        }
    }
}

impl Claim {
    fn conflicts_with(&self, other: &Claim) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.writes || other.writes)
    }
}

/// Bytes that an operation touches right now.
pub(super) struct Touched<'a> {
    allocation: &'a HostAllocation,
    claim: Claim,
}

/// Bytes that an operation writes right now.
pub(super) struct TouchedMut<'a>(Touched<'a>);

/// Claims the bytes of `slice` for reading.
pub(super) fn read(slice: &DeviceSlice, device: usize) -> Result<Touched<'_>, DeviceError> {
    let allocation = own(slice, device)?;
    Ok(Touched { allocation, claim: allocation.claim(slice.range(), false)? })
}

/// Claims the bytes of `slice` for writing.
pub(super) fn write(slice: &DeviceSlice, device: usize) -> Result<TouchedMut<'_>, DeviceError> {
    let allocation = own(slice, device)?;
    Ok(TouchedMut(Touched { allocation, claim: allocation.claim(slice.range(), true)? }))
}

/// The allocation behind `slice`, if `device` made it.
pub(super) fn own(slice: &DeviceSlice, device: usize) -> Result<&HostAllocation, DeviceError> {
    let allocation: &dyn std::any::Any = slice.memory().allocation();
    allocation
        .downcast_ref::<HostAllocation>()
        .filter(|allocation| allocation.supply.device == device)
        .ok_or(DeviceError::Foreign { device, what: "memory" })
}

impl Deref for Touched<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Range { start, end } = self.claim.range;
        // SAFETY: a slice's range lies inside its allocation, whose bytes are initialised (with
        // poison), and the claim keeps the device's writers away as long as this lives. What another
        // process writes to an object meanwhile is bytes, and nothing rests on what they are.
        unsafe {
            std::slice::from_raw_parts(self.allocation.first.as_ptr().add(start), end - start)
        }
    }
}

impl Deref for TouchedMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for TouchedMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Range { start, end } = self.0.claim.range;
        // SAFETY: as in `Touched::deref`; the claim writes, so it keeps everybody else away.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.allocation.first.as_ptr().add(start), end - start)
        }
    }
}

impl Drop for Touched<'_> {
    fn drop(&mut self) {
        self.allocation.release(&self.claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceMemory;

    #[test]
    fn fresh_memory_is_poisoned_counted_and_given_back() {
        let supply = Arc::new(Supply::new(0, 1000));
        let memory = DeviceMemory::new(Arc::new(supply.take(600).unwrap()));
        assert!(read(&memory.whole(), 0).unwrap().iter().all(|&byte| byte == POISON));
        let refused = supply.take(401).err();
        let expected = DeviceError::OutOfMemory { device: 0, asked: 401, free: 400, total: 1000 };
        assert_eq!(refused, Some(expected));
        drop(memory);
        assert_eq!(supply.free(), 1000);
    }

    #[test]
    fn bytes_have_one_writer_or_many_readers() {
        let supply = Arc::new(Supply::new(0, 1000));
        let memory = DeviceMemory::new(Arc::new(supply.take(10).unwrap()));
        let part = |start, end| memory.slice(start..end).unwrap();
        let (left, right, middle) = (part(0, 5), part(5, 10), part(4, 6));
        let reading = (read(&left, 0).unwrap(), read(&middle, 0).unwrap());
        assert!(write(&part(8, 10), 0).is_ok());
        assert_eq!(
            write(&right, 0).err(),
            Some(DeviceError::Race { device: 0, start: 5, end: 10 })
        );
        drop(reading);
        let mut writing = write(&right, 0).unwrap();
        writing.fill(1);
        assert!(read(&middle, 0).is_err());
        assert!(matches!(read(&left, 1), Err(DeviceError::Foreign { .. })));
    }
}
