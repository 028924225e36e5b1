//! What the server tells of itself: statistics, metrics, traces, logs.
//!
//! Counters are kept per reactor, written by that reactor alone and read by anyone without a
//! message, so that watching costs the request path next to nothing.

pub mod custom;
pub mod gpu;
pub(crate) mod host;
pub mod kept;
pub mod latency;
pub mod logging;
mod metrics;
pub mod prometheus;
mod responses;
mod statistics;
pub mod trace;

pub use kept::{Fallback, KeptTensors};
pub use metrics::{MetricsConfig, MetricsSettings};
pub use responses::ResponseKind;
pub use statistics::{BatchTimes, Closure, Duration, Failure, ModelStatistics, Totals};
