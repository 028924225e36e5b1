use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    HostDevice, HostSettings,
    device::{Clock, Core},
    engines::{ENGINES, Engine, Taken},
    operation::Operation,
};
use crate::inference::Timestamp;

/// Devices in virtual time: time passes only in [`step`](Simulation::step), from one event to the
/// next, and the same seed gives the same course. Operations have their effects, and take what the
/// models of links and launches say. Handles on it share one simulation.
#[derive(Clone)]
pub struct Simulation {
    clock: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
}

/// What a simulation is to be like.
#[derive(Clone, Debug, Default)]
pub struct SimulationSettings {
    /// Where the dice for durations begin.
    pub seed: u64,
    /// How much a launch may take more or less than its cost, as a part of it.
    pub jitter: f64,
    /// Bytes in a second that the host can read and write for all copies of all devices together;
    /// those under way share it evenly. No bound when not given.
    pub host_bytes_per_second: Option<f64>,
}

type Alarm = Box<dyn FnOnce() + Send>;

struct State {
    settings: SimulationSettings,
    random: fastrand::Rng,
    devices: Vec<Arc<Core>>,
    running: Vec<Running>,
    alarms: BTreeMap<(Timestamp, u64), Alarm>,
    alarms_set: u64,
}

/// An operation on its way through an engine.
struct Running {
    device: usize,
    engine: Engine,
    taken: Taken,
    began: Timestamp,
    /// What is left of it: first time, then bytes at a rate that depends on who else copies.
    nanos_left: f64,
    bytes_left: f64,
    /// Bytes in a nanosecond that its link carries.
    link: f64,
    rate: f64,
}

impl Running {
    /// Nanoseconds until it ends or goes over from waiting to copying.
    fn next_change(&self) -> f64 {
        match (self.nanos_left > 0.0, self.bytes_left > 0.0) {
            (true, _) => self.nanos_left,
            (false, true) => self.bytes_left / self.rate,
            (false, false) => 0.0,
        }
    }

    fn copies(&self) -> bool {
        self.nanos_left <= 0.0 && self.bytes_left > 0.0
    }

    fn elapse(&mut self, nanos: f64) {
        if self.nanos_left > 0.0 {
            self.nanos_left = (self.nanos_left - nanos).max(0.0);
        } else if self.bytes_left > 0.0 {
            self.bytes_left -= nanos * self.rate;
            // What a nanosecond's rounding leaves is nothing.
            if self.bytes_left < self.rate {
                self.bytes_left = 0.0;
            }
        }
        if self.nanos_left < 1.0 {
            self.nanos_left = 0.0;
        }
    }

    fn is_over(&self) -> bool {
        self.nanos_left <= 0.0 && self.bytes_left <= 0.0
    }
}

