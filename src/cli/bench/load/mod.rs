//! The load: slots that send, in a closed loop or by a schedule, on every client thread.

mod closed;
mod open;
mod schedule;

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::TcpStream,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

pub use schedule::{Distribution, Schedule};

use super::{
    BenchError,
    args::BenchArgs,
    client::{self, Failure, Payload},
    recorder::{Recorder, Recording},
};
use crate::runtime::{self, PerReactor, ReactorHandle};

/// How long the end of a load waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(5);
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// How much is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// Requests in flight.
    Concurrency(usize),
    /// Requests per second.
    Rate(f64, Distribution),
}

impl Level {
    /// Requests that may be in flight.
    fn in_flight(self, args: &BenchArgs) -> usize {
        match self {
            Self::Concurrency(count) => count,
            Self::Rate(..) => args.max_in_flight,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(count) => write!(f, "concurrency {count}"),
            Self::Rate(rate, Distribution::Constant) => write!(f, "{rate} requests/s"),
            Self::Rate(rate, Distribution::Poisson) => write!(f, "{rate} requests/s (poisson)"),
        }
    }
}

/// A client thread's part of a load.
pub(super) struct Shard {
    recorder: RefCell<Recorder>,
    stopping: Cell<bool>,
    /// Slots whose connection stands.
    alive: Cell<usize>,
    /// Requests under way.
    in_flight: Cell<usize>,
}

impl Shard {
    fn new(slots: usize) -> Self {
        Self {
            recorder: RefCell::new(Recorder::new(Instant::now())),
            stopping: Cell::new(false),
            alive: Cell::new(slots),
            in_flight: Cell::new(0),
        }
    }

    fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Ends a request that was due at `due` and tells whether its slot is of further use.
    fn end(&self, due: Instant, outcome: Result<(), Failure>) -> bool {
        self.in_flight.set(self.in_flight.get() - 1);
        let mut recorder = self.recorder.borrow_mut();
        match outcome {
            Ok(()) => recorder.window().answered(due.elapsed()),
            Err(failure) => {
                recorder.window().failed(failure.message());
                if let Failure::Broken(_) = failure {
                    self.alive.set(self.alive.get() - 1);
                    return false;
                }
            }
        }
        true
    }
}

/// What a load did since the last look at it.
pub struct Window {
    /// What was recorded.
    pub recording: Recording,
    /// Slots whose connection stands.
    pub alive: usize,
}

/// A load under way.
pub struct RunningLoad {
    reactors: Vec<ReactorHandle>,
    shards: Arc<PerReactor<Rc<Shard>>>,
}

impl RunningLoad {
    /// Connects and begins to send.
    ///
    /// # Errors
    /// When a connection cannot be had.
    pub fn start(
        reactors: &[ReactorHandle],
        args: &BenchArgs,
        payload: &Payload,
        level: Level,
    ) -> Result<Self, BenchError> {
        let authority = args.authority();
        let in_flight = level.in_flight(args);
        let mut sockets = Vec::new();
        for _ in 0..args.connections_for(in_flight) {
            let socket = client::connect(&authority)
                .map_err(|source| BenchError::Connect { authority: authority.clone(), source })?;
            sockets.push(socket);
        }
        // A thread without a connection could not send.
        let used = reactors.get(..reactors.len().min(sockets.len())).unwrap_or(reactors);
        let load = Self { reactors: used.to_vec(), shards: Arc::new(PerReactor::new(reactors)) };
        let (report, reported) = mpsc::channel();
        for (share, reactor) in used.iter().enumerate() {
            let part = Part {
                payload: payload.clone(),
                sockets: deal(&mut sockets, used.len() - share),
                slots: (in_flight + used.len() - 1 - share) / used.len(),
                pace: Pace::new(level, args.random_seed, share, used.len()),
                shards: load.shards.clone(),
            };
            let report = report.clone();
            let beginning = move || {
                runtime::spawn(&"the start of a load", async move {
                    let _ = report.send(part.begin().await);
                });
            };
            reactor.send(Box::new(beginning)).map_err(ended)?;
        }
        drop(report);
        for outcome in reported {
            outcome.map_err(|failure: Failure| BenchError::NoAnswers {
                load: level.to_string(),
                detail: failure.message().to_owned(),
            })?;
        }
        Ok(load)
    }

