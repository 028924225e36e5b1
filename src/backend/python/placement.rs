//! The processors that a model's process runs on.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// A process that takes less for each turn runs by turns with its reactor.
pub const QUICK: Duration = Duration::from_micros(400);

/// So many turns, each a request or a call, come before the process does to its reactor; after each time
/// that it had to leave, twice as many, up to a limit. Who then stays for as many as that begins anew.
const TURNS: u32 = 64;
const TURNS_MAX: u32 = 1 << 10;
/// So many turns are outweighed by a batch that was none, of which there are some on a busy machine.
const OUTWEIGHED: u32 = 8;

/// Such a part of a processor's time is all that a process and its reactor may need together.
const FULL: (u32, u32) = (7, 8);

/// Batches that run now, in all processes.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// A batch that runs in some process, from when it is sent until this is dropped.
pub struct Turn(());

impl Turn {
    /// Begins one.
    pub fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Whether no other batch runs anywhere.
    pub fn is_alone(&self) -> bool {
        RUNNING.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the thread of a process is that runs the model.
///
/// To wake a thread on another processor, and to be woken from there, takes longer than a quick model
/// does. While a process and its reactor work by turns, one request or call after the other and no other
/// process has any, neither needs a processor of its own: then the thread runs on the reactor's. When there
/// is more to do it goes back, with all threads that were started meanwhile. What the model has chosen
/// itself stays.
///
/// How quick a model is, is told by the time that passes. Where that is long, it may be that of others who
/// are on the processor, which is no reason to leave or to stay away: then the system is asked what the process
/// and its reactor have used of it.
pub struct Placement {
    process: Pid,
    /// What the process was given at its start.
    given: Option<CpuSet>,
    /// Counts what it uses of the processors.
    clock: Option<ClockId>,
    state: Mutex<State>,
}

struct State {
    /// The processor of the reactor, while the thread is there.
    shared: Option<CpuSet>,
    /// Turns, less what outweighed them.
    in_turn: u32,
    needed: u32,
    /// Turns since the thread came to the reactor's processor.
    stayed: u32,
    /// What the system said when it was asked last, and turns since then.
    asked: Option<Used>,
    turns_since: u32,
}

/// What has been used of the processors up to some time.
#[derive(Clone, Copy)]
struct Used {
    at: Instant,
    process: Duration,
    reactor: Duration,
}

impl Used {
    /// Whether a processor has room for both, after so many turns since `before`, none of which took the
    /// process long.
    fn is_little(&self, before: &Self, turns: u32) -> bool {
        let process = self.process.saturating_sub(before.process);
        let reactor = self.reactor.saturating_sub(before.reactor);
        let passed = self.at.saturating_duration_since(before.at);
        process < QUICK * turns && process + reactor < passed / FULL.1 * FULL.0
    }
}

impl Placement {
    /// That of a process which has just started, by its number.
    pub fn of(process: u32) -> Self {
        // A number of a process always fits; the calling thread's own would be 0.
        let process = Pid::from_raw(i32::try_from(process).unwrap_or(i32::MAX));
        let given = sched_getaffinity(process).ok();
        let clock = clock_getcpuclockid(process).ok();
        let state = State {
            shared: None,
            in_turn: 0,
            needed: TURNS,
            stayed: 0,
            asked: None,
            turns_since: 0,
        };
        Self { process, given, clock, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a batch that took so many turns and so much time, while no other ran; on the process's reactor.
    pub fn note_turns(&self, turns: u32, passed: Duration) {
        let mut state = self.state();
        state.turns_since = state.turns_since.saturating_add(turns);
        if passed / turns.max(1) >= QUICK && !self.use_little(&mut state) {
            return self.outweigh(&mut state);
        }
        state.in_turn = state.in_turn.saturating_add(turns);
        if state.shared.is_some() {
            state.in_turn = state.in_turn.min(TURNS);
            state.stayed = state.stayed.saturating_add(turns);
            if state.stayed >= TURNS_MAX {
                state.needed = TURNS;
            }
        } else if state.in_turn >= state.needed {
            state.shared = self.join();
            state.in_turn = if state.shared.is_some() { TURNS } else { 0 };
            state.stayed = 0;
        }
    }

    /// Notes a batch that ran beside another, or that no reactor waited for.
    pub fn note_other(&self) {
        self.outweigh(&mut self.state());
    }

    fn outweigh(&self, state: &mut State) {
        let left = state.in_turn.saturating_sub(OUTWEIGHED);
        self.weigh(state, left);
    }

    /// Whether the process and the calling thread, its reactor, have used little since this was asked last.
    fn use_little(&self, state: &mut State) -> bool {
        let process = self.clock.and_then(|clock| clock_gettime(clock).ok());
        let reactor = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok();
        let (Some(process), Some(reactor)) = (process, reactor) else { return false };
        let used = Used { at: Instant::now(), process: process.into(), reactor: reactor.into() };
        let turns = std::mem::take(&mut state.turns_since);
        state.asked.replace(used).is_some_and(|before| used.is_little(&before, turns))
    }

    /// Has the thread leave the reactor's processor now.
    pub fn end_turns(&self) {
        self.weigh(&mut self.state(), 0);
    }

    /// Notes that so many turns are left.
    fn weigh(&self, state: &mut State, turns: u32) {
        state.in_turn = turns;
        if turns == 0
            && let Some(shared) = state.shared.take()
        {
            state.needed = (state.needed * 2).min(TURNS_MAX);
            self.leave(&shared);
        }
    }

    /// Brings the thread to the processor of the calling one, if that has one of its own.
    fn join(&self) -> Option<CpuSet> {
        let here = sched_getaffinity(Pid::from_raw(0)).ok().filter(|here| count(here) == 1)?;
        let now = sched_getaffinity(self.process).ok()?;
        if Some(now) != self.given || now == here {
            return None;
        }
        sched_setaffinity(self.process, &here).ok().map(|()| here)
    }

    /// Gives the threads that are on the processor `shared` those that the process was given.
    fn leave(&self, shared: &CpuSet) {
        let Some(given) = &self.given else { return };
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process));
        let names = threads.into_iter().flatten().flatten().map(|thread| thread.file_name());
        for thread in names.filter_map(|name| name.to_str()?.parse().ok()).map(Pid::from_raw) {
            if sched_getaffinity(thread).as_ref() == Ok(shared)
                && let Err(error) = sched_setaffinity(thread, given)
            {
                log::debug!("thread {thread} cannot be given its processors back: {error}");
            }
        }
    }
}

fn count(cores: &CpuSet) -> usize {
    (0..CpuSet::count()).filter(|&core| cores.is_set(core) == Ok(true)).count()
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command},
        thread,
    };

