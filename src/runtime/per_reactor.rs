use std::sync::OnceLock;

use super::{
    reactor::{ReactorHandle, current_index},
    thread_bound::ThreadBound,
};

/// One value per reactor, each reachable only from its own: how shared things, such as a loaded
/// model, find the state that belongs to the core they are used on.
///
/// Dropping it sends every value to its reactor to be dropped there.
pub struct PerReactor<T: 'static> {
    reactors: Vec<ReactorHandle>,
    values: Box<[OnceLock<ThreadBound<T>>]>,
}

impl<T: 'static> PerReactor<T> {
    /// No values yet.
    pub fn new(reactors: &[ReactorHandle]) -> Self {
        let values = reactors.iter().map(|_| OnceLock::new()).collect();
        Self { reactors: reactors.to_vec(), values }
    }

    /// Sets the current reactor's value, once.
    ///
    /// # Panics
    /// On a thread that is not one of the reactors, or when there is a value already.
    pub fn set(&self, value: T) {
        let reactor = current_index().expect("values are set on reactors only");
        let vacant = self.values[reactor].set(ThreadBound::new(value)).is_ok();
        assert!(vacant, "the value of a reactor is set once");
    }

    /// The current reactor's value, if it has one.
    pub fn get(&self) -> Option<&T> {
        self.values.get(current_index()?)?.get().map(|value| &**value)
    }
}

impl<T: 'static> Drop for PerReactor<T> {
    fn drop(&mut self) {
        for (reactor, value) in self.reactors.iter().zip(&mut self.values) {
            let Some(value) = value.take() else { continue };
            if value.is_own() {
                drop(value);
            } else if let Err(closed) = reactor.send(Box::new(move || drop(value))) {
                // The reactor is gone, and only it could have dropped the value.
                std::mem::forget(closed.0);
            }
        }
    }
}
