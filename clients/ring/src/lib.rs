//! A client of Nereid's ring: requests to a server on the same host, by memory shared with it.
//!
//! Connect with a [`Ring`], allocate [`Block`]s of its arena, fill them with tensors, and submit
//! [`Request`]s that say where what lies. Nothing is sent but a byte that wakes whoever sleeps.
//!
//! ```no_run
//! use nereid_ring_client::{DataType, Options, Request, Ring, Tensor};
//!
//! # fn main() -> Result<(), nereid_ring_client::Error> {
//! let mut ring = Ring::connect("/run/nereid.ring", &Options::default())?;
//! let mut input = ring.allocate(64)?;
//! input.fill(0);
//! let area = ring.allocate(4096)?;
//! let request = Request {
//!     model: "identity",
//!     area: area.span(),
//!     inputs: [Tensor {
//!         name: "INPUT0",
//!         datatype: DataType::Fp32,
//!         dims: [16].into_iter().collect(),
//!         data: input.span(),
//!     }]
//!     .into_iter()
//!     .collect(),
//!     ..Request::default()
//! };
//! let completion = ring.infer(&request, vec![input, area])?;
//! for output in &completion.answer()?.outputs {
//!     println!("{}: {:?}", output.name, completion.tensor(output.data));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `docs/src/ring.md` tells what lies where in the memory.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

mod arena;
mod completion;
mod connect;
mod error;
mod ring;

pub use nereid_ring::{
    Answer, DataType, Dims, Malformed, Parameter, Request, SequenceId, Span, Status, Tensor, Value,
    Wanted,
};

pub use self::{arena::Block, completion::Completion, connect::Options, error::Error, ring::Ring};
