//! Model repositories: folders of models, their `config.pbtxt`, and what follows from it.
//!
//! A model is read in two steps, because what a configuration leaves out is in the model's own
//! file, which only its back end can read: [`Draft::read`] parses, derives the back end and checks
//! what can be checked; then the caller lets
//! [`Backend::inspect`](crate::backend::Backend::inspect) look at [`Draft::source_for_inspect`];
//! then [`Draft::complete`] makes the [`Definition`] that is served. [`check()`] does all of it for
//! `nereid check`, without serving.
//!
//! This room may use the vocabulary and the protocol's messages. It must not know how models run, who asks for them, or when they are loaded.

mod agents;
mod agreement;
mod autocomplete;
mod batching;
mod check;
mod content;
mod definition;
mod digest;
mod draft;
mod ensembles;
mod error;
mod fingerprint;
mod json;
mod labels;
mod layout;
mod normalise;
mod options;
mod overrides;
mod platform;
mod ragged;
mod registered;
mod scheduling;
mod source;
mod stores;
mod temporary;
#[cfg(test)]
mod tests;
mod text;
mod validate;
mod versions;

pub use agents::{Action, Agent, AgentChain, AgentError, AgentModel, AgentSession, Agents};
pub use check::{Finding, Inspect, Severity, check};
pub use content::content_digest;
pub use definition::Definition;
pub use draft::{Draft, Written};
pub use ensembles::{Composing, ensemble_faults, returns_to};
pub use error::{Error, Location};
pub use fingerprint::Fingerprint;
pub use json::{from_json, to_json};
pub use labels::Labels;
pub use layout::{Entry, ModelId, Repository, check_model_name};
pub use options::{Gpu, Gpus, Options};
pub use overrides::Overrides;
pub use ragged::{BatchInput, Ragged};
pub use scheduling::{
    DynamicBatching, Ensemble, EnsembleStep, InitialState, InitialStateData, QueuePolicy,
    RateLimit, Resource, Scheduling, SequenceBatching, SequenceControl, SequenceControlKind,
    SequenceState, SequenceStrategy, TimeoutAction,
};
pub use source::{ModelIo, ModelIoTensor, ModelSource, Placement, PlacementDevice};
pub use temporary::TemporaryFolder;
pub use text::parse_config;
