//! The command line: what a user types and what is printed in answer.
//!
//! It may use every room below it through their public items, and it owns the words, tables and
//! progress bars of the terminal. It must not know how anything works inside.

pub mod bench;
