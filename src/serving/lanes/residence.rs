use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    device::{
        Device, DeviceError, DeviceSlice,
        streams::{Mover, Rows},
    },
    inference::Error,
    memory::BufferPool,
    observe::{Fallback, KeptTensors, ModelStatistics},
    runtime::current,
    serving::porter::Porter,
};

/// A device as a place where tensors of requests lie.
pub(super) struct Residence {
    /// The device's number.
    pub device: usize,
    /// What moves their bytes there.
    pub mover: Arc<Mover>,
    /// What brings them to the host.
    porter: Arc<Porter>,
    /// What the server may keep there at a time.
    budget: Arc<Budget>,
    /// The batches for which there was no room.
    short: AtomicUsize,
}

impl Residence {
    /// On a device, with its porter, of which the server's own tensors may take `limit` bytes. Blocks, so not
    /// for reactors.
    pub fn open(device: &dyn Device, porter: Arc<Porter>, limit: usize) -> Self {
        Self {
            device: device.properties().index,
            mover: Arc::new(Mover::load(device)),
            porter,
            budget: Arc::new(Budget { limit, used: AtomicUsize::new(0) }),
            short: AtomicUsize::new(0),
        }
    }

    /// What the server keeps there now.
    pub fn kept(&self) -> KeptTensors {
        let Budget { limit, used } = &*self.budget;
        let bytes = used.load(Ordering::Relaxed);
        KeptTensors { device: self.device, bytes, limit: *limit }
    }

    /// Leave to keep so many bytes there.
    ///
    /// # Errors
    /// When that would be too many, or a batch has too little room as it is.
    pub fn charge(&self, bytes: usize) -> Result<Arc<Charge>, Fallback> {
        if self.short.load(Ordering::Relaxed) > 0 {
            return Err(Fallback::Memory);
        }
        let Budget { limit, used } = &*self.budget;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| sum <= limit);
        let charged = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        charged.map_err(|_| Fallback::Budget)?;
        Ok(Arc::new(Charge { budget: self.budget.clone(), bytes }))
    }

    /// Has nothing more kept there until this is dropped.
    pub fn shortage(self: &Arc<Self>) -> Shortage {
        self.short.fetch_add(1, Ordering::Relaxed);
        Shortage(self.clone())
    }
}

/// A batch for which a device has had no room, for as long as it is on its way.
pub struct Shortage(Arc<Residence>);

