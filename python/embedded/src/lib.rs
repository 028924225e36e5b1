//! The native half of a Python model's process, for the server to hand to each.

/// The shared library that `python/native` makes: Python's module `nereid_stub.native`.
pub const NATIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nereid_python.so"));
