//! JSON as this ingress needs it: a [`Cursor`] that reads a text once, without building a tree, and
//! functions that append JSON to a buffer.
//!
//! Tensors can be megabytes of numbers, so values go straight from text to element bytes; nesting is
//! bounded and nothing recurses. Error texts are the ones that Triton's clients know. `NaN`,
//! `Infinity` and `Inf` are numbers here, as they are to Triton in both directions.

mod cursor;
mod number;
mod plain;
mod write;

pub(super) use cursor::{Cursor, Kind, Problem, SyntaxError};
pub(super) use number::Number;
pub(super) use write::{write_f64, write_integer, write_string};

use plain::plain_length;

#[cfg(test)]
mod tests;
