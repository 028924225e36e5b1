//! The end of versions that were replaced or unloaded: here, not on the reactor that answers their last
//! request, because closing a model takes time.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{ModelControl, lock};
use crate::{
    memory::give_back_free_pages,
    repository::ModelId,
    serving::{registry::Versions, version::LoadedVersion},
};

/// How often is looked whether the last request has been answered, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long after a version its instances have ended too, which lie on threads of their own.
const SETTLED: Duration = Duration::from_millis(100);

/// Versions that are not served any more and have requests still.
#[derive(Default)]
pub struct Retiring {
    versions: Vec<(ModelId, Arc<LoadedVersion>)>,
    has_thread: bool,
}

impl ModelControl {
    /// Lets versions that were served go, save those that still are.
    pub(super) fn retire(self: &Arc<Self>, id: &ModelId, old: Arc<Versions>, new: &Versions) {
        let is_kept =
            |number, version| new.get(number).is_some_and(|kept| kept.is_same_as(version));
        let ending = old.iter().filter(|(number, version)| !is_kept(number, version));
        let ending: Vec<_> = ending.map(|(_, version)| (id.clone(), version.clone())).collect();
        ending.iter().flat_map(|(_, it)| &it.agents).for_each(|agents| agents.unloading());
        let mut retiring = lock(&self.retiring);
        retiring.versions.extend(ending);
        drop(old);
        if retiring.versions.is_empty() || retiring.has_thread {
            return;
        }
        let control = self.clone();
        let started =
            thread::Builder::new().name("model-unload".into()).spawn(move || control.see_off());
        match started {
            Ok(_) => retiring.has_thread = true,
            // They are looked after when the next one retires.
            Err(error) => log::error!("cannot start a thread that unloads models: {error}"),
        }
    }

    fn see_off(self: Arc<Self>) {
        let (mut pause, longest) = PAUSES;
        let mut quiet_since = Instant::now();
        loop {
            let is_over = |(_, version): &mut (ModelId, Arc<LoadedVersion>)| version.is_last();
            let ended: Vec<_> = lock(&self.retiring).versions.extract_if(.., is_over).collect();
            pause = if ended.is_empty() { longest.min(pause * 2) } else { PAUSES.0 };
            for (id, version) in ended {
                let number = version.version;
                drop(version);
                self.ended(&id, number);
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= SETTLED {
                let mut retiring = lock(&self.retiring);
                if retiring.versions.is_empty() {
                    retiring.has_thread = false;
                    drop(retiring);
                    return give_back_free_pages();
                }
            }
            thread::sleep(pause);
        }
    }

    fn ended(&self, id: &ModelId, number: i64) {
        let is_same = |(other, version): &(ModelId, Arc<LoadedVersion>)| {
            other == id && version.version == number
        };
        // An older copy of the version may have ended before a newer one.
        if !lock(&self.retiring).versions.iter().any(is_same) {
            lock(&self.records).ended(id, number);
            log::info!("successfully unloaded '{id}' version {number}");
        }
    }
}
