//! What stages make of the dimensions of their inputs: the same on the processors and on devices, and so are
//! the words for inputs that do not fit.

use super::plan::PadTo;
use crate::inference::Shape;

/// A dimension as a number of elements.
fn size(dim: Option<&i64>) -> usize {
    dim.map_or(0, |&dim| usize::try_from(dim).unwrap_or(0))
}

/// How many elements there are behind the first dimension, for each of its own.
fn each(dims: &Shape) -> Result<usize, String> {
    let behind: Shape = dims.iter().skip(1).copied().collect();
    let count = behind.element_count().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| too_many(dims))
}

/// The places of a row and the elements of each; few enough for those of all rows to be counted, also where
/// they have no elements and hence take no memory.
fn places(dims: &Shape) -> Result<(usize, usize), String> {
    let (given, each) = (size(dims.first()), each(dims)?);
    let count = given.checked_mul(each.max(1)).and_then(|count| u32::try_from(count).ok());
    count.map(|_| (given, each)).ok_or_else(|| too_many(dims))
}

/// What is told of a tensor that no memory could hold.
pub(super) fn too_many(dims: &Shape) -> String {
    format!("{dims} has too many elements")
}

/// The length of a tensor's last dimension.
pub(super) fn columns(dims: &Shape) -> Result<usize, String> {
    let columns = dims.last().and_then(|&dim| usize::try_from(dim).ok());
    columns
        .filter(|&columns| columns > 0 && u32::try_from(columns).is_ok())
        .ok_or_else(|| format!("expected one element or more, got {dims}"))
}

/// The `k` largest of `columns` elements: the dimensions that come of it.
pub(super) fn largest(given: &Shape, k: usize) -> Result<(Shape, usize), String> {
    let columns = columns(given)?;
    if k > columns {
        return Err(format!("expected {k} elements or more, got {columns}"));
    }
    let mut dims = given.clone();
    if let Some(last) = dims.last_mut() {
        *last = k as i64;
    }
    Ok((dims, columns))
}

/// One of `columns` elements: the dimensions that come of it.
pub(super) fn reduced(given: &Shape) -> Result<(Shape, usize), String> {
    let columns = columns(given)?;
    let dims: Shape = given.iter().rev().skip(1).rev().copied().collect();
    Ok((if dims.is_empty() { Shape::from([1]) } else { dims }, columns))
}

/// Sequences that are brought to one length.
pub(super) struct Padding {
    pub dims: Shape,
    /// The places that a sequence has.
    pub given: usize,
    /// Those that it comes to have.
    pub length: usize,
    /// Elements of a place.
    pub each: usize,
}

impl Padding {
    pub fn of(dims: &Shape, to: PadTo, truncate: bool) -> Result<Self, String> {
        let (given, each) = places(dims)?;
        let length = match to {
            PadTo::Length(length) => length,
            PadTo::Multiple(multiple) => given.max(1).next_multiple_of(multiple),
        };
        if given > length && !truncate {
            return Err(format!("expected at most {length} elements, or 'truncate', got {given}"));
        }
        let mut dims = dims.clone();
        if let Some(first) = dims.first_mut() {
            *first = length as i64;
        }
        Ok(Self { dims, given, length, each })
    }

    /// Where the sequences of so many rows begin and end, each place counted as `each`.
    pub fn offsets(&self, rows: usize, each: usize) -> impl Iterator<Item = usize> {
        let sequence = self.given * each;
        (0..=rows).map(move |row| row * sequence)
    }
}

/// Rows that are cut to the sequences that they begin with, all of one length.
pub(super) struct Unpadding {
    pub dims: Shape,
    /// The places of a row.
    pub given: usize,
    /// Those of them that are kept.
    pub length: usize,
    /// Elements of a place.
    pub each: usize,
}

impl Unpadding {
    pub fn of(dims: &Shape, length: i64) -> Result<Self, String> {
        let (given, each) = places(dims)?;
        let fits = usize::try_from(length).ok().filter(|&length| length <= given);
        let fits =
            fits.ok_or_else(|| format!("expected a length of 0 to {given}, got {length}"))?;
        let mut dims = dims.clone();
        if let Some(first) = dims.first_mut() {
            *first = length;
        }
        Ok(Self { dims, given, length: fits, each })
    }

    /// The length that rows have in common; the first that has another, with what is told of it.
    pub fn common(lengths: &[i64]) -> Result<i64, (usize, String)> {
        let first = lengths.first().copied().unwrap_or_default();
        match lengths.iter().enumerate().find(|&(_, &length)| length != first) {
            None => Ok(first),
            Some((row, length)) => {
                let told = format!(
                    "its sequence has a length of {length}, that of row 0 {first}: a batch has one \
                     length"
                );
                Err((row, told))
            }
        }
    }

    /// Where the sequences of so many rows begin and end.
    pub fn offsets(&self, rows: usize) -> impl Iterator<Item = usize> {
        let sequence = self.length * self.each;
        (0..=rows).map(move |row| row * sequence)
    }
}

/// Entries that are taken by their indices.
pub(super) struct Gathering {
    pub dims: Shape,
    /// Entries of a row.
    pub count: usize,
    /// Indices of a row.
    pub wanted: usize,
    /// Elements of an entry.
    pub each: usize,
}

impl Gathering {
    pub fn of(entries: &Shape, indices: &Shape) -> Result<Self, String> {
        let dims: Shape = indices.iter().chain(entries.iter().skip(1)).copied().collect();
        let wanted = size(indices.first());
        if u32::try_from(wanted).is_err() {
            return Err(too_many(&dims));
        }
        Ok(Self { dims, count: size(entries.first()), wanted, each: each(entries)? })
    }

    /// What is told of an index that names no entry.
    pub fn fault(count: usize, index: i64) -> String {
        format!("expected indices of 0 to {}, got {index}", count as i64 - 1)
    }
}

/// Boxes that overlap.
pub(super) struct Suppression {
    /// Boxes of a row.
    pub count: usize,
    /// Scores of a box.
    pub classes: usize,
    /// The scores of a row that are looked at.
    pub candidates: usize,
}

impl Suppression {
    pub fn of(boxes: &Shape, scores: &Shape, candidates: usize) -> Result<Self, String> {
        if scores.first() != boxes.first() {
            return Err(format!(
                "expected a score for each box, got scores {scores} and boxes {boxes}"
            ));
        }
        let count = size(boxes.first());
        let classes = scores.get(1).map_or(1, |dim| size(Some(dim)));
        let entries = count.checked_mul(classes).filter(|&count| u32::try_from(count).is_ok());
        let candidates = candidates.min(entries.ok_or_else(|| too_many(scores))?);
        Ok(Self { count, classes, candidates })
    }

    /// Scores of a row.
    pub fn scores(&self) -> usize {
        self.count * self.classes
    }
}

/// The best boxes, their scores and classes, and how many they are.
pub(super) fn best(kept_max: usize) -> [Shape; 4] {
    let kept = kept_max as i64;
    [Shape::from([kept, 4]), Shape::from([kept]), Shape::from([kept]), Shape::from([1])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_without_elements_are_not_without_end() {
        for dims in [[1 << 61, 0], [1 << 32, 0], [1 << 20, 1 << 20]] {
            let dims = Shape::from(dims);
            assert!(Padding::of(&dims, PadTo::Length(4), true).is_err(), "{dims}");
            assert!(Unpadding::of(&dims, 3).is_err(), "{dims}");
        }
        let padding = Padding::of(&Shape::from([1 << 30, 0]), PadTo::Length(4), true).unwrap();
        assert_eq!(padding.offsets(8, 1).last(), Some(8 << 30));
    }
}
