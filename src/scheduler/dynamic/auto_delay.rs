use std::{collections::BTreeMap, time::Duration};

use super::ways::{Way, Ways};
use crate::inference::Timestamp;

/// The most batches from one look at how many rows would come to the next.
const LOOK_EVERY_MAX: u32 = 128;
/// What the newest run counts for in the mean of its size.
const NEWEST: f64 = 0.125;
/// The share of its target that a request may take by what the batcher expects; the rest is for what it
/// does not.
const TARGET_SHARE: f64 = 0.9;

/// The part of its target that a batch may wait though one of its requests is late for it. Clients whose
/// answers have just left need no longer to come back, and without them batches stay small and all are late.
const GRACE: u32 = 20;

/// Sizes of batches that are thought of for a wait, beside that of all rows that came lately.
const SIZES_MAX: usize = 16;

/// Chooses how long a batch waits for more rows.
///
/// It knows how long batches of each size have run. Of `n` rows that are there each costs `run(n) / n`
/// of an instance's time; waiting for `m` pays as long as `(wait + run(m)) / m` is less. Half of that
/// wait is granted, so that one in vain is made good by one that is not. It ends sooner where a request
/// would miss the target by it. Whether there is one at all, and while another instance is free for who
/// comes next, is tried out: see [`Ways`].
///
/// How many rows to wait for, `aim`, cannot be told from how many come in a second: clients that wait
/// for their answers send all together, and the longer they are kept the fewer they send. So it is found
/// out by looking: now and then a batch waits for a quarter more, and what has come by then is the new
/// aim. Looks that find nothing become rare, those that find more or less than there was are followed by
/// others at once. A model may take much longer from a certain size on; so any size up to the aim that
/// is worth a wait is waited for.
#[cfg_attr(test, derive(Clone))]
pub struct AutoDelay {
    target: Duration,
    instances: usize,
    running: usize,
    run_times: RunTimes,
    ways: Ways,
    /// By way, for another finds others together.
    aims: [Aim; Way::COUNT],
    wait: Option<Wait>,
}

/// How many rows a batch waits for.
#[derive(Clone, Copy)]
struct Aim {
    rows: u32,
    /// Batches until the next look.
    look_in: u32,
    look_every: u32,
}

/// A batch that waits.
#[cfg_attr(test, derive(Clone))]
struct Wait {
    since: Timestamp,
    aim: u32,
    is_look: bool,
    /// The rows that are there, and until when they wait if no others come.
    rows: u32,
    until: Timestamp,
}

impl AutoDelay {
    /// With the aim that 99 of 100 requests take no longer than `target`.
    pub fn new(target: Duration) -> Self {
        Self {
            target,
            instances: 1,
            running: 0,
            run_times: RunTimes::default(),
            ways: Ways::new(target),
            aims: [Aim { rows: 1, look_in: 0, look_every: 1 }; Way::COUNT],
            wait: None,
        }
    }

    /// Of how many instances one must be free for a batch to begin.
    pub fn set_instances(&mut self, instances: usize) {
        self.instances = instances;
        self.ways.set_instances(instances);
    }

    /// Until when the `rows` that could run now should wait for more, at most `rows_max`; `None` when
    /// they should run. `arrivals` tells when their requests came.
    pub fn wait(
        &mut self,
        (rows, rows_max): (u32, u32),
        arrivals: impl Iterator<Item = Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        match self.ways.way() {
            Way::OnTheLast if self.running + 1 < self.instances => return None,
            Way::OnTheLast | Way::OnAny => {}
        }
        let mut wait = match self.wait.take() {
            Some(wait) => wait,
            None => self.begin(rows, rows_max, now),
        };
        if rows != wait.rows && (wait.rows == 0 || now < wait.until) {
            wait.rows = rows;
            wait.until = self.until(&wait, arrivals, now);
        }
        let (is_over, until) = (rows >= wait.aim || wait.until <= now, wait.until);
        self.wait = Some(wait);
        (!is_over).then_some(until)
    }

    /// No rows wait any more.
    pub fn gone(&mut self) {
        self.wait = None;
    }

    /// Notes that a batch is on its way to an instance, and whether it has as many rows as it waited
    /// for. `arrivals` tells when its requests came.
    pub fn begun(
        &mut self,
        rows: u32,
        arrivals: impl Iterator<Item = Timestamp>,
        now: Timestamp,
    ) -> bool {
        self.running += 1;
        let run_time = self.run_times.of(rows).unwrap_or_default();
        let aim = &mut self.aims[self.ways.way() as usize];
        self.ways.begun(arrivals.map(|since| (now - since).as_secs_f64() + run_time));
        aim.look_in = aim.look_in.saturating_sub(1);
        let Some(wait) = self.wait.take() else { return false };
        let has_come = rows >= wait.aim;
        if wait.is_look || !has_come {
            aim.rows = rows;
        }
        match (wait.is_look, has_come) {
            (false, true) => return true,
            (true, false) => aim.look_every = (2 * aim.look_every).min(LOOK_EVERY_MAX),
            (true, true) | (false, false) => aim.look_every = 1,
        }
        aim.look_in = if has_come { 0 } else { aim.look_every };
        has_come
    }

