use std::{io, path::PathBuf};

use nereid_ring::{Corrupt, Malformed, MemoryError, Status};

/// What goes wrong on the client's side, or what a server says of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot connect to the ring at '{}': {source}", .path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the server refuses: {reason}")]
    Refused { reason: String },
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Corrupt(#[from] Corrupt),
    #[error("the server has completed a request that it was not asked for: {token:#x}")]
    UnknownToken { token: u64 },
    #[error("{what} lies in none of the request's blocks")]
    NotInBlocks { what: String },
    #[error("{what} is none that there is: {got}")]
    NotAValue { what: String, got: String },
    #[error("the server has closed the ring")]
    Closed,
    #[error("{in_flight} requests are in flight: expected a place for one more among {places}")]
    Full { in_flight: usize, places: u32 },
    #[error("no {asked} bytes in a row are free in the arena of {arena}")]
    NoRoom { asked: usize, arena: u64 },
    #[error("{}: {message}", .status.words())]
    Failed { status: Status, message: String },
    #[error("cannot wait for the server: {0}")]
    Wait(io::Error),
}
