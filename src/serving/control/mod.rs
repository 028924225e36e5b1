//! Which models are loaded: at the start, when a client asks, or as repositories change.
//!
//! [`ModelControl`] takes loads and unloads in and works on them on threads of its own, which end when
//! there is nothing to do: one thing at a time for each model ([`agenda`]), several models at once. A
//! load makes new versions beside those that are served and has the [`Server`] swap them in; what it
//! replaced ends when its last request is answered ([`retire`]). What became of each model is in
//! [`records`], which changes of a repository are taken up in [`watch`], and what ensembles want of other
//! models in [`dependencies`]: they know no threads. An ensemble is loaded after its models, and looked
//! at again whenever one of them changes ([`ensembles`]).
//!
//! It may use repositories, back ends and the server. No request passes through here, and it knows no
//! wire format.

mod agenda;
mod dependencies;
mod ensembles;
mod hosted;
mod index;
mod inside;
mod poll;
mod records;
mod retire;
mod run;
mod start;
mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use self::{
    agenda::Agenda,
    dependencies::Dependencies,
    ensembles::{Failures, Ran},
    records::Records,
    retire::Retiring,
};
pub use self::{
    index::IndexEntry,
    poll::Polling,
    records::VersionState,
    start::{ModelStatus, Startup},
};
use super::{
    load::{Loader, Source},
    server::Server,
};
use crate::{
    inference::Error,
    memory::Reservation,
    repository::{self, ModelId, Overrides, Repository},
    runtime::reply_channel,
};

/// Loads and unloads that clients may have waiting.
const WAITING_MAX: usize = 1024;

/// Who decides what is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlMode {
    /// Everything is loaded at the start, and nothing after that.
    None,
    /// Clients do.
    Explicit,
    /// The repositories do: they are looked at again after each such time.
    Poll(Duration),
}

/// What an operator can set.
#[derive(Clone, Copy, Debug)]
pub struct ControlSettings {
    /// Who decides what is loaded.
    pub mode: ControlMode,
    /// The most models that are loaded at a time.
    pub threads: usize,
    /// Whether the server is not ready while a model that should be served is not.
    pub strict_readiness: bool,
}

/// Loads and unloads the models of a [`Server`].
pub struct ModelControl {
    server: Arc<Server>,
    repository: Repository,
    loader: Loader,
    settings: ControlSettings,
    work: Mutex<Work>,
    /// Told when a thread ends, and when no more work is taken in.
    rest: Condvar,
    records: Mutex<Records>,
    dependencies: Mutex<Dependencies>,
    retiring: Mutex<Retiring>,
}

#[derive(Default)]
struct Work {
    agenda: Agenda<Task>,
    threads: usize,
    /// Loads and unloads that models wait for.
    from_inside: usize,
    stopping: bool,
}

/// Whom to tell what came of a task.
type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Something to do to a model, and whom to tell.
struct Task {
    action: Action,
    /// Whether the model should be served, so that the server is incomplete without it.
    is_wanted: bool,
    done: Done,
}

enum Action {
    /// Load all models of the name.
    Load(Overrides),
    /// Load what lies here.
    LoadSource(Box<Source>),
    /// Say why this cannot be loaded.
    Fail(ModelId, repository::Error),
    /// Load this because an ensemble has a step for it.
    LoadForEnsemble,
    /// Load an ensemble, whose models were loaded if they could be.
    LoadEnsemble(Box<Source>, Failures),
    /// Look at an ensemble again, because one of its models has changed.
    Recheck(ModelId),
    /// Unload all models of the name, and on request those that were loaded for their sake alone.
    Unload { with_models: bool },
    /// Unload this one.
    UnloadOne(ModelId),
    /// Unload all models of the name, if nobody wants them.
    UnloadOrphan,
}

impl ModelControl {
    /// Nothing is loaded yet.
    pub fn new(
        server: Arc<Server>,
        repository: Repository,
        loader: Loader,
        settings: ControlSettings,
    ) -> Arc<Self> {
        let control = Arc::new(Self {
            server,
            repository,
            loader,
            settings,
            work: Mutex::default(),
            rest: Condvar::new(),
            records: Mutex::default(),
            dependencies: Mutex::default(),
            retiring: Mutex::default(),
        });
        let from_inside = Box::new(inside::FromInside(Arc::downgrade(&control)));
        // A server has one that loads its models.
        let _ = control.server.host().control.set(from_inside);
        control
    }

