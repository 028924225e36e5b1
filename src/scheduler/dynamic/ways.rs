use std::time::Duration;

/// Batches from which it is told how well a way does.
const WINDOW: u32 = 32;
/// Batches at the beginning of a trial that still tell of the way before.
const SETTLING: u32 = 8;
/// The most windows between two trials.
const TRY_EVERY_MAX: u32 = 128;
/// What a way must cost of another's to be taken in its place.
const BETTER: f64 = 0.97;
/// What a way may cost of another's until its trial ends early.
const HOPELESS: f64 = 1.3;
/// What tells that the load is another one: windows after each other that differ by such a factor.
const CHANGED: f64 = 1.4;
/// The share of requests that may miss the target.
const LATE_SHARE: f64 = 0.01;
/// The share from which on it does not matter any more how many more do.
const LATE_SHARE_MAX: f64 = 0.06;
/// How much dearer a way is for each request of all that is late.
const LATE_COST: f64 = 10.0;

/// How freely batches wait for more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// When all other instances are busy.
    OnTheLast,
    /// Though other instances are free.
    OnAny,
}

impl Way {
    /// How many there are.
    pub const COUNT: usize = 2;
    const ALL: [Self; Self::COUNT] = [Self::OnTheLast, Self::OnAny];
}

/// Finds out by trial which way is best.
///
/// What a wait brings depends on what its clients do then, and on what the other instances do, so it is
/// measured: the mean time that requests take, which for clients that wait for their answers is as good as
/// how many they get, made dearer where requests miss the target. Now and then another way is tried for a
/// few batches, and kept when it was better. Trials that find nothing become rare.
#[cfg_attr(test, derive(Clone))]
pub struct Ways {
    target: f64,
    count: usize,
    chosen: usize,
    /// What the chosen one cost lately.
    cost: Option<f64>,
    /// Requests in a batch of its window.
    together: f64,
    trial: Option<usize>,
    /// Whose trial is next.
    next: usize,
    windows_left: u32,
    try_every: u32,
    window: Window,
}

#[cfg_attr(test, derive(Clone))]
#[derive(Default)]
struct Window {
    batches: u32,
    /// Batches that do not count.
    skip: u32,
    requests: f64,
    late: f64,
    seconds: f64,
}

impl Ways {
    /// With the aim that 99 of 100 requests take no longer than `target`.
    pub fn new(target: Duration) -> Self {
        Self {
            target: target.as_secs_f64(),
            count: 1,
            chosen: 0,
            cost: None,
            together: 0.0,
            trial: None,
            next: 1,
            windows_left: 1,
            try_every: 1,
            window: Window::default(),
        }
    }

    /// Of how many instances one must be free for a batch to begin.
    pub fn set_instances(&mut self, instances: usize) {
        self.count = if instances > 1 { Way::COUNT } else { 1 };
    }

    /// How the next batch is to wait.
    pub fn way(&self) -> Way {
        Way::ALL[self.trial.unwrap_or(self.chosen)]
    }

    /// Notes a batch that begins, by how many seconds each of its requests takes.
    pub fn begun(&mut self, seconds: impl Iterator<Item = f64>) {
        if self.count == 1 {
            return;
        }
        if self.window.skip > 0 {
            self.window.skip -= 1;
            return;
        }
        let window = &mut self.window;
        window.batches += 1;
        for seconds in seconds {
            window.requests += 1.0;
            window.seconds += seconds;
            window.late += f64::from(u8::from(seconds > self.target));
        }
        let cost = window.cost();
        let is_full = window.batches >= WINDOW;
        match (self.trial, self.cost) {
            (Some(tried), Some(usual)) => {
                let is_hopeless = window.batches >= SETTLING && cost > HOPELESS * usual;
                if is_full || is_hopeless {
                    self.tried(tried, cost, cost < BETTER * usual);
                }
            }
            _ if is_full => self.went_on(cost),
            _ => {}
        }
    }

