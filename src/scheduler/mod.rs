//! Which requests run next, and together: pure state machines.
//!
//! A scheduler is told what arrived and what time it is, and answers what to run. It knows no
//! sockets, no threads and no devices, so a test drives it by a virtual clock.

mod dynamic;

pub use dynamic::{BatchingPolicy, Decision, DynamicQueue, Queued};