    /// Ends the window under way and begins the next.
    ///
    /// # Errors
    /// When a client thread has ended.
    pub fn cut(&self) -> Result<Window, BenchError> {
        let windows = self.on_every_shard(|shard| Window {
            recording: shard.recorder.borrow_mut().cut(Instant::now()),
            alive: shard.alive.get(),
        })?;
        let mut sum = Window { recording: Recording::new(), alive: 0 };
        for window in windows {
            sum.recording.add_beside(&window.recording);
            sum.alive += window.alive;
        }
        Ok(sum)
    }

    /// Sends nothing any more and waits a while for the answers under way.
    ///
    /// # Errors
    /// When a client thread has ended.
    pub fn stop(self) -> Result<(), BenchError> {
        let patience = Instant::now() + DRAIN;
        loop {
            let under_way = self.on_every_shard(|shard| {
                shard.stopping.set(true);
                shard.in_flight.get()
            })?;
            match under_way.into_iter().sum() {
                0usize => return Ok(()),
                left if Instant::now() > patience => {
                    log::warn!("{left} requests have no answer after {DRAIN:?}");
                    return Ok(());
                }
                _ => thread::sleep(DRAIN_POLL),
            }
        }
    }

    fn on_every_shard<T: Send + 'static>(
        &self,
        look: impl Fn(&Shard) -> T + Send + Copy + 'static,
    ) -> Result<Vec<T>, BenchError> {
        let (report, reported) = mpsc::channel();
        for reactor in &self.reactors {
            let (shards, report) = (self.shards.clone(), report.clone());
            let looking = move || {
                if let Some(shard) = shards.get() {
                    let _ = report.send(look(shard));
                }
            };
            reactor.send(Box::new(looking)).map_err(ended)?;
        }
        drop(report);
        Ok(reported.into_iter().collect())
    }
}

/// What a client thread needs to begin.
struct Part {
    payload: Payload,
    sockets: Vec<TcpStream>,
    slots: usize,
    pace: Pace,
    shards: Arc<PerReactor<Rc<Shard>>>,
}

enum Pace {
    Closed,
    Open(Schedule),
}

impl Pace {
    fn new(level: Level, seed: u64, share: usize, shares: usize) -> Self {
        match level {
            Level::Concurrency(_) => Self::Closed,
            Level::Rate(rate, distribution) => {
                Self::Open(Schedule::share(rate, distribution, seed, share, shares))
            }
        }
    }
}

impl Part {
    async fn begin(self) -> Result<(), Failure> {
        let slots = client::open(&self.payload, self.sockets, self.slots).await?;
        let shard = Rc::new(Shard::new(slots.len()));
        self.shards.set(shard.clone());
        match self.pace {
            Pace::Closed => closed::start(slots, &shard),
            Pace::Open(schedule) => open::start(slots, shard, schedule),
        }
        Ok(())
    }
}

/// Takes one of `shares` even shares.
fn deal<T>(all: &mut Vec<T>, shares: usize) -> Vec<T> {
    all.split_off(all.len() - all.len().div_ceil(shares))
}

fn ended(closed: runtime::Closed<runtime::Message>) -> BenchError {
    BenchError::Client(format!("{closed:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_leave_nothing() {
        for (count, shares) in [(1, 1), (4, 4), (5, 4), (64, 3), (7, 2)] {
            let mut all: Vec<_> = (0..count).collect();
            let dealt: Vec<_> = (0..shares).map(|n| deal(&mut all, shares - n).len()).collect();
            assert_eq!(dealt.iter().sum::<usize>(), count, "{dealt:?}");
            assert!(dealt[0] - dealt[shares - 1] <= 1, "{dealt:?}");
        }
    }
}
