//! The processors that a model's process runs on.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// So many batches in a row have to be done by turns before the process comes to its reactor; after each
/// time that it had to leave, twice as many.
const TURNS: u32 = 64;
const TURNS_MAX: u32 = 1 << 14;

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
/// process has any, neither needs a processor of its own: then the thread runs on the reactor's. As soon
/// as there is more to do it goes back, with all threads that were started meanwhile. What the model has
/// chosen itself stays.
pub struct Placement {
    process: Pid,
    /// What the process was given at its start.
    given: Option<CpuSet>,
    state: Mutex<State>,
}

struct State {
    /// The processor of the reactor, while the thread is there.
    shared: Option<CpuSet>,
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

    /// Notes whether a batch was done by turns. To be called on the process's reactor if it was.
    pub fn note(&self, by_turns: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_turns {
            state.in_turn = 0;
            if let Some(shared) = state.shared.take() {
                state.needed = (state.needed * 2).min(TURNS_MAX);
                self.leave(&shared);
            }
        } else if state.shared.is_none() {
            state.in_turn += 1;
            if state.in_turn >= state.needed {
                state.in_turn = 0;
                state.shared = self.join();
            }
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
            let turns = |count| (0..count).for_each(|_| placement.note(true));
            turns(2 * TURNS);
            assert_eq!(at(), given, "a reactor that may run anywhere has no place to share");
            sched_setaffinity(Pid::from_raw(0), &only(core)).unwrap();
            placement.note(false);
            turns(TURNS - 1);
            assert_eq!(at(), given);
            turns(1);
            assert_eq!(at(), only(core));
            placement.note(false);
            assert_eq!(at(), given);
            turns(TURNS);
            assert_eq!(at(), given, "the next time takes longer");
            turns(TURNS);
            assert_eq!(at(), only(core));
            placement.note(false);
            // What the model chooses is left alone.
            sched_setaffinity(process, &only(other)).unwrap();
            turns(8 * TURNS);
            placement.note(false);
            assert_eq!(at(), only(other));
        });
        reactor.join().unwrap();
    }
}
