//! Sequences of different lengths into rows of one length, and back; `kernels/pad.cu`.
//!
//! Sequence `i` is the elements `offsets[i]..offsets[i + 1]`.

use super::Grid;

/// How `pad_*` and `unpad_*` are launched: a launch takes at most 65535 rows.
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
