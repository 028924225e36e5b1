use std::sync::{Condvar, Mutex, PoisonError};

/// Places for what may be done only so many times at once.
pub struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Places {
    /// So many, and one at least.
    pub fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    /// Does something in a place of its own, which it waits for.
    pub(super) fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.freed.wait_while(free, |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        let _place = Place(self);
        work()
    }
}

/// Is free again when this is dropped, also by a panic.
struct Place<'a>(&'a Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
