use std::{
    cell::Cell,
    mem::{ManuallyDrop, needs_drop},
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering},
};

/// A value that any thread may hold, and only the one that made it uses and drops. What tells the threads
/// apart is a number of their own: a request asks for it several times, which the standard library's handle
/// of a thread is too dear for.
pub(super) struct ThreadBound<T> {
    owner: u64,
    value: ManuallyDrop<T>,
}

// SAFETY: a thread that is not the owner can hold the value, but neither reach nor drop it.
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: as above; every way to the value looks at the number first.
unsafe impl<T> Sync for ThreadBound<T> {}

/// The number of the calling thread, which no other thread has had.
fn own_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    if NUMBER.get() == 0 {
        NUMBER.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    }
    NUMBER.get()
}

impl<T> ThreadBound<T> {
    /// A value of the calling thread's.
    pub fn new(value: T) -> Self {
        Self { owner: own_number(), value: ManuallyDrop::new(value) }
    }

    /// Whether the value is the calling thread's.
    pub fn is_own(&self) -> bool {
        self.owner == own_number()
    }
}

/// # Panics
/// On another thread than the value's.
impl<T> Deref for ThreadBound<T> {
    type Target = T;

    #[track_caller]
    fn deref(&self) -> &T {
        assert!(self.is_own(), "the value belongs to another thread");
        &self.value
    }
}

impl<T> Drop for ThreadBound<T> {
    /// Elsewhere than on its own thread a value that has something to drop is leaked.
    fn drop(&mut self) {
        if self.is_own() {
            // SAFETY: the value is dropped here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        } else if needs_drop::<T>() {
            log::error!("a value is leaked: it was let go on another thread than its own");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, thread};

    use super::*;

    #[test]
    fn a_value_is_used_and_dropped_by_its_own_thread_only() {
        let value = Rc::new(7);
        let bound = ThreadBound::new(value.clone());
        assert!(bound.is_own() && **bound == 7);
        let bound = thread::spawn(move || {
            assert!(!bound.is_own());
            bound
        });
        let bound = bound.join().unwrap();
        assert!(bound.is_own());
        let panicked = thread::scope(|scope| scope.spawn(|| **bound).join()).is_err();
        assert!(panicked);
        drop(bound);
        assert_eq!(Rc::strong_count(&value), 1);
        let leaked = ThreadBound::new(value.clone());
        thread::spawn(move || drop(leaked)).join().unwrap();
        assert_eq!(Rc::strong_count(&value), 2);
    }
}
