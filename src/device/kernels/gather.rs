//! Many places in memory into one batch, and back; `kernels/gather.cu`.
//!
//! Segment `i` is the bytes `offsets[i]..offsets[i + 1]` of the batch.

use super::Grid;

/// The bytes of a batch that one block copies.
pub const STRETCH: u64 = 32 << 10;

/// How `gather` and `scatter` are launched on a batch of `bytes`.
pub fn grid(bytes: u64) -> Grid {
    let blocks = u32::try_from(bytes.div_ceil(STRETCH)).unwrap_or(u32::MAX).max(1);
    Grid { blocks: [blocks, 1, 1], threads: [super::THREADS, 1, 1], shared_bytes: 0 }
}

/// Copies `sources` into `batch`, one behind the other, as far as it reaches.
pub fn gather<'a>(sources: impl IntoIterator<Item = &'a [u8]>, mut batch: &mut [u8]) {
    for source in sources {
        let len = source.len().min(batch.len());
        let (here, rest) = batch.split_at_mut(len);
        here.copy_from_slice(&source[..len]);
        batch = rest;
    }
}

/// Copies `batch` into `destinations`, one behind the other, as far as it reaches.
pub fn scatter<'a>(mut batch: &[u8], destinations: impl IntoIterator<Item = &'a mut [u8]>) {
    for destination in destinations {
        let len = destination.len().min(batch.len());
        let (here, rest) = batch.split_at(len);
        destination[..len].copy_from_slice(here);
        batch = rest;
    }
}
