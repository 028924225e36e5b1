use std::{
    io,
    sync::{PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{
    HostDevice, HostSettings,
    device::{Clock, Core},
    engines::{ENGINES, Engine, Taken},
    operation::Operation,
};
use crate::inference::Timestamp;

impl HostDevice {
    /// Starts a device with a thread for each of its engines. They end when the device, its streams
    /// and its events have been dropped and what they were given has run.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(settings: HostSettings) -> io::Result<Self> {
        let core = Core::new(settings, Clock::Real);
        // Should a thread be refused, those that run end with this.
        let device = Self::new(core.clone());
        for engine in ENGINES {
            let core = core.clone();
            let name = format!("device{}-{}", core.settings.index, name(engine));
            thread::Builder::new().name(name).spawn(move || run(&core, engine))?;
        }
        Ok(device)
    }
}

fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::CopyIn => "in",
        Engine::CopyOut => "out",
        Engine::Compute => "compute",
        Engine::Host => "calls",
    }
}

fn run(core: &Core, engine: Engine) {
    // When the modelled engine is free again; a sleep that was too long is made good by the next.
    let mut free_at = Timestamp::default();
    while let Some(taken) = next(core, engine) {
        let Taken { stream, mut operation, ready_at, report } = taken;
        if let Operation::Call(call) = operation {
            call(report);
            core.change(|engines, now| engines.called(stream, now));
            continue;
        }
        let modelled = operation.cost(&core.settings).alone();
        let began = match modelled.is_zero() {
            true => Timestamp::now(),
            false => ready_at.max(free_at),
        };
        let outcome = core.perform(&mut operation);
        // What it kept alive is free before anybody hears of it.
        drop(operation);
        let mut ended = Timestamp::now();
        if !modelled.is_zero() && core.lost().is_none() {
            // Never beyond what really was: work that takes longer than its model takes its time.
            let due = began + modelled;
            if due > ended {
                sleep_until(due);
                ended = due;
            }
        }
        free_at = ended;
        core.change(|engines, _| engines.finished(stream, outcome, began, ended));
    }
}

/// Waits for something to run; none when nothing will come.
fn next(core: &Core, engine: Engine) -> Option<Taken> {
    let mut engines = core.engines();
    loop {
        if let Some(taken) = engines.take(engine) {
            return Some(taken);
        }
        if core.abandoned.load(Ordering::Relaxed) && engines.is_empty() {
            // The others wait for this too.
            core.work.iter().for_each(std::sync::Condvar::notify_all);
            return None;
        }
        let work = &core.work[engine as usize];
        engines = work.wait(engines).unwrap_or_else(PoisonError::into_inner);
    }
}

fn sleep_until(due: Timestamp) {
    let left = due - Timestamp::now();
    if left > Duration::ZERO {
        thread::sleep(left);
    }
}
