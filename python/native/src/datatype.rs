//! Element types, by Triton's numbers.

use std::ffi::c_int;

/// Elements of any length, which NumPy holds as objects.
pub const BYTES: u8 = 13;
/// For which NumPy has no type of its own.
pub const BF16: u8 = 14;

/// NumPy's numbers, and the sizes of elements.
const OF_TRITON: [(c_int, usize); 15] = [
    (-1, 0),
    (0, 1),
    (2, 1),
    (4, 2),
    (6, 4),
    (8, 8),
    (1, 1),
    (3, 2),
    (5, 4),
    (7, 8),
    (23, 2),
    (11, 4),
    (12, 8),
    (17, 0),
    (4, 2),
];
/// NumPy's numbers of byte strings, and of the second name of integers of 64 bits.
const BYTE_STRING: c_int = 18;
const LONG_LONG: c_int = 9;
const UNSIGNED_LONG_LONG: c_int = 10;

/// Whether there is such a type.
pub fn is_known(datatype: u8) -> bool {
    (1..=BF16).contains(&datatype)
}

/// NumPy's number of a known type.
pub fn numpy_number(datatype: u8) -> c_int {
    OF_TRITON.get(usize::from(datatype)).map_or(-1, |&(number, _)| number)
}

/// The bytes of one element; 0 for strings.
pub fn size(datatype: u8) -> usize {
    OF_TRITON.get(usize::from(datatype)).map_or(0, |&(_, size)| size)
}

/// Triton's number of a type of NumPy's; `None` when there is none.
pub fn of_numpy_number(number: c_int) -> Option<u8> {
    match number {
        BYTE_STRING => Some(BYTES),
        LONG_LONG => Some(9),
        UNSIGNED_LONG_LONG => Some(5),
        _ => (1..BF16).find(|&datatype| numpy_number(datatype) == number),
    }
}
