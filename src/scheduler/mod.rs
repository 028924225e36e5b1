//! Which requests run next, and together: pure state machines.
//!
//! A scheduler is told what arrived and what time it is, and answers what to run. It knows no
//! sockets, no threads and no devices, so a test drives it by a virtual clock.

mod cache;
mod dynamic;
mod ensemble;
mod in_order;
mod rate_limiter;
mod sequence;

pub use cache::{
    CacheKey, CachedResponse, KeyHasher, MalformedEntry, ModelIdentity, ResponseCache,
};
pub use dynamic::{BatchingPolicy, Decision, DynamicQueue, Queued};
pub use ensemble::{
    Call, EnsemblePlan, EnsembleRun, LastStep, PlanStep, Progress, ResponseOutputs, StepInput,
    StepInputs, Takers, TensorIndex,
};
pub use in_order::InOrder;
pub use rate_limiter::{LimitError, Member, RateLimiter, ResourceLimit};
pub use sequence::{
    Carried, SequenceBatch, SequenceDecision, SequenceKey, SequencePolicy, SequenceQueue,
    SequenceRow, Sequenced,
};
