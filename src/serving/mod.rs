//! The server without its wires: which models are loaded, and how a request gets through one.
//!
//! [`Server::infer`] is the way in. A loaded version ([`LoadedVersion`]) knows its home, the reactor
//! that owns its queue; a model that is small enough to run inline has a queue on every reactor
//! instead. A queue with its instances is a shard: it asks the scheduler's state machine what to run
//! and runs it, inline or on instance threads. This room ties schedulers to back ends; it knows no
//! wire format.
//!
//! A model may ask others of the server: in `ask.rs` its requests come in as a client's do. A model
//! that answers its requests itself, each with any number of responses, does so through `respond.rs`.
//!
//! Clients may register memory of devices (`device_regions.rs`); a model on the same device reads its
//! inputs there and puts its outputs there.
//!
//! Models that run on devices share lanes there (`lanes.rs`), which one reactor drives.
//!
//! Models whose requests belong to sequences have a shard of another kind (`sequences`).
//!
//! [`ModelControl`] decides what is loaded: at the start, on request, or as repositories change. It
//! works on threads of its own and hands finished versions to the [`Server`], which swaps them in.

mod answer_order;
mod ask;
mod batch;
mod bell;
mod cache;
mod classification;
mod control;
mod device_regions;
mod ensemble;
mod execution;
mod inline;
mod instance_cores;
mod instance_thread;
mod job;
mod lanes;
mod limiter;
mod load;
mod padding;
mod porter;
mod ragged;
mod registry;
mod respond;
mod rows;
mod sequences;
mod server;
mod shard;
mod version;
mod warm_up;

#[cfg(test)]
mod tests;

pub use cache::{CacheSettings, Caches, RedisSettings};
pub use control::{
    ControlMode, ControlSettings, IndexEntry, ModelControl, ModelStatus, Polling, Startup,
    VersionState,
};
pub use device_regions::{DeviceRegion, DeviceRegions, DeviceTensors, DeviceView};
pub use instance_cores::InstanceCores;
pub use job::Reply;
pub use lanes::{Fleet, FleetSettings};
pub use limiter::Limiter;
pub use load::{Backends, Loader, Places};
pub use server::{Observers, Server, ServerState};
pub use version::{LoadedVersion, Outline, Site, VersionError, VersionSpec};
pub use warm_up::{WarmUp, WarmUpError};