impl Simulation {
    /// A simulation without devices, at time zero.
    pub fn new(settings: SimulationSettings) -> Self {
        let state = State {
            random: fastrand::Rng::with_seed(settings.seed),
            settings,
            devices: Vec::new(),
            running: Vec::new(),
            alarms: BTreeMap::new(),
            alarms_set: 0,
        };
        Self { clock: Arc::default(), state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a device.
    pub fn device(&self, settings: HostSettings) -> HostDevice {
        let core = Core::new(settings, Clock::Virtual(self.clock.clone()));
        self.state().devices.push(core.clone());
        HostDevice::new(core)
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.clock.load(Ordering::Relaxed))
    }

    /// Has `alarm` called when it is `at`.
    pub fn call_at(&self, at: Timestamp, alarm: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        state.alarms_set += 1;
        let number = state.alarms_set;
        state.alarms.insert((at.max(self.now()), number), Box::new(alarm));
    }

    /// Goes on to the next event: a call of the host, an alarm, or the end of an operation. Whether
    /// there was one.
    pub fn step(&self) -> bool {
        loop {
            let mut state = self.state();
            if let Some((core, taken)) = state.next_call() {
                drop(state);
                let Taken { stream, operation, report, .. } = taken;
                if let Operation::Call(call) = operation {
                    call(report);
                }
                core.change(|engines, now| engines.called(stream, now));
                return true;
            }
            let now = self.now();
            state.start(now);
            state.share_the_host();
            let change = state.running.iter().map(Running::next_change).min_by(f64::total_cmp);
            // Whole nanoseconds, so that the clock and the operations agree.
            let change = change.map(|nanos| nanos.ceil());
            let alarm = state.alarms.keys().next().map(|(at, _)| *at);
            let alarm_first = match (change, alarm) {
                (None, None) => return false,
                (Some(change), Some(alarm)) => (alarm - now).as_nanos() as f64 <= change,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            let nanos = match (alarm_first, alarm, change) {
                (true, Some(alarm), _) => (alarm - now).as_nanos() as f64,
                (_, _, change) => change.unwrap_or_default(),
            };
            self.clock.fetch_add(nanos as u64, Ordering::Relaxed);
            state.running.iter_mut().for_each(|running| running.elapse(nanos));
            if alarm_first {
                let alarm = state.alarms.pop_first();
                drop(state);
                if let Some((_, alarm)) = alarm {
                    alarm();
                }
                return true;
            }
            if state.finish(self.now()) {
                return true;
            }
        }
    }

    /// Goes on until nothing is left to happen.
    pub fn run(&self) {
        while self.step() {}
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_call(&self) -> Option<(Arc<Core>, Taken)> {
        self.devices.iter().find_map(|core| {
            let taken = core.engines().take(Engine::Host)?;
            Some((core.clone(), taken))
        })
    }

    /// Gives every idle engine its next operation.
    fn start(&mut self, now: Timestamp) {
        for (device, core) in self.devices.iter().enumerate() {
            for engine in ENGINES.into_iter().filter(|engine| *engine != Engine::Host) {
                let busy = |it: &Running| it.device == device && it.engine == engine;
                if self.running.iter().any(busy) {
                    continue;
                }
                let Some(taken) = core.engines().take(engine) else { continue };
                let cost = match core.lost() {
                    None => taken.operation.cost(&core.settings),
                    Some(_) => Default::default(),
                };
                let swing = match engine {
                    Engine::Compute => self.settings.jitter * (2.0 * self.random.f64() - 1.0),
                    _ => 0.0,
                };
                let link = cost.bytes_per_second.unwrap_or(f64::INFINITY) / 1e9;
                self.running.push(Running {
                    device,
                    engine,
                    taken,
                    began: now,
                    nanos_left: cost.fixed.as_nanos() as f64 * (1.0 + swing),
                    bytes_left: cost.bytes as f64,
                    link,
                    rate: link,
                });
            }
        }
    }

    /// Divides the host's bandwidth among the copies: evenly, but what a link cannot carry goes to
    /// the others.
    fn share_the_host(&mut self) {
        let Some(host) = self.settings.host_bytes_per_second else { return };
        let mut copies: Vec<_> = self.running.iter_mut().filter(|it| it.copies()).collect();
        copies.sort_by(|a, b| a.link.total_cmp(&b.link));
        let mut left = host / 1e9;
        let mut count = copies.len() as f64;
        for copy in copies {
            copy.rate = copy.link.min(left / count);
            left -= copy.rate;
            count -= 1.0;
        }
    }

    /// Ends the operations that are over. Whether there were any.
    fn finish(&mut self, now: Timestamp) -> bool {
        let over: Vec<_> = self.running.extract_if(.., |running| running.is_over()).collect();
        let any = !over.is_empty();
        for Running { device, taken, began, .. } in over {
            let core = &self.devices[device];
            let Taken { stream, mut operation, .. } = taken;
            let outcome = core.perform(&mut operation);
            drop(operation);
            core.change(|engines, _| engines.finished(stream, outcome, began, now));
        }
        any
    }
}
