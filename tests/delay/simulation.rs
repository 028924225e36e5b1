//! The dynamic batcher on a virtual clock: clients, a queue, instances that take as long as they are told.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use nereid::{
    inference::Timestamp,
    repository::DynamicBatching,
    scheduler::{BatchingPolicy, Decision, DynamicQueue, Queued},
};

/// What a server has: instances, and a model.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    pub name: &'static str,
    pub instances: usize,
    pub rows_max: u32,
    pub run: RunTime,
}

/// How long a batch runs, in microseconds: so long whatever it holds, so long for each row, and so long for
/// each `step` of rows that is begun.
#[derive(Clone, Copy, Debug)]
pub struct RunTime {
    pub base: u64,
    pub row: u64,
    pub step: u32,
    pub by_step: u64,
}

impl RunTime {
    const fn new(base: u64, row: u64) -> Self {
        Self { base, row, step: 1, by_step: 0 }
    }

    fn of(&self, rows: u32) -> Duration {
        let steps = u64::from(rows.div_ceil(self.step));
        us(self.base + self.row * u64::from(rows) + self.by_step * steps)
    }
}

impl Site {
    /// The most rows that it can do in a second.
    pub fn capacity(&self) -> f64 {
        let rate = |rows: u32| f64::from(rows) / self.run.of(rows).as_secs_f64();
        self.instances as f64 * (1..=self.rows_max).map(rate).fold(0.0, f64::max)
    }
}

/// Who sends requests of one row.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Clients that send the next request when the one before is answered.
    Clients(usize),
    /// So many requests in a second, whatever is answered, at random times.
    Rate(f64),
}

/// How long the batcher waits.
#[derive(Clone, Copy, Debug)]
pub enum Delay {
    Fixed(Duration),
    Auto { target: Duration },
}

/// What came of a load.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub per_second: f64,
    pub p99: Duration,
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// What 99 of 100 requests may take.
pub const TARGETS: [Duration; 2] = [us(10_000), us(3_000)];
/// The delays to hold it against, in microseconds.
pub const FIXED_US: [u64; 4] = [0, 100, 500, 1000];
/// Models of different kinds.
pub const SITES: [Site; 7] = [
    Site { name: "the same for any batch", instances: 1, rows_max: 32, run: RunTime::new(1000, 0) },
    Site { name: "a little more by row", instances: 1, rows_max: 32, run: RunTime::new(300, 50) },
    Site { name: "as much more as rows", instances: 1, rows_max: 16, run: RunTime::new(20, 200) },
    Site { name: "fast", instances: 1, rows_max: 64, run: RunTime::new(80, 4) },
    Site {
        name: "the same up to eight",
        instances: 1,
        rows_max: 32,
        run: RunTime { step: 8, by_step: 800, ..RunTime::new(0, 0) },
    },
    Site {
        name: "long, the same up to sixteen",
        instances: 1,
        rows_max: 64,
        run: RunTime { step: 16, by_step: 2000, ..RunTime::new(0, 0) },
    },
    Site { name: "four instances", instances: 4, rows_max: 32, run: RunTime::new(600, 30) },
];
/// The loads, one after the other.
pub const STEPS: [Load; 12] = [
    Load::Clients(1),
    Load::Clients(2),
    Load::Clients(3),
    Load::Clients(8),
    Load::Clients(24),
    Load::Clients(64),
    Load::Clients(5),
    Load::Rate(100.0),
    Load::Rate(1000.0),
    Load::Rate(4000.0),
    Load::Clients(16),
    Load::Clients(32),
];

struct Request {
    arrived: Timestamp,
    step: usize,
}

impl Queued for Request {
    fn rows(&self) -> u32 {
        1
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A load begins.
    Step(usize),
    /// A request of a load comes.
    Arrival(usize),
    /// A batch is back, by its place among those that run.
    Finished(usize),
    /// The batcher wanted to be asked again.
    Again,
}

struct Running {
    began: Timestamp,
    requests: Vec<Request>,
}

/// How a client's answer gets to it and its next request back.
const ROUND_TRIP: Duration = Duration::from_micros(20);
/// How much longer it may take.
const JITTER: Duration = Duration::from_micros(20);
/// The share of a step that is not counted, in which the batcher gets used to it.
const SETTLING: f64 = 0.25;

/// Plays the loads one after the other, each for so long.
pub fn simulate(site: &Site, delay: Delay, loads: &[Load], each: Duration) -> Vec<Outcome> {
    Simulation::new(site, delay, loads, each).run()
}

/// Plays the loads with each of the fixed delays.
pub fn played_fixed(site: &Site, loads: &[Load], each: Duration) -> [Vec<Outcome>; FIXED_US.len()] {
    FIXED_US.map(|us| simulate(site, Delay::Fixed(Duration::from_micros(us)), loads, each))
}

/// What was done of what the best fixed delay has done that was no later, or kept the target.
pub fn share_of_best(auto: &Outcome, fixed: &[Outcome], target: Duration) -> f64 {
    let allowed = auto.p99.max(target);
    let rivals = fixed.iter().filter(|it| it.p99 <= allowed);
    let best = rivals.map(|it| it.per_second).fold(0.0, f64::max);
    if best == 0.0 { 1.0 } else { auto.per_second / best }
}

struct Simulation<'a> {
    site: &'a Site,
    loads: &'a [Load],
    each: Duration,
    queue: DynamicQueue<Request>,
    running: Vec<Option<Running>>,
    idle: usize,
    events: BinaryHeap<Reverse<(Timestamp, u64, Event)>>,
    sequence: u64,
    step: usize,
    latencies: Vec<Vec<Duration>>,
    /// Of the times at which requests come whatever is answered, which so are the same for every delay.
    arrivals: Random,
    jitter: Random,
}