    /// The server whose models these are.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// What makes models of folders.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Loads a model as it is in its repository now, or as `overrides` say. What is served of it goes on
    /// until the new versions have been started; if they cannot be, it goes on after that.
    ///
    /// # Errors
    /// When the server does not take such requests or has no memory left for what came with this one,
    /// or the model cannot be loaded.
    ///
    /// # Panics
    /// On a thread that is not a reactor.
    pub async fn load(self: &Arc<Self>, name: &str, overrides: Overrides) -> Result<(), Error> {
        // Held until the load is done, also when the client leaves before that.
        let mut charge = self.server.pool().reservation();
        charge.grow(overrides.bytes())?;
        self.ask(name, Action::Load(overrides), charge).await
    }

    /// Takes a model out of service, and with it on request the models that were loaded only because it is
    /// an ensemble that has steps for them. Ensembles that have a step for the model go too, until it comes
    /// back. Requests that are in flight are answered, and that is not waited for.
    ///
    /// # Errors
    /// When the server does not take such requests.
    ///
    /// # Panics
    /// On a thread that is not a reactor.
    pub async fn unload(self: &Arc<Self>, name: &str, with_models: bool) -> Result<(), Error> {
        let action = Action::Unload { with_models };
        self.ask(name, action, self.server.pool().reservation()).await
    }

    async fn ask(
        self: &Arc<Self>,
        name: &str,
        action: Action,
        charge: Reservation,
    ) -> Result<(), Error> {
        if self.settings.mode != ControlMode::Explicit {
            return Err(Error::NoModelControl);
        }
        let waiting = lock(&self.work).agenda.waiting();
        if waiting >= WAITING_MAX {
            return Err(Error::TooManyLoads { waiting, limit: WAITING_MAX });
        }
        let (reply, mut answer) = reply_channel();
        let done = Box::new(move |outcome| {
            drop(charge);
            reply.finish(outcome);
        });
        self.submit(name, Task { action, is_wanted: false, done });
        answer.receive().await.unwrap_or_else(|| Err(Error::unanswered()))
    }

    /// Takes a task in, and sees to it that a thread works on it.
    fn submit(self: &Arc<Self>, name: &str, task: Task) {
        let mut work = lock(&self.work);
        if work.stopping {
            drop(work);
            return (task.done)(Err(Error::Stopping));
        }
        work.agenda.push(name, task);
        if !work.agenda.is_ready() || work.threads >= self.threads_max(&work) {
            return;
        }
        let control = self.clone();
        match thread::Builder::new().name("model-load".into()).spawn(move || control.work_off()) {
            Ok(_) => work.threads += 1,
            // Those that run will come to it.
            Err(error) if work.threads > 0 => {
                log::warn!("cannot start another thread that loads models: {error}");
            }
            Err(error) => {
                let detail = format!("cannot start a thread that loads models: {error}");
                let tasks = work.agenda.abandon();
                drop(work);
                for task in tasks {
                    (task.done)(Err(Error::Internal { detail: detail.clone() }));
                }
            }
        }
    }

    fn threads_max(&self, work: &Work) -> usize {
        self.settings.threads.max(1) + work.from_inside
    }

    fn work_off(self: Arc<Self>) {
        // What the back ends start for a model inherits this: their threads stay off the reactors'
        // cores.
        self.server.leave_reactor_cores();
        loop {
            let next = {
                let mut work = lock(&self.work);
                let is_needed = work.threads <= self.threads_max(&work);
                let next = if is_needed { work.agenda.next() } else { None };
                if next.is_none() {
                    work.threads -= 1;
                    self.rest.notify_all();
                }
                next
            };
            let Some((name, Task { action, is_wanted, done })) = next else { return };
            let ran = catch_unwind(AssertUnwindSafe(|| self.run(&name, action, is_wanted)));
            lock(&self.work).agenda.finished(&name);
            let ran = ran.unwrap_or_else(|_| {
                let detail = format!("a panic ended the load or unload of model '{name}'");
                log::error!("{detail}");
                for id in lock(&self.records).called(&name) {
                    lock(&self.records).gave_up(&id, &detail);
                }
                Ran::done(Err(Error::Internal { detail }))
            });
            self.follow_up(&name, ran, is_wanted, done);
        }
    }

    /// Takes no more work in, refuses what was not begun, and waits for the rest for as long as
    /// `patience`. Tells whether all of it has ended.
    pub fn stop(&self, patience: Duration) -> bool {
        let mut work = lock(&self.work);
        work.stopping = true;
        let tasks = work.agenda.abandon();
        drop(work);
        self.rest.notify_all();
        for task in tasks {
            (task.done)(Err(Error::Stopping));
        }
        let until = Instant::now() + patience;
        let mut work = lock(&self.work);
        while work.threads > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::warn!("models that are still being loaded are cut off");
                return false;
            }
            work = match self.rest.wait_timeout(work, left) {
                Ok((work, _)) => work,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
