//! Entries of each row of a batch by their indices; `kernels/take.cu`.
//!
//! Of a row's `count` entries, each of `each` elements, those are taken that its `wanted` indices name.

use super::Grid;

/// How `take_*` is launched to write so many elements.
pub fn grid(elements: u64) -> Grid {
    Grid::over(elements)
}

/// How `check_indices` is launched.
pub fn check_grid(rows: u32, wanted: u32) -> Grid {
    let grid = Grid::a_block_a_row(rows, wanted);
    Grid { shared_bytes: size_of::<u32>() as u32, ..grid }
}

/// The entry of `count` that an index names, if there is one.
fn entry(index: i64, count: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&entry| entry < count)
}

/// Writes the entries that the indices of each row name, zeros for those that name none.
pub fn take<T: Copy + Default>(
    entries: &[T],
    indices: &[i64],
    to: &mut [T],
    [count, wanted, each]: [usize; 3],
) {
    let places = to.chunks_exact_mut(each.max(1));
    for (at, (&index, place)) in indices.iter().zip(places).enumerate() {
        let row = at / wanted.max(1) * count;
        let from = entry(index, count).map(|entry| (row + entry) * each);
        match from.and_then(|from| entries.get(from..from + each)) {
            Some(entry) => place.copy_from_slice(entry),
            None => place.fill(T::default()),
        }
    }
}

/// The first of a row's indices that names none of `count` entries: its place, and the index.
pub fn first_fault(indices: &[i64], count: usize) -> Option<(usize, i64)> {
    let mut indices = indices.iter().copied().enumerate();
    indices.find(|&(_, index)| entry(index, count).is_none())
}