    /// Notes that a batch has come back, and how long it ran if it did.
    pub fn finished(&mut self, rows: u32, took: Option<Duration>) {
        self.running = self.running.saturating_sub(1);
        if let Some(took) = took {
            self.run_times.note(rows, took.as_secs_f64());
        }
    }

    fn begin(&mut self, rows: u32, rows_max: u32, now: Timestamp) -> Wait {
        let Aim { rows: usual, look_in, .. } = self.aims[self.ways.way() as usize];
        let is_look = look_in == 0 && self.run_times.of(rows).is_some();
        let more = usual.max(rows) + (usual.max(rows) / 4).max(1);
        let aim = if is_look { more } else { usual }.min(rows_max);
        if is_look && self.worth(rows, aim, Duration::ZERO).is_none() {
            // What was measured once must not keep it from looking for ever.
            self.run_times.forget(aim);
        }
        Wait { since: now, aim, is_look, rows: 0, until: now }
    }

    /// Until when to wait: for the size that is worth it longest.
    fn until(
        &self,
        wait: &Wait,
        arrivals: impl Iterator<Item = Timestamp>,
        now: Timestamp,
    ) -> Timestamp {
        let first = arrivals.min().unwrap_or(now);
        let until = |aim| {
            let worth = self.worth(wait.rows, aim, now - wait.since)?;
            Some((now + worth).min(self.latest(wait, aim, first)))
        };
        let known = self.run_times.sizes(wait.rows, wait.aim).take(SIZES_MAX);
        known.chain([wait.aim]).filter_map(until).max().unwrap_or(now)
    }

    /// Until when requests the first of which came at `first` may wait for `aim` rows to keep the target.
    fn latest(&self, wait: &Wait, aim: u32, first: Timestamp) -> Timestamp {
        let left = |rows| {
            let run_time = self.run_times.of(rows).unwrap_or_default();
            Duration::try_from_secs_f64(self.target.as_secs_f64() * TARGET_SHARE - run_time).ok()
        };
        let graced = wait.since + self.target / GRACE;
        match (left(aim), left(wait.rows)) {
            (Some(left), _) => graced.max(first + left),
            (None, Some(_)) => graced,
            // No wait is short enough: who is late is served soonest by what serves most.
            (None, None) => wait.since + self.target,
        }
    }

    /// How much longer it is worth waiting for `aim` rows when `rows` are there and `waited` has passed;
    /// `None` when it is not, or not known yet.
    fn worth(&self, rows: u32, aim: u32, waited: Duration) -> Option<Duration> {
        let waited = waited.as_secs_f64();
        let cost = (waited + self.run_times.of(rows)?) / f64::from(rows.max(1));
        let worth = cost * f64::from(aim) - self.run_times.of(aim)? - waited;
        Duration::try_from_secs_f64(worth / 2.0).ok().filter(|worth| !worth.is_zero())
    }
}

/// Running means of how long batches ran, in seconds, by their rows.
#[cfg_attr(test, derive(Clone))]
#[derive(Default)]
struct RunTimes(BTreeMap<u32, f64>);

impl RunTimes {
    fn note(&mut self, rows: u32, took: f64) {
        let mean = self.0.entry(rows).or_insert(took);
        *mean += NEWEST * (took - *mean);
    }

    /// The sizes above `fewer` and below `more` of which batches have run, the largest first.
    fn sizes(&self, fewer: u32, more: u32) -> impl Iterator<Item = u32> {
        let known = (fewer + 1 < more).then(|| self.0.range(fewer + 1..more));
        known.into_iter().flatten().rev().map(|(&rows, _)| rows)
    }

    fn forget(&mut self, rows: u32) {
        self.0.remove(&rows);
    }

    /// That of batches of so many rows, by the nearest sizes where there were none.
    fn of(&self, rows: u32) -> Option<f64> {
        let below = self.0.range(..=rows).next_back();
        let above = self.0.range(rows..).next();
        match (below, above) {
            (Some((&fewer, &short)), Some((&more, &long))) if more > fewer => {
                let share = f64::from(rows - fewer) / f64::from(more - fewer);
                Some(short + share * (long - short))
            }
            (Some((_, &took)), _) | (None, Some((_, &took))) => Some(took),
            (None, None) => None,
        }
    }
}
