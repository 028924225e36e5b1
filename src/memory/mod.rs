//! Where tensors lie: arenas on memfd, buffers in them, and the budget that bounds all of it.
//!
//! A [`Buffer`] is written by one owner, then frozen into `Bytes`, which are shared by reference
//! count; the last reference gives the memory back to its pool. A [`Gather`] lets several threads write
//! one buffer without a lock. [`Regions`] are shared memory that clients registered, [`RingMemory`] is
//! shared memory that a client was given; [`OutputPlaces`] lends either to who computes an output. This
//! room knows nothing of requests.

mod fault;
mod gather;
mod heap;
mod joined;
mod limit;
mod objects;
mod places;
mod pool;
mod regions;
mod ring;
mod view;

pub use gather::{Destination, Filler, Gather, WrongLength};
pub use heap::{give_back_free_pages, keep_freed_memory};
pub use limit::memory_limit_bytes;
pub use objects::{OwnObject, SharedObject};
pub use places::{OutputMemory, OutputNames, OutputPlaces, SharedView};
pub use pool::{Buffer, BufferPool, Exhausted, Reservation};
pub use regions::{Region, RegionView, Regions};
pub use ring::{RingMemory, RingMemoryError, RingView};
pub use view::ClientView;