impl Drop for Shortage {
    fn drop(&mut self) {
        self.0.short.fetch_sub(1, Ordering::Relaxed);
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

/// Memory of a device that the server keeps for requests to come: on the device, until that has no room for
/// a batch.
pub(super) struct Kept {
    residence: Arc<Residence>,
    statistics: Arc<ModelStatistics>,
    bytes: ArcSwap<KeptBytes>,
}

enum KeptBytes {
    There { memory: DeviceSlice, _charge: Arc<Charge> },
    Here(Bytes),
}

impl Kept {
    /// What a batch of the model of these `statistics` has left in `memory`.
    pub fn new(
        residence: &Arc<Residence>,
        statistics: &Arc<ModelStatistics>,
        memory: DeviceSlice,
        charge: &Arc<Charge>,
    ) -> Self {
        let bytes = ArcSwap::from_pointee(KeptBytes::There { memory, _charge: charge.clone() });
        Self { residence: residence.clone(), statistics: statistics.clone(), bytes }
    }

    /// Whether it is on a device still, and of this number.
    pub fn lies_on(&self, device: usize) -> bool {
        self.residence.device == device && matches!(**self.bytes.load(), KeptBytes::There { .. })
    }

    /// Brings it to the host, and counts that. To be called on a reactor, the lanes'.
    ///
    /// # Errors
    /// When the host's memory is used up, or, as `failed` says it, the device fails.
    pub async fn bring(
        &self,
        pool: &BufferPool,
        failed: impl FnOnce(&DeviceError) -> Error,
    ) -> Result<(), Error> {
        let KeptBytes::There { memory, .. } = &*self.bytes.load_full() else { return Ok(()) };
        let fetched = self.residence.porter.fetch(memory, pool.allocate(memory.len())?).await;
        let here = fetched.map_err(|error| failed(&error))?;
        self.bytes.store(Arc::new(KeptBytes::Here(here)));
        self.statistics.fell_back(current().index(), Fallback::Memory);
        Ok(())
    }
}

/// An input of a request that lies on its model's device.
#[derive(Clone)]
pub struct ResidentInput {
    memory: InputMemory,
    range: Range<usize>,
}

#[derive(Clone)]
enum InputMemory {
    /// A client's, who may change it at any time.
    Client(DeviceSlice),
    Kept(Arc<Kept>),
}

impl ResidentInput {
    /// In memory of a client's.
    pub fn of_client(slice: DeviceSlice) -> Self {
        Self { range: 0..slice.len(), memory: InputMemory::Client(slice) }
    }

    /// A part of what is kept.
    pub(super) fn kept(kept: Arc<Kept>, range: Range<usize>) -> Self {
        Self { memory: InputMemory::Kept(kept), range }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether nobody changes it.
    pub fn is_kept(&self) -> bool {
        matches!(self.memory, InputMemory::Kept(_))
    }

    /// Where its rows are now.
    ///
    /// # Errors
    /// When it is longer than what it is a part of.
    pub fn rows(&self) -> Result<Rows, DeviceError> {
        match &self.memory {
            InputMemory::Client(slice) => Ok(Rows::Lie(slice.clone())),
            InputMemory::Kept(kept) => match &**kept.bytes.load() {
                KeptBytes::There { memory, .. } => Ok(Rows::Lie(memory.slice(self.range.clone())?)),
                KeptBytes::Here(bytes) => Ok(Rows::Come(bytes.slice(self.range.clone()))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::{
        device::host::{HostDevice, HostSettings},
        runtime::{Reactors, spawn},
        serving::porter::Porters,
    };

    fn residence(limit: usize) -> (HostDevice, Arc<Residence>) {
        let device = HostDevice::start(HostSettings::default()).unwrap();
        let porter = Porters::default().of(&device).unwrap();
        let residence = Residence::open(&device, porter, limit);
        (device, Arc::new(residence))
    }

    #[test]
    fn no_more_is_kept_than_there_is_leave_for() {
        let (_device, residence) = residence(250);
        let held = residence.charge(200).ok().unwrap();
        assert_eq!(residence.kept(), KeptTensors { device: 0, bytes: 200, limit: 250 });
        let other = held.clone();
        let why = |bytes| residence.charge(bytes).err();
        assert_eq!((why(51), why(usize::MAX)), (Some(Fallback::Budget), Some(Fallback::Budget)));
        drop(held);
        assert_eq!(why(51), Some(Fallback::Budget));
        drop(other);
        assert_eq!((residence.kept().bytes, why(250)), (0, None));
        let (one, another) = (residence.shortage(), residence.shortage());
        drop(one);
        assert_eq!(why(1), Some(Fallback::Memory));
        drop(another);
        assert_eq!(why(1), None);
    }

    #[test]
    fn what_is_kept_comes_to_the_host_for_all_who_have_a_part_of_it() {
        let (device, residence) = residence(1000);
        let free = device.free_bytes();
        let memory = device.allocate(600).unwrap().whole();
        let content: Vec<u8> = (0..600).map(|at| (at * 7 % 251) as u8).collect();
        let charge = residence.charge(600).ok().unwrap();
        let statistics = ModelStatistics::new([true].into_iter(), 1, &Default::default());
        let kept = Arc::new(Kept::new(&residence, &Arc::new(statistics), memory.clone(), &charge));
        drop(charge);
        let parts = [0..200, 200..600].map(|part| ResidentInput::kept(kept.clone(), part));
        let lie = |input: &ResidentInput| match input.rows().unwrap() {
            Rows::Lie(place) => Some(place.range()),
            _ => None,
        };
        assert_eq!(parts.each_ref().map(lie), [Some(0..200), Some(200..600)]);
        assert!(kept.lies_on(0) && !kept.lies_on(1));
        let reactors = Reactors::of_test(1);
        let (tell, told) = mpsc::channel();
        let (home, pool) = (&reactors.handles()[0], BufferPool::new(1 << 20, 1 << 20).unwrap());
        let (brought, from) = (kept.clone(), content.clone());
        let bring = move || {
            spawn(&"a test", async move {
                let stored = brought.residence.porter.store(from.into(), memory).await;
                tell.send((stored.is_ok(), brought.bring(&pool, |_| Error::Cancelled).await))
                    .unwrap();
            });
        };
        home.send(Box::new(bring)).ok().unwrap();
        let (stored, brought) = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(stored && brought.is_ok());
        let come = |input: &ResidentInput| match input.rows().unwrap() {
            Rows::Come(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(parts.each_ref().map(come), [&content[..200], &content[200..]]);
        assert!(!kept.lies_on(0) && parts.iter().all(ResidentInput::is_kept));
        // The device has its memory back, and the server its leave.
        assert_eq!((device.free_bytes(), residence.kept().bytes), (free, 0));
    }
}
