//! Memory of devices that clients have registered, and the ways of its bytes: to and from models on the
//! same device without the host, and through copies of its own for all others.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use compact_str::CompactString;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::porter::{Porter, Porters};
use crate::{
    device::{DeviceError, DeviceMemory, DeviceSlice, Devices, IpcHandle, OpenedMemory},
    inference::{Error, RegionRange},
    memory::{BufferPool, Regions},
};

/// The memory of GPUs that clients have registered. Finding a region takes no lock; one that is
/// unregistered stays open until the last request that uses it has been answered.
pub struct DeviceRegions {
    devices: Arc<Devices>,
    named: ArcSwap<Named>,
    opened: OpenedMemory,
    porters: Arc<Porters>,
    /// Locked while regions come or go.
    changes: Mutex<()>,
}

type Named = FxHashMap<Arc<str>, Arc<DeviceRegion>>;

/// A registered region.
pub struct DeviceRegion {
    /// The name that requests use.
    pub name: Arc<str>,
    /// The device that it is on.
    pub device: usize,
    /// Its length in bytes.
    pub byte_size: u64,
    memory: DeviceMemory,
    porter: Arc<Porter>,
}

/// A part of a region, which it keeps open.
#[derive(Clone)]
pub struct DeviceView {
    region: Arc<DeviceRegion>,
    slice: DeviceSlice,
}

impl fmt::Debug for DeviceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{:?}]", self.region.name, self.slice.range())
    }
}

/// Tensors of a request that lie on the device that its model runs on, by name.
#[derive(Default)]
pub struct DeviceTensors {
    /// Inputs; the request says how long they are.
    pub inputs: SmallVec<[(CompactString, DeviceView); 1]>,
    /// Where outputs are to go.
    pub outputs: SmallVec<[(CompactString, DeviceView); 1]>,
}

impl DeviceRegions {
    /// None yet, on these devices, which have these porters.
    pub(super) fn new(devices: Arc<Devices>, porters: Arc<Porters>) -> Self {
        let (named, opened) = (ArcSwap::default(), OpenedMemory::default());
        Self { devices, named, opened, porters, changes: Mutex::default() }
    }

    /// Opens `byte_size` bytes of what another process shares by `handle`, under a name that no region
    /// of the `host` has. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When there is no such device, clients may not, the name is taken, or the device refuses.
    pub fn register(
        &self,
        host: &Regions,
        name: &str,
        handle: IpcHandle,
        device: i64,
        byte_size: u64,
    ) -> Result<(), Error> {
        let refused = |why: String| {
            Error::malformed(format!("failed to register shared memory region '{name}': {why}"))
        };
        if self.devices.all().is_err() {
            return Err(refused(format!(
                "this server uses no GPU, so there is no device {device}"
            )));
        }
        let _change = self.change();
        host.reserve(name)?;
        let opened = usize::try_from(device)
            .map_err(|_| format!("there is no device {device}"))
            .and_then(|number| self.devices.get(number))
            .and_then(|there| {
                let memory =
                    self.opened.open(&**there, handle).map_err(|error| error.to_string())?;
                let porter = self.porters.of(&**there).map_err(|error| error.to_string())?;
                Ok((memory, porter))
            })
            .and_then(|(memory, porter)| match memory.size() as u64 >= byte_size {
                true => Ok((memory, porter)),
                false => Err(format!(
                    "its handle leads to {} bytes, expected {byte_size} at least",
                    memory.size()
                )),
            });
        let (memory, porter) = opened.map_err(|why| {
            host.release(name);
            refused(why)
        })?;
        let (name, device): (Arc<str>, _) = (name.into(), memory.device());
        let region = DeviceRegion { name: name.clone(), device, byte_size, memory, porter };
        let mut named = Named::clone(&self.named.load());
        named.insert(name, Arc::new(region));
        self.named.store(Arc::new(named));
        Ok(())
    }

    /// Forgets the region `name`, or all of them when it is empty.
    pub fn unregister(&self, host: &Regions, name: &str) {
        let _change = self.change();
        let mut named = Named::clone(&self.named.load());
        let gone = |region: &Arc<str>| name.is_empty() || **region == *name;
        named.keys().filter(|region| gone(region)).for_each(|region| host.release(region));
        named.retain(|region, _| !gone(region));
        self.named.store(Arc::new(named));
    }

    /// All regions, by name.
    pub fn all(&self) -> Vec<Arc<DeviceRegion>> {
        let mut all: Vec<_> = self.named.load().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The bytes that a request names; `None` if no region of a device has that name.
    ///
    /// # Errors
    /// When the bytes do not lie within the region.
    pub fn view(&self, range: &RegionRange) -> Result<Option<DeviceView>, Error> {
        let Some(region) = self.named.load().get(range.region.as_str()).cloned() else {
            return Ok(None);
        };
        let Range { start, end } = range.within(region.byte_size)?;
        let slice = region.memory.slice(start..end).map_err(|error| region.failed(&error))?;
        Ok(Some(DeviceView { region, slice }))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceRegion {
    fn failed(&self, error: &DeviceError) -> Error {
        Error::Internal { detail: format!("shared memory region '{}': {error}", self.name) }
    }
}

impl DeviceView {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// The device that it is on.
    pub fn device(&self) -> usize {
        self.region.device
    }

    /// The bytes on the device.
    pub fn slice(&self) -> &DeviceSlice {
        &self.slice
    }

    /// Whether a byte of both is the same one.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.slice.overlaps(&other.slice)
    }

    /// A copy of the bytes on the host. To be called on a reactor.
    ///
    /// # Errors
    /// When memory is used up, or the device fails.
    pub async fn fetch(&self, pool: &BufferPool) -> Result<Bytes, Error> {
        let to = pool.allocate(self.len())?;
        let fetched = self.region.porter.fetch(&self.slice, to).await;
        fetched.map_err(|error| self.region.failed(&error))
    }

    /// Copies bytes of the host, at most as many as the view has, to its start. To be called on a
    /// reactor.
    ///
    /// # Errors
    /// When there are more, or the device fails.
    pub async fn store(&self, from: Bytes) -> Result<(), Error> {
        let to = self.slice.slice(0..from.len()).map_err(|error| self.region.failed(&error))?;
        let stored = self.region.porter.store(from, to).await;
        stored.map_err(|error| self.region.failed(&error))
    }
}
