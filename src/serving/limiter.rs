//! The rate limiter at work: instances that share resources wait for their turn before they run a batch,
//! on their own threads. The lock is taken twice for each such batch, and by no reactor.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use crate::{
    repository::Resource,
    scheduler::{LimitError, Member, RateLimiter, ResourceLimit},
};

/// How often an instance that waits looks whether anybody still wants what it waits for.
const LOOK: Duration = Duration::from_millis(20);

/// What the instances of all models share.
pub struct Limiter {
    state: Mutex<State>,
    /// Told when somebody's turn has come.
    turn: Condvar,
}

struct State {
    limiter: RateLimiter,
    /// Whose turn has come.
    granted: BTreeSet<Member>,
}

impl Limiter {
    /// With what the operator says there is.
    pub fn new(limits: Vec<ResourceLimit>) -> Arc<Self> {
        let state = State { limiter: RateLimiter::new(limits), granted: BTreeSet::new() };
        Arc::new(Self { state: Mutex::new(state), turn: Condvar::new() })
    }

    /// A seat for an instance on `device` that holds `needs` while it runs.
    ///
    /// # Errors
    /// When it could never run.
    pub fn join(
        self: &Arc<Self>,
        needs: &[Resource],
        priority: u32,
        device: i32,
    ) -> Result<Seat, LimitError> {
        let member = self.lock().limiter.join(needs, priority, device)?;
        Ok(Seat { limiter: self.clone(), member })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes who waits or runs, and wakes those whose turn that makes it.
    fn change(&self, change: impl FnOnce(&mut RateLimiter)) {
        let mut state = self.lock();
        change(&mut state.limiter);
        let mut any = false;
        while let Some(member) = state.limiter.grant() {
            any |= state.granted.insert(member);
        }
        drop(state);
        if any {
            self.turn.notify_all();
        }
    }
}

/// An instance's place among those that share resources. It is given up when this is dropped.
pub struct Seat {
    limiter: Arc<Limiter>,
    member: Member,
}

impl Seat {
    /// Does `work` when it is this instance's turn, with all that it needs held until the end, also if it
    /// panics. `None` when it was not done, because it had become `moot` before its turn came.
    pub fn run<T>(&self, moot: impl Fn() -> bool, work: impl FnOnce() -> T) -> Option<T> {
        self.limiter.change(|limiter| limiter.ask(self.member));
        // From here on, because what is asked for is taken back if nothing else.
        let _turn = Turn(self);
        let mut state = self.limiter.lock();
        while !state.granted.contains(&self.member) {
            state = match self.limiter.turn.wait_timeout(state, LOOK) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
            if moot() && !state.granted.contains(&self.member) {
                drop(state);
                return None;
            }
        }
        drop(state);
        Some(work())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.limiter.change(|limiter| limiter.leave(self.member));
    }
}

struct Turn<'a>(&'a Seat);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Seat { limiter, member } = self.0;
        limiter.lock().granted.remove(member);
        limiter.change(|limiter| limiter.settle(*member));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    fn needs(count: u32) -> Vec<Resource> {
        vec![Resource { name: "R".into(), global: false, count }]
    }

    #[test]
    fn no_more_run_at_a_time_than_there_is_for() {
        let limiter =
            Limiter::new(vec![ResourceLimit { name: "R".into(), count: 3, device: None }]);
        let used = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = [1, 1, 2, 3]
            .map(|count| {
                let seat = limiter.join(&needs(count), 0, 0).unwrap();
                let used = used.clone();
                thread::spawn(move || {
                    for _ in 0..200 {
                        let ran = seat.run(
                            || false,
                            || {
                                let before = used.fetch_add(count as usize, Ordering::SeqCst);
                                thread::yield_now();
                                used.fetch_sub(count as usize, Ordering::SeqCst);
                                before + count as usize
                            },
                        );
                        assert!(ran.unwrap() <= 3);
                    }
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_panic_and_a_wait_given_up_lose_nothing() {
        let limiter = Limiter::new(Vec::new());
        let [one, two] = [0; 2].map(|_| limiter.join(&needs(1), 0, 0).unwrap());
        assert!(
            catch_unwind(AssertUnwindSafe(|| one.run(|| false, || panic!("as planned")))).is_err()
        );
        let outcome = one.run(|| false, || two.run(|| true, || "in spite of it"));
        assert_eq!(outcome, Some(None));
        assert_eq!(two.run(|| true, || "at once"), Some("at once"));
        drop(two);
        assert_eq!(one.run(|| false, || "alone"), Some("alone"));
    }
}
