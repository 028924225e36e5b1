//! Loads and unloads that models ask for.

use std::sync::{Arc, Weak};

use super::{ModelControl, lock};
use crate::{
    backend::{ControlModels, Done},
    inference::Error,
    repository::Overrides,
    runtime::spawn,
};

/// The way to what loads models, which owns the server that the models run in.
pub struct FromInside(pub Weak<ModelControl>);

impl FromInside {
    /// Does what `begin` says on a reactor, where such things are waited for.
    fn run<F: Future<Output = Result<(), Error>> + 'static>(
        &self,
        done: Done,
        begin: impl FnOnce(Arc<ModelControl>) -> F + Send + 'static,
    ) {
        let control = self.0.upgrade();
        let Some((control, reactor)) =
            control.and_then(|it| it.server().reactors().first().cloned().map(|at| (it, at)))
        else {
            return done(Err(Error::Stopping));
        };
        let run = Box::new(move || {
            spawn(&"a load that a model asked for", async move {
                let _room = Room::made(control.clone());
                done(begin(control).await);
            });
        });
        // What is not taken is dropped with `done`: the reactors have ended, and the models will.
        if reactor.send(run).is_err() {
            log::debug!("a load that a model asked for came after the reactors had ended");
        }
    }
}

impl ControlModels for FromInside {
    fn load(&self, model: String, overrides: Overrides, done: Done) {
        self.run(done, |control| async move { control.load(&model, overrides).await });
    }

    fn unload(&self, model: String, with_models: bool, done: Done) {
        self.run(done, move |control| async move { control.unload(&model, with_models).await });
    }
}

/// Lets one more model be loaded at a time while it is held: the model that asks may be one that is being
/// loaded, which takes a thread and a place while it waits.
struct Room(Arc<ModelControl>);

impl Room {
    fn made(control: Arc<ModelControl>) -> Self {
        lock(&control.work).from_inside += 1;
        control.loader.places.add();
        Self(control)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.0.work).from_inside -= 1;
        self.0.loader.places.take_back();
    }
}
