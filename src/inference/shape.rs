use std::{fmt, ops::Deref};

use smallvec::SmallVec;

/// The dimensions of a tensor. In a model's signature `-1` stands for any size; in a request every
/// dimension is zero or more.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(SmallVec<[i64; 4]>);

impl Clone for Shape {
    /// Every tensor of every request has several: copied as a whole, and not number by number.
    #[inline]
    fn clone(&self) -> Self {
        Self(SmallVec::from_slice(&self.0))
    }
}

impl Shape {
    /// A shape without dimensions: a scalar.
    pub const fn scalar() -> Self {
        Self(SmallVec::new_const())
    }

    /// The number of elements; `None` when a dimension is negative or the product passes `i64::MAX`.
    pub fn element_count(&self) -> Option<u64> {
        let mut count: i64 = 1;
        for &dim in &self.0 {
            if dim < 0 {
                return None;
            }
            count = count.checked_mul(dim)?;
        }
        u64::try_from(count).ok()
    }

    /// Whether every dimension is known.
    pub fn is_fixed(&self) -> bool {
        self.0.iter().all(|&dim| dim >= 0)
    }

    /// Whether `actual` is a shape that this one, in which `-1` allows any size, permits.
    pub fn admits(&self, actual: &[i64]) -> bool {
        self.0.len() == actual.len()
            && self.0.iter().zip(actual).all(|(&expected, &got)| expected == -1 || expected == got)
    }

    /// This shape behind a leading batch dimension.
    pub fn with_batch(&self, batch: i64) -> Self {
        let mut dims = SmallVec::with_capacity(self.0.len() + 1);
        dims.push(batch);
        dims.extend_from_slice(&self.0);
        Self(dims)
    }

    /// Appends a dimension.
    pub fn push(&mut self, dim: i64) {
        self.0.push(dim);
    }
}

impl Deref for Shape {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.0
    }
}

impl std::ops::DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [i64] {
        &mut self.0
    }
}

impl From<&[i64]> for Shape {
    fn from(dims: &[i64]) -> Self {
        Self(SmallVec::from_slice(dims))
    }
}

impl<const N: usize> From<[i64; N]> for Shape {
    fn from(dims: [i64; N]) -> Self {
        Self(SmallVec::from_slice(&dims))
    }
}

impl FromIterator<i64> for Shape {
    fn from_iter<I: IntoIterator<Item = i64>>(dims: I) -> Self {
        Self(dims.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_count_refuses_what_cannot_be_counted() {
        assert_eq!(Shape::from([2, 3, 4]).element_count(), Some(24));
        assert_eq!(Shape::scalar().element_count(), Some(1));
        assert_eq!(Shape::from([5, 0]).element_count(), Some(0));
        assert_eq!(Shape::from([-1, 4]).element_count(), None);
        assert_eq!(Shape::from([1 << 62, 4]).element_count(), None);
    }

    #[test]
    fn a_variable_dimension_admits_any_size_and_a_fixed_one_only_its_own() {
        let expected = Shape::from([-1, 16]);
        assert!(expected.admits(&[1, 16]));
        assert!(!expected.admits(&[1, 17]));
        assert!(!expected.admits(&[16]));
        assert_eq!(expected.to_string(), "[-1,16]");
    }
}