    use super::*;

    /// A process that ends with the test.
    struct Sleeping(Child);

    impl Drop for Sleeping {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn only(core: usize) -> CpuSet {
        let mut cores = CpuSet::new();
        cores.set(core).unwrap();
        cores
    }

    #[test]
    fn who_shares_a_processor_leaves_room_on_it() {
        let at = Instant::now();
        let before = Used { at, process: QUICK, reactor: QUICK };
        let after = |passed: u32, process: u32, reactor: u32| Used {
            at: at + QUICK * passed,
            process: QUICK * (1 + process),
            reactor: QUICK * (1 + reactor),
        };
        for (passed, process, reactor, turns, expected) in [
            (80, 9, 9, 10, true),
            (80, 10, 9, 10, false),
            (80, 9, 60, 10, true),
            (80, 9, 61, 10, false),
            (80, 0, 0, 1, true),
        ] {
            let used = after(passed, process, reactor);
            assert_eq!(used.is_little(&before, turns), expected, "{passed} {process} {reactor}");
        }
    }

    #[test]
    fn time_that_is_used_by_others_keeps_no_process_from_its_reactor() {
        let sleeping = Sleeping(Command::new("sleep").arg("60").spawn().unwrap());
        let placement = Placement::of(sleeping.0.id());
        let late = || {
            thread::sleep(QUICK);
            placement.note_turns(1, QUICK);
        };
        late();
        assert_eq!(placement.state().in_turn, 0, "the first time there is nothing to compare");
        (0..TURNS / 2).for_each(|_| late());
        assert!(placement.state().in_turn > TURNS / 4);
    }

    #[test]
    fn a_process_is_at_its_reactor_as_long_as_they_work_by_turns() {
        let sleeping = Sleeping(Command::new("sleep").arg("60").spawn().unwrap());
        let process = Pid::from_raw(i32::try_from(sleeping.0.id()).unwrap());
        let given = sched_getaffinity(process).unwrap();
        let mut cores = (0..CpuSet::count()).filter(|&core| given.is_set(core) == Ok(true));
        // There is nowhere to go where there is one processor.
        let (Some(core), Some(other)) = (cores.next(), cores.next()) else { return };
        // A thread of its own, for what it may run on changes.
        let reactor = thread::spawn(move || {
            let placement = Placement::of(sleeping.0.id());
            let at = || sched_getaffinity(process).unwrap();
            let turns = |count| (0..count).for_each(|_| placement.note_turns(1, Duration::ZERO));
            turns(2 * TURNS);
            assert_eq!(at(), given, "a reactor that may run anywhere has no place to share");
            let others = |count| (0..count).for_each(|_| placement.note_other());
            sched_setaffinity(Pid::from_raw(0), &only(core)).unwrap();
            others(1);
            turns(TURNS - 1);
            assert_eq!(at(), given);
            turns(1);
            others(TURNS / OUTWEIGHED - 1);
            assert_eq!(at(), only(core));
            others(1);
            assert_eq!(at(), given);
            turns(TURNS);
            assert_eq!(at(), given, "the next time takes longer");
            placement.note_turns(TURNS, Duration::ZERO);
            assert_eq!(at(), only(core), "a batch of many calls has many turns");
            placement.end_turns();
            assert_eq!(at(), given);
            turns(3 * TURNS);
            assert_eq!(at(), given, "and the time after that longer still");
            turns(TURNS + TURNS_MAX);
            placement.end_turns();
            turns(2 * TURNS);
            assert_eq!(at(), only(core), "who has stayed for long has left once");
            placement.end_turns();
            // What the model chooses is left alone.
            sched_setaffinity(process, &only(other)).unwrap();
            turns(8 * TURNS);
            others(1);
            assert_eq!(at(), only(other));
        });
        reactor.join().unwrap();
    }
}
