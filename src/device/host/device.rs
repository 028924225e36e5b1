use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{
    HostSettings,
    allocation::Supply,
    engines::{ENGINES, Engines},
    faults::{Dice, Fault, FaultKind},
    operation::Operation,
    stream::{HostEvent, HostStream},
};
use crate::{
    device::{
        Device, DeviceError, DeviceMemory, DeviceProperties, Event, ExportedMemory, IpcHandle,
        Kernel, KernelSource, Stream, Urgency,
    },
    inference::Timestamp,
    memory::{OwnObject, SharedObject},
};

/// A device whose work the host does.
pub struct HostDevice {
    pub(super) properties: DeviceProperties,
    pub(super) owner: Arc<Owner>,
}

/// What a device, its streams and its events share.
pub(super) struct Core {
    pub settings: HostSettings,
    pub supply: Arc<Supply>,
    engines: Mutex<Engines>,
    dice: Mutex<Dice>,
    lost: OnceLock<DeviceError>,
    pub clock: Clock,
    /// One for each engine, which waits for it when it has nothing to run.
    pub work: [Condvar; 4],
    /// Nothing more can come, for nobody holds a handle.
    pub abandoned: AtomicBool,
}

/// What time it is on a device.
#[derive(Clone)]
pub(super) enum Clock {
    Real,
    Virtual(Arc<AtomicU64>),
}

/// Held by all who could give the device work.
pub(super) struct Owner(pub Arc<Core>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
        let engines = self.0.engines();
        self.0.work.iter().for_each(Condvar::notify_all);
        drop(engines);
    }
}

impl Core {
    pub fn new(settings: HostSettings, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            supply: Arc::new(Supply::new(settings.index, settings.memory_bytes)),
            engines: Mutex::default(),
            dice: Mutex::new(Dice::new(settings.faults.clone())),
            lost: OnceLock::new(),
            clock,
            work: Default::default(),
            abandoned: AtomicBool::new(false),
            settings,
        })
    }

    pub fn now(&self) -> Timestamp {
        match &self.clock {
            Clock::Real => Timestamp::now(),
            Clock::Virtual(nanos) => Timestamp::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    pub fn engines(&self) -> MutexGuard<'_, Engines> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the engines' state, and wakes those that have work now.
    pub fn change<T>(&self, change: impl FnOnce(&mut Engines, Timestamp) -> T) -> T {
        let mut engines = self.engines();
        let result = change(&mut engines, self.now());
        for engine in ENGINES {
            if engines.has_work(engine) {
                self.work[engine as usize].notify_one();
            }
        }
        result
    }

    pub fn lost(&self) -> Option<&DeviceError> {
        self.lost.get()
    }

    pub fn lose(&self, reason: &str) -> DeviceError {
        let (device, reason) = (self.settings.index, reason.to_owned());
        self.lost.get_or_init(|| DeviceError::Lost { device, reason }).clone()
    }

    pub fn strike(&self, kind: FaultKind) -> Option<Fault> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).roll(kind)
    }

    /// Does an operation, unless a fault strikes it or the device is lost.
    pub fn perform(&self, operation: &mut Operation) -> Result<(), DeviceError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        let device = self.settings.index;
        match operation.fault_kind().and_then(|kind| self.strike(kind)) {
            Some(Fault::Lose) => Err(self.lose("an injected fault")),
            Some(Fault::Fail) => Err(operation.struck(device)),
            None => operation.perform(device),
        }
    }
}

impl HostDevice {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let properties = DeviceProperties {
            index: core.settings.index,
            name: "host".to_owned(),
            memory_bytes: core.settings.memory_bytes,
            compute_capability: None,
            wants_pinned: false,
        };
        Self { properties, owner: Arc::new(Owner(core)) }
    }

    fn core(&self) -> &Arc<Core> {
        &self.owner.0
    }

    fn ready(&self) -> Result<&Arc<Core>, DeviceError> {
        self.core().lost().map_or(Ok(self.core()), |lost| Err(lost.clone()))
    }

    /// Loses the device, as an illegal access of a kernel does.
    pub fn lose(&self, reason: &str) {
        self.core().lose(reason);
    }

    /// Whether no operation waits or runs.
    pub fn is_idle(&self) -> bool {
        self.core().engines().is_empty()
    }
}

/// What handles of a host device's memory begin with; the name of a POSIX shared-memory object and
/// zeros follow.
const HANDLE: &[u8] = b"nereid-host-shm\0";

/// The object that a handle names.
fn named(handle: &IpcHandle) -> Result<&str, String> {
    let unknown = || "invalid argument".to_owned();
    let name = handle.0.strip_prefix(HANDLE).ok_or_else(unknown)?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    std::str::from_utf8(name.get(..end).unwrap_or_default()).map_err(|_| unknown())
}

impl Device for HostDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        let core = self.ready()?;
        match core.strike(FaultKind::Allocation) {
            Some(Fault::Lose) => Err(core.lose("an injected fault")),
            Some(Fault::Fail) => Err(core.supply.out_of_memory(bytes)),
            None => Ok(DeviceMemory::new(Arc::new(core.supply.take(bytes)?))),
        }
    }

    fn open_shared(&self, handle: IpcHandle) -> Result<DeviceMemory, DeviceError> {
        let core = self.ready()?;
        let opened = named(&handle).and_then(|key| {
            SharedObject::open(key).map_err(|error| format!("the object '{key}': {error}"))
        });
        let device = core.settings.index;
        let object = opened.map_err(|reason| DeviceError::Shared { device, reason })?;
        Ok(DeviceMemory::new(Arc::new(core.supply.lend(object))))
    }

    fn share(&self, content: &[u8]) -> Result<ExportedMemory, DeviceError> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let device = self.ready()?.settings.index;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let key = format!("/nereid-{}-{number}", std::process::id());
        let object = OwnObject::create(&key, content).map_err(|error| DeviceError::Shared {
            device,
            reason: format!("the object '{key}' cannot be made: {error}"),
        })?;
        let mut handle = [0; IpcHandle::BYTES];
        handle[..HANDLE.len()].copy_from_slice(HANDLE);
        handle[HANDLE.len()..][..key.len()].copy_from_slice(key.as_bytes());
        Ok(ExportedMemory { handle: IpcHandle(handle), _memory: Box::new(object) })
    }

    fn free_bytes(&self) -> usize {
        self.core().supply.free()
    }

    fn stream(&self, urgency: Urgency) -> Result<Box<dyn Stream>, DeviceError> {
        self.ready()?;
        Ok(Box::new(HostStream::open(self.owner.clone(), urgency)))
    }

    fn event(&self) -> Result<Event, DeviceError> {
        self.ready()?;
        Ok(Event(Arc::new(HostEvent::open(self.owner.clone()))))
    }

    fn kernel(&self, source: &KernelSource) -> Result<Kernel, DeviceError> {
        let device = self.ready()?.settings.index;
        let Some(twin) = &source.twin else {
            let reason = "it has no twin for the host".to_owned();
            let kernel = source.name.to_string();
            return Err(DeviceError::Kernel { device, kernel, reason });
        };
        Ok(Kernel { name: source.name.clone(), device, code: Arc::new(twin.clone()) })
    }

    fn lost(&self) -> Option<DeviceError> {
        self.core().lost().cloned()
    }
}
