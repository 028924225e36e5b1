//! Sequences of different lengths into rows of one length, and back; `kernels/pad.cu`.
//!
//! Sequence `i` is the elements `offsets[i]..offsets[i + 1]`.

use super::Grid;

/// The most rows of a launch.
pub const ROWS_MAX: usize = 65535;

/// How `pad_*`, `unpad_*` and `pad_mask` are launched on at most [`ROWS_MAX`] rows.
pub fn grid(rows: u32, length: u64) -> Grid {
    let mut grid = Grid::over(length);
    grid.blocks[1] = rows;
    grid
}

/// Writes each sequence into a row of `length` elements: the rest of the row is `value`, and what is
/// longer than the row is cut off.
///
/// # Panics
/// When the offsets descend or reach beyond `from`.
pub fn pad<T: Copy>(from: &[T], offsets: &[usize], to: &mut [T], length: usize, value: T) {
    for (bounds, row) in offsets.windows(2).zip(to.chunks_exact_mut(length.max(1))) {
        let sequence = &from[bounds[0]..bounds[1]];
        let given = sequence.len().min(row.len());
        row[..given].copy_from_slice(&sequence[..given]);
        row[given..].fill(value);
    }
}

/// Writes the beginning of each row of `length` elements to its sequence; where a sequence is longer
/// than the row, its end stays as it was.
///
/// # Panics
/// When the offsets descend or reach beyond `to`.
pub fn unpad<T: Copy>(from: &[T], offsets: &[usize], to: &mut [T], length: usize) {
    for (bounds, row) in offsets.windows(2).zip(from.chunks_exact(length.max(1))) {
        let sequence = &mut to[bounds[0]..bounds[1]];
        let given = sequence.len().min(row.len());
        sequence[..given].copy_from_slice(&row[..given]);
    }
}

/// Writes 1 for each place of a row of `length` that its sequence has, and 0 for the rest.
///
/// # Panics
/// When the offsets descend.
pub fn mask(offsets: &[usize], to: &mut [i64], length: usize) {
    for (bounds, row) in offsets.windows(2).zip(to.chunks_exact_mut(length.max(1))) {
        let (there, padding) = row.split_at_mut((bounds[1] - bounds[0]).min(row.len()));
        there.fill(1);
        padding.fill(0);
    }
}
