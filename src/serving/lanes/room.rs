use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Weak},
};

use super::{
    Fleet,
    journey::Journey,
    residence::{Kept, Residence},
};
use crate::{inference::Error, runtime::spawn};

/// What is kept on devices, and the batches for which it has to go to the host.
#[derive(Default)]
pub struct Room {
    /// On all devices; some of it may be gone.
    kept: RefCell<Vec<Weak<Kept>>>,
    /// Batches that wait for room on a device.
    waiting: RefCell<Vec<(Arc<Residence>, Journey)>>,
    /// Whether there is a task for them, and whether it is bringing something to the host just now.
    has_task: Cell<bool>,
    is_bringing: Cell<bool>,
}

impl Room {
    /// Takes note of what is kept.
    pub fn keep(&self, kept: &Arc<Kept>) {
        let mut all = self.kept.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|kept| kept.strong_count() > 0);
        }
        all.push(Arc::downgrade(kept));
    }

    /// Whether there could be more room on a device.
    pub fn can_be_made(&self, residence: &Residence) -> bool {
        self.is_bringing.get() || self.kept_on(residence.device).next().is_some()
    }

    fn kept_on(&self, device: usize) -> impl Iterator<Item = Arc<Kept>> {
        let all: Vec<_> = self.kept.borrow().clone();
        all.into_iter().filter_map(move |kept| kept.upgrade().filter(|it| it.lies_on(device)))
    }

    /// Brings all that is kept on a device to the host, for a batch.
    async fn bring(&self, residence: &Residence, journey: &Journey) -> Result<(), Error> {
        let Some(pool) = journey.pool() else { return Ok(()) };
        for kept in self.kept_on(residence.device) {
            kept.bring(&pool, |error| journey.of_device(error)).await?;
        }
        Ok(())
    }
}

/// Brings all that is kept on a device to the host, and has the batch depart again then.
pub fn make(fleet: &Arc<Fleet>, residence: &Arc<Residence>, journey: Journey) {
    let Some(driver) = fleet.driver.get() else { return };
    driver.room.waiting.borrow_mut().push((residence.clone(), journey));
    if driver.room.has_task.replace(true) {
        return;
    }
    let fleet = fleet.clone();
    spawn(&"making room on a device", async move {
        let Some(room) = fleet.driver.get().map(|driver| &driver.room) else { return };
        loop {
            let waiting = std::mem::take(&mut *room.waiting.borrow_mut());
            if waiting.is_empty() {
                break;
            }
            for (residence, journey) in waiting {
                room.is_bringing.set(true);
                let made = room.bring(&residence, &journey).await;
                room.is_bringing.set(false);
                match made {
                    Ok(()) => journey.depart(),
                    Err(error) => journey.fail(&error),
                }
            }
        }
        room.has_task.set(false);
    });
}
