//! The response cache, as far as it is no I/O: what makes two requests the same ([`CacheKey`]), what is
//! kept of an answer ([`CachedResponse`]), and which answers are kept ([`ResponseCache`]).
//!
//! One [`ResponseCache`] belongs to one core and is plain data there; who owns a key is a matter of
//! [`CacheKey::owner`]. It knows no threads, no network and no models beyond their identity.

mod key;
mod lru;
mod response;

pub use key::{CacheKey, KeyHasher, ModelIdentity};
pub use lru::ResponseCache;
pub use response::{CachedResponse, MalformedEntry};
