use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    device::{Device, DeviceSlice, streams::Mover},
    observe::KeptTensors,
};

/// A device as a place where tensors of requests lie.
pub(super) struct Residence {
    /// The device's number.
    pub device: usize,
    /// What moves their bytes there.
    pub mover: Arc<Mover>,
    /// What the server may keep there at a time.
    budget: Arc<Budget>,
}

impl Residence {
    /// On a device of which the server's own tensors may take `limit` bytes. Blocks, so not for reactors.
    pub fn open(device: &dyn Device, limit: usize) -> Self {
        let budget = Arc::new(Budget { limit, used: AtomicUsize::new(0) });
        let device_number = device.properties().index;
        Self { device: device_number, mover: Arc::new(Mover::load(device)), budget }
    }

    /// What the server keeps there now.
    pub fn kept(&self) -> KeptTensors {
        let Budget { limit, used } = &*self.budget;
        let bytes = used.load(Ordering::Relaxed);
        KeptTensors { device: self.device, bytes, limit: *limit }
    }

    /// Leave to keep so many bytes there; `None` if that would be too many.
    pub fn charge(&self, bytes: usize) -> Option<Arc<Charge>> {
        let Budget { limit, used } = &*self.budget;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| sum <= limit);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Arc::new(Charge { budget: self.budget.clone(), bytes }))
    }
}

/// Bytes of a device, of which some are in use.
struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// Leave to keep bytes on a device, for as long as this is held.
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An input of a request that lies on its model's device.
#[derive(Clone)]
pub struct ResidentInput {
    /// Where.
    pub slice: DeviceSlice,
    /// Of memory that is the server's own, what it is charged to. All other is a client's, who may change
    /// it at any time.
    pub charge: Option<Arc<Charge>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::host::{HostDevice, HostSettings};

    #[test]
    fn no_more_is_kept_than_there_is_leave_for() {
        let device = HostDevice::start(HostSettings::default()).unwrap();
        let residence = Residence::open(&device, 250);
        let held = residence.charge(200).unwrap();
        assert_eq!(residence.kept(), KeptTensors { device: 0, bytes: 200, limit: 250 });
        let other = held.clone();
        assert!(residence.charge(51).is_none() && residence.charge(usize::MAX).is_none());
        drop(held);
        assert!(residence.charge(51).is_none());
        drop(other);
        assert_eq!(residence.kept().bytes, 0);
        assert!(residence.charge(250).is_some());
        assert!(Residence::open(&device, 0).charge(1).is_none());
    }
}
