use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Places for what may be done only so many times at once.
pub struct Places {
    /// Below 0 while some are in use that have been taken back.
    free: Mutex<isize>,
    freed: Condvar,
}

impl Places {
    /// So many, and one at least.
    pub fn new(count: usize) -> Self {
        let count = isize::try_from(count).unwrap_or(isize::MAX / 2);
        Self { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    /// Does something in a place of its own, which it waits for.
    pub(super) fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.free();
        let free = self.freed.wait_while(free, |free| *free <= 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        let _place = Place(self);
        work()
    }

    /// Adds one.
    pub(in crate::serving) fn add(&self) {
        *self.free() += 1;
        self.freed.notify_one();
    }

    /// Takes one back that was added, now or when one is free.
    pub(in crate::serving) fn take_back(&self) {
        *self.free() -= 1;
    }

    fn free(&self) -> MutexGuard<'_, isize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is free again when this is dropped, also by a panic.
struct Place<'a>(&'a Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.add();
    }
}
