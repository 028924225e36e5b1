//! Work on what came or goes: on the reactor if it is quick, else away from it.

use crate::{inference::Error, runtime::offload};

/// Messages and bodies up to this many bytes are dealt with on the reactor: a few hundred microseconds
/// at most.
pub const HERE_MAX: usize = 16 << 10;

/// Does what `length` bytes ask for.
///
/// # Errors
/// Those of the work; or when it panicked, or no thread can be had for it.
pub async fn here_or_away<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if length > HERE_MAX { away(work).await } else { work() }
}

/// Does long work away from the reactor.
///
/// # Errors
/// Those of the work; or when it panicked, or no thread can be had for it.
pub async fn away<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    offload(work).await.unwrap_or_else(|| {
        Err(Error::Internal { detail: "the work on a message was given up".to_owned() })
    })
}
