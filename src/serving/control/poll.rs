//! Repositories are looked at from time to time, and what has changed is loaded or unloaded.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Action, ControlMode, ModelControl, lock,
    watch::{Change, Watch},
};
use crate::repository::{self, Entry, Fingerprint, ModelId};

/// What is in the repositories, and how each model was found.
struct Look {
    entries: BTreeMap<ModelId, Entry>,
    states: BTreeMap<ModelId, Option<Fingerprint>>,
}

impl ModelControl {
    /// Looks at the repositories, if they decide what is loaded, and returns what to watch them with
    /// once the models have been loaded.
    ///
    /// # Errors
    /// A repository cannot be listed.
    pub fn first_look(&self) -> Result<Option<Polling>, repository::Error> {
        let ControlMode::Poll(interval) = self.settings.mode else { return Ok(None) };
        let watch = Watch::new(self.look()?.states);
        Ok(Some(Polling { watch, interval }))
    }

    /// Watches the repositories from now on.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn watch(self: &Arc<Self>, polling: Polling) -> io::Result<()> {
        let control = self.clone();
        let poll = move || control.poll(polling);
        thread::Builder::new().name("model-poll".into()).spawn(poll).map(drop)
    }

    fn poll(self: &Arc<Self>, Polling { mut watch, interval }: Polling) {
        while !self.stops_within(interval) {
            let Look { mut entries, states } = match self.look() {
                Ok(look) => look,
                Err(error) => {
                    // Better to serve on than to unload everything because a disk was away.
                    log::error!("failed to poll the model repositories: {error}");
                    continue;
                }
            };
            let (mut changed, mut gone) = (Vec::new(), Vec::new());
            for (id, change) in watch.look(states) {
                match change {
                    Change::Load => changed.extend(entries.remove(&id)),
                    Change::Unload => gone.push((id.name.clone(), Action::UnloadOne(id))),
                }
            }
            // What failed is in the log and in the index.
            self.load_entries(changed, gone);
        }
    }

    fn look(&self) -> Result<Look, repository::Error> {
        let mut look = Look { entries: BTreeMap::new(), states: BTreeMap::new() };
        for entry in self.repository.scan()? {
            match &entry.error {
                // As Triton does: nobody can say which of them is meant.
                Some(repository::Error::NotUnique { .. }) => continue,
                Some(_) => look.states.insert(entry.id.clone(), None),
                None => {
                    look.states.insert(entry.id.clone(), self.repository.fingerprint(&entry).ok())
                }
            };
            look.entries.insert(entry.id.clone(), entry);
        }
        Ok(look)
    }

    /// Waits, and says whether the server was told to stop meanwhile.
    fn stops_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut work = lock(&self.work);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if work.stopping || left.is_zero() {
                return work.stopping;
            }
            work = match self.rest.wait_timeout(work, left) {
                Ok((work, _)) => work,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// What repositories are watched with.
pub struct Polling {
    watch: Watch<ModelId, Fingerprint>,
    interval: Duration,
}
