//! A twin of a GPU on the host: real memory, real results, streams in order, an engine for copies in,
//! one for copies out, one that computes, one that calls the host.
//!
//! [`HostDevice::start`] runs the engines as threads, which may be slowed to the speed of a link;
//! [`Simulation`] runs those of several devices as discrete events in virtual time, the same again for
//! the same seed. Either can be told to [fail](Faults). What the engines do when is one state machine
//! (`engines.rs`); it must not know who drives it.
//!
//! Memory that nobody has written holds [`POISON`], which reads as NaN. Operations that touch the same
//! bytes at once, because no event orders them, fail instead of racing.

mod allocation;
mod device;
mod engines;
mod faults;
mod operation;
mod simulation;
mod stream;
mod threads;

use std::time::Duration;

pub use self::{
    allocation::POISON,
    device::HostDevice,
    faults::{Fault, FaultKind, Faults},
    simulation::{Simulation, SimulationSettings},
};

/// What a host device is to be.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// Its number.
    pub index: usize,
    /// The memory that can be allocated.
    pub memory_bytes: usize,
    /// How fast copies to it are; as fast as the host copies when not given, and no time at all in
    /// virtual time.
    pub copy_in: Option<Link>,
    /// How fast copies from it are.
    pub copy_out: Option<Link>,
    /// What each launch takes beside its own cost.
    pub launch_latency: Duration,
    /// What is to go wrong.
    pub faults: Faults,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            index: 0,
            memory_bytes: 1 << 30,
            copy_in: None,
            copy_out: None,
            launch_latency: Duration::ZERO,
            faults: Faults::default(),
        }
    }
}

/// The speed of a copy engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// What each copy takes whatever its size.
    pub latency: Duration,
    /// Bytes in a second.
    pub bytes_per_second: f64,
}

impl Link {
    /// How long a copy takes that has the link to itself.
    pub fn duration(&self, bytes: usize) -> Duration {
        self.latency + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests;
