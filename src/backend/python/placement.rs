//! The processors that a model's process runs on.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// So many turns, each a request or a call, come before the process does to its reactor; after each time
/// that it had to leave, twice as many.
const TURNS: u32 = 64;
const TURNS_MAX: u32 = 1 << 10;
/// So many turns are outweighed by a batch that was none, of which there are some on a busy machine.
const OUTWEIGHED: u32 = 8;

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
/// How quick a model is, is told by the time that passes, not by what its process uses of it. The one is
/// never less than the other, so nobody stays who keeps the reactor waiting. And where more passes than is
/// used, because others are on that processor too, the thread is better off where it may choose.
pub struct Placement {
    process: Pid,
    /// What the process was given at its start.
    given: Option<CpuSet>,
    state: Mutex<State>,
}

struct State {
    /// The processor of the reactor, while the thread is there.
    shared: Option<CpuSet>,
    /// Turns, less what outweighed them.
    in_turn: u32,
    needed: u32,
}

impl Placement {
    /// That of a process which has just started, by its number.
    pub fn of(process: u32) -> Self {
        // A number of a process always fits; the calling thread's own would be 0.
        let process = Pid::from_raw(i32::try_from(process).unwrap_or(i32::MAX));
        let given = sched_getaffinity(process).ok();
        let state = State { shared: None, in_turn: 0, needed: TURNS };
        Self { process, given, state: Mutex::new(state) }
    }

    /// Notes a batch that was done in so many turns, on the process's reactor; or that one was not, by 0.
    pub fn note(&self, turns: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if turns == 0 {
            let left = state.in_turn.saturating_sub(OUTWEIGHED);
            return self.weigh(&mut state, left);
        }
        state.in_turn = state.in_turn.saturating_add(turns);
        if state.shared.is_some() {
            state.in_turn = state.in_turn.min(TURNS);
        } else if state.in_turn >= state.needed {
            state.shared = self.join();
            state.in_turn = if state.shared.is_some() { TURNS } else { 0 };
        }
    }

    /// Has the thread leave the reactor's processor now.
    pub fn end_turns(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.weigh(&mut state, 0);
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
            let turns = |count| (0..count).for_each(|_| placement.note(1));
            turns(2 * TURNS);
            assert_eq!(at(), given, "a reactor that may run anywhere has no place to share");
            let others = |count| (0..count).for_each(|_| placement.note(0));
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
            placement.note(TURNS);
            assert_eq!(at(), only(core), "a batch of many calls has many turns");
            placement.end_turns();
            assert_eq!(at(), given);
            // What the model chooses is left alone.
            sched_setaffinity(process, &only(other)).unwrap();
            turns(8 * TURNS);
            others(1);
            assert_eq!(at(), only(other));
        });
        reactor.join().unwrap();
    }
}