/// Numbers from 0 to 1, by xorshift.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ seed)
    }

    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl<'a> Simulation<'a> {
    fn new(site: &'a Site, delay: Delay, loads: &'a [Load], each: Duration) -> Self {
        let mut dynamic = DynamicBatching::default();
        match delay {
            Delay::Fixed(delay) => dynamic.max_queue_delay = delay,
            Delay::Auto { target } => dynamic.delay_target_p99 = Some(target),
        }
        let policy = BatchingPolicy { max_batch_size: site.rows_max, dynamic: Some(dynamic) };
        Self {
            site,
            loads,
            each,
            queue: DynamicQueue::new(policy).for_instances(site.instances),
            running: Vec::new(),
            idle: site.instances,
            events: BinaryHeap::new(),
            sequence: 0,
            step: 0,
            latencies: vec![Vec::new(); loads.len()],
            arrivals: Random::new(0),
            jitter: Random::new(1),
        }
    }

    fn run(mut self) -> Vec<Outcome> {
        for step in 0..self.loads.len() {
            self.at(Timestamp::default() + self.each * step as u32, Event::Step(step));
        }
        let end = Timestamp::default() + self.each * self.loads.len() as u32;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now >= end {
                break;
            }
            self.happens(event, now);
            self.pump(now);
        }
        self.outcomes()
    }

    fn happens(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Again => {}
            Event::Step(step) => {
                self.step = step;
                self.arrivals = Random::new(step as u64);
                match self.loads[step] {
                    Load::Clients(count) => (0..count).for_each(|_| self.comes_back(step, now)),
                    Load::Rate(rate) => self.comes_later(step, rate, now),
                }
            }
            Event::Arrival(step) if step != self.step => {}
            Event::Arrival(step) => {
                assert!(self.queue.push(Request { arrived: now, step }, now).is_ok());
                if let Load::Rate(rate) = self.loads[step] {
                    self.comes_later(step, rate, now);
                }
            }
            Event::Finished(place) => {
                let Running { began, requests } = self.running[place].take().expect("it runs");
                self.idle += 1;
                self.queue.finished(requests.len() as u32, Some(now - began));
                let counted_from =
                    Timestamp::default() + self.each.mul_f64(self.step as f64 + SETTLING);
                let counts = now >= counted_from;
                for Request { arrived, step } in requests {
                    if counts {
                        self.latencies[self.step].push(now - arrived);
                    }
                    if let Load::Clients(_) = self.loads[step] {
                        self.comes_back(step, now);
                    }
                }
            }
        }
    }

    fn pump(&mut self, now: Timestamp) {
        while self.idle > 0 {
            match self.queue.next(now) {
                Decision::Idle => return,
                Decision::WaitUntil(due) => return self.at(due, Event::Again),
                Decision::Run(requests) => {
                    self.idle -= 1;
                    let took = self.site.run.of(requests.len() as u32);
                    let place = self.running.len();
                    self.running.push(Some(Running { began: now, requests }));
                    self.at(now + took, Event::Finished(place));
                }
            }
        }
    }

    fn comes_back(&mut self, step: usize, now: Timestamp) {
        let jitter = JITTER.mul_f64(self.jitter.next());
        self.at(now + ROUND_TRIP + jitter, Event::Arrival(step));
    }

    fn comes_later(&mut self, step: usize, rate: f64, now: Timestamp) {
        let gap = Duration::from_secs_f64(-(1.0 - self.arrivals.next()).ln() / rate);
        self.at(now + gap, Event::Arrival(step));
    }

    fn at(&mut self, when: Timestamp, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    fn outcomes(mut self) -> Vec<Outcome> {
        let seconds = self.each.as_secs_f64() * (1.0 - SETTLING);
        let outcome = |latencies: &mut Vec<Duration>| {
            latencies.sort_unstable();
            let at = latencies.len() * 99 / 100;
            Outcome {
                per_second: latencies.len() as f64 / seconds,
                p99: latencies.get(at).copied().unwrap_or_default(),
            }
        };
        self.latencies.iter_mut().map(outcome).collect()
    }
}