    fn tried(&mut self, tried: usize, cost: f64, is_better: bool) {
        self.trial = None;
        self.next = (tried + 1) % self.count;
        if is_better {
            (self.chosen, self.cost, self.try_every) = (tried, Some(cost), 1);
        } else if self.next == self.chosen || (self.next + 1) % self.count == self.chosen {
            self.try_every = (2 * self.try_every).min(TRY_EVERY_MAX);
        }
        self.windows_left = self.try_every;
        self.window = Window { skip: if is_better { 0 } else { SETTLING }, ..Window::default() };
    }

    fn went_on(&mut self, cost: f64) {
        let together = self.window.requests / f64::from(self.window.batches);
        let differ = |a: f64, b: f64| a > CHANGED * b || b > CHANGED * a;
        let is_other = self.cost.is_some_and(|before| differ(before, cost));
        if is_other || differ(self.together, together) {
            self.try_every = 1;
            self.windows_left = self.windows_left.min(self.try_every);
        }
        (self.cost, self.together) = (Some(cost), together);
        self.windows_left -= 1;
        self.window = Window::default();
        if self.windows_left == 0 {
            if self.next == self.chosen {
                self.next = (self.next + 1) % self.count;
            }
            self.trial = Some(self.next);
            self.window.skip = SETTLING;
        }
    }
}

impl Window {
    fn cost(&self) -> f64 {
        let late = (self.late / self.requests).min(LATE_SHARE_MAX) - LATE_SHARE;
        self.seconds / self.requests * (1.0 + LATE_COST * late.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays batches of one request, of which each way takes so many milliseconds, and returns how many of
    /// them went each way.
    fn play(ways: &mut Ways, batches: u32, [on_the_last, on_any]: [f64; 2]) -> [u32; 2] {
        let mut went = [0; 2];
        for _ in 0..batches {
            let way = ways.way();
            went[way as usize] += 1;
            let millis = if way == Way::OnTheLast { on_the_last } else { on_any };
            ways.begun(std::iter::once(millis / 1000.0));
        }
        went
    }

    fn ways(instances: usize) -> Ways {
        let mut ways = Ways::new(Duration::from_millis(10));
        ways.set_instances(instances);
        ways
    }

    #[test]
    fn the_faster_way_is_taken_and_the_other_seldom_tried() {
        for (millis, better) in [([4.0, 2.0], 1), ([2.0, 4.0], 0), ([3.0, 3.0], 0)] {
            let mut ways = ways(2);
            play(&mut ways, 2000, millis);
            let went = play(&mut ways, 10_000, millis);
            assert!(went[better] > 9800, "{millis:?}: {went:?}");
            assert!(went[1 - better] > 0, "{millis:?}: {went:?}");
        }
    }

    #[test]
    fn another_load_is_another_choice() {
        let mut ways = ways(4);
        play(&mut ways, 20_000, [4.0, 2.0]);
        assert_eq!(ways.way(), Way::OnAny);
        // As soon as the time that requests take has changed.
        play(&mut ways, 150, [1.0, 6.0]);
        assert_eq!(ways.way(), Way::OnTheLast);
    }

    #[test]
    fn a_way_that_misses_the_target_is_not_better() {
        let mut ways = ways(2);
        for batch in 0..2000 {
            // One of sixteen requests waits for longer than the target.
            let late = if batch % 16 == 0 { 11.0 } else { 2.0 };
            let seconds = if ways.way() == Way::OnAny { late } else { 3.0 } / 1000.0;
            ways.begun(std::iter::once(seconds));
        }
        let went = play(&mut ways, 1, [3.0, 3.0]);
        assert_eq!(went, [1, 0]);
    }

    #[test]
    fn one_instance_has_one_way() {
        let mut ways = ways(1);
        assert_eq!(play(&mut ways, 10_000, [4.0, 2.0]), [10_000, 0]);
    }
}
