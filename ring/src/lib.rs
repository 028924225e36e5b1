//! The memory that a client on the same host shares with the server: where what lies in it, to the
//! byte.
//!
//! A client sends a [`Hello`] over a Unix socket and gets a [`Welcome`] with the descriptor of a
//! sealed memory file. The file's [`Header`] says where the rest lies: a ring of [`Submission`]s, a
//! ring of [`Completion`]s and the arena, in which requests ([`Request`]), answers ([`Answer`]) and
//! tensors lie. Indices go through [`Indices`], and who sleeps is woken by whoever takes the mark
//! off its [`Bell`].
//!
//! All numbers are little-endian. This package does no I/O but mapping the file ([`Memory`]); it
//! knows neither the server nor how requests run. Nothing that it reads is believed: every parser
//! takes any bytes and never panics.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

mod datatype;
mod handshake;
mod indices;
mod layout;
mod memory;
mod records;
mod wire;

pub use datatype::DataType;
pub use handshake::{HELLO_BYTES, Hello, REFUSAL_MAX, WELCOME_BYTES, Welcome};
pub use indices::{Bell, CLIENT_WAITS, Corrupt, Indices, WAITS_FOR_ROOM, WAITS_FOR_WORK};
pub use layout::{
    COMPLETION_BYTES, Completion, ENTRIES_MAX, Header, Operation, SUBMISSION_BYTES, Span, Status,
    Submission, Words,
};
pub use memory::{Memory, MemoryError};
pub use records::{
    Answer, DESCRIPTOR_MAX, Dims, Parameter, Request, SequenceId, TENSORS_MAX, Tensor, Value,
    Wanted,
};
pub use wire::Malformed;

/// The first bytes of a [`Hello`], a [`Welcome`] and a [`Header`].
pub const MAGIC: [u8; 8] = *b"NRDRING\n";

/// The version of all that is told here; a change that an older client cannot read raises it.
pub const VERSION: u32 = 1;
