//! What the server tells of itself: statistics, metrics, logs.
//!
//! Counters are kept per reactor, written by that reactor alone and read by anyone without a
//! message, so that watching costs the request path next to nothing.

mod host;
pub mod logging;
pub mod prometheus;
mod statistics;

pub use statistics::{BatchTimes, Duration, Failure, ModelStatistics, Totals};
