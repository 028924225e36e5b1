//! The largest values of rows and their places; `kernels/top_k.cu`.
//!
//! The largest comes first and of equals the earlier. The order is IEEE 754's total order: NaN counts
//! as larger than infinity, and +0 as larger than -0.

use super::Grid;

/// The largest k that the kernel takes: its ranks must fit into shared memory.
pub const K_MAX: u32 = 4096;

/// What the threads of a block share besides ranks: 256 counts, a prefix and four numbers.
const SHARED: u32 = 256 * 4 + 8 + 4 * 4;

/// How `top_k` is launched.
pub fn grid(rows: u32, columns: u32, k: u32) -> Grid {
    let grid = Grid::a_block_a_row(rows, columns);
    Grid { shared_bytes: SHARED + capacity(k) * 8, ..grid }
}

/// The places for ranks that the kernel `top_k` wants for k.
pub fn capacity(k: u32) -> u32 {
    k.min(K_MAX).next_power_of_two()
}

/// How `argmax` is launched.
pub fn argmax_grid(rows: u32, columns: u32) -> Grid {
    let grid = Grid::a_block_a_row(rows, columns);
    Grid { shared_bytes: grid.warps() * 8, ..grid }
}

/// A float32 as an integer of the same order.
fn ordered(value: f32) -> i32 {
    let bits = value.to_bits().cast_signed();
    // Of a negative number a larger magnitude is less: all but the sign is turned round.
    bits ^ (bits >> 31).cast_unsigned().wrapping_shr(1).cast_signed()
}

/// A number for a value and its place, larger for a larger value and of equals for the earlier.
fn ranked(value: f32, place: usize) -> u64 {
    let value = ordered(value).cast_unsigned() ^ (1 << 31);
    u64::from(value) << 32 | u64::from(!(place as u32))
}

fn place_of(rank: u64) -> usize {
    !(rank as u32) as usize
}

/// Up to this k it is cheaper to keep the best in order than to look for the k-th.
const FEW: usize = 32;

/// Writes the places of the `k` largest of each row of `columns` elements, and their values. A row
/// has fewer than 2³² elements.
///
/// # Panics
/// When `k` is more than `columns`.
pub fn top_k(from: &[f32], columns: usize, k: usize, values: &mut [f32], places: &mut [i64]) {
    assert!(k <= columns, "{k} of {columns} elements are asked for");
    if k == 0 {
        return;
    }
    let mut ranks = Vec::new();
    let results = values.chunks_exact_mut(k).zip(places.chunks_exact_mut(k));
    for (row, (values, places)) in from.chunks_exact(columns).zip(results) {
        largest_ranks(row, k, &mut ranks);
        for ((value, place), &rank) in values.iter_mut().zip(places).zip(&ranks) {
            *value = row[place_of(rank)];
            *place = place_of(rank) as i64;
        }
    }
}

/// Makes `ranks` the `k` largest of the row, in descending order.
fn largest_ranks(row: &[f32], k: usize, ranks: &mut Vec<u64>) {
    ranks.clear();
    if k > FEW {
        ranks.extend(row.iter().enumerate().map(|(place, &value)| ranked(value, place)));
        if k < ranks.len() {
            ranks.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            ranks.truncate(k);
        }
        ranks.sort_unstable_by(|a, b| b.cmp(a));
        return;
    }
    let (first, rest) = row.split_at(k);
    ranks.extend(first.iter().enumerate().map(|(place, &value)| ranked(value, place)));
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    let mut least = ranks[k - 1];
    for (place, &value) in rest.iter().enumerate() {
        let rank = ranked(value, place + k);
        if rank > least {
            let at = ranks.partition_point(|&other| other > rank);
            ranks.pop();
            ranks.insert(at, rank);
            least = ranks[k - 1];
        }
    }
}

/// Writes the place of the largest of each row of `columns` elements.
pub fn argmax(from: &[f32], columns: usize, places: &mut [i64]) {
    for (row, place) in from.chunks_exact(columns.max(1)).zip(places) {
        let largest = largest(row);
        let at = row.iter().position(|&value| ordered(value) == largest);
        *place = at.unwrap_or(0) as i64;
    }
}

fn largest(row: &[f32]) -> i32 {
    const LANES: usize = 16;
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [i32::MIN; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = ordered(value).max(*lane);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&value| ordered(value))).max().unwrap_or(i32::MIN)
}
