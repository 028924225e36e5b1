use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use memmap2::{MmapOptions, MmapRaw};
use nix::{
    fcntl::OFlag,
    sys::{
        mman::shm_open,
        stat::{Mode, fstat},
    },
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    fault::Watch,
    view::{ClientMemory, ClientView},
};
use crate::inference::{Error, RegionRange};

/// The beginning of names that no client may register: they are those of Triton's Python back end.
const RESERVED: &str = "triton_python_backend_shm_region_";

/// The POSIX shared-memory regions that clients have registered.
///
/// Finding one takes no lock. A region that is unregistered stays mapped until the last request that
/// uses it has been answered.
pub struct Regions {
    allowed: bool,
    named: ArcSwap<Named>,
    /// Names that regions elsewhere have. Held while regions come or go.
    change: Mutex<FxHashSet<Arc<str>>>,
}

type Named = FxHashMap<Arc<str>, Arc<Region>>;

/// A registered region.
pub struct Region {
    /// The name that requests use.
    pub name: Arc<str>,
    /// The name of the shared-memory object.
    pub key: String,
    /// Where in the object it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub byte_size: u64,
    /// The device and the number of the object, which has several names if it is linked to.
    object: (u64, u64),
    // Before the map, which it must not outlive.
    watch: Watch,
    map: MmapRaw,
}

/// A part of a region.
pub type RegionView = ClientView<Region>;

impl Regions {
    /// No regions yet. Unless `allowed`, none can be registered.
    pub fn new(allowed: bool) -> Self {
        Self { allowed, named: ArcSwap::default(), change: Mutex::default() }
    }

    /// Maps `byte_size` bytes of the shared-memory object `key` from `offset` on, under `name`.
    ///
    /// # Errors
    /// When the name is taken or reserved, there is no such object, or it is too small.
    pub fn register(
        &self,
        name: &str,
        key: &str,
        offset: u64,
        byte_size: u64,
    ) -> Result<(), Error> {
        self.check_allowed()?;
        if key.trim_start_matches('/').starts_with(RESERVED) {
            return Err(Error::malformed(format!(
                "cannot register shared memory region '{name}' with key '{key}': keys that begin \
                 with '{RESERVED}' are reserved"
            )));
        }
        let elsewhere = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = Named::clone(&self.named.load());
        if named.contains_key(name) || elsewhere.contains(name) {
            return Err(Error::RegionExists { name: name.to_owned() });
        }
        let region = Region::map(name, key, offset, byte_size)?;
        named.insert(region.name.clone(), Arc::new(region));
        self.named.store(Arc::new(named));
        Ok(())
    }

    /// Takes a name for a region that is not the host's.
    ///
    /// # Errors
    /// When the name is taken, or clients may not.
    pub fn reserve(&self, name: &str) -> Result<(), Error> {
        self.check_allowed()?;
        let mut elsewhere = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.named.load().contains_key(name) || !elsewhere.insert(name.into()) {
            return Err(Error::RegionExists { name: name.to_owned() });
        }
        Ok(())
    }

    /// Gives a name back that was reserved.
    pub fn release(&self, name: &str) {
        self.change.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Forgets the region `name`, if there is one.
    pub fn unregister(&self, name: &str) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = Named::clone(&self.named.load());
        named.remove(name);
        self.named.store(Arc::new(named));
    }

    /// Forgets all regions.
    pub fn unregister_all(&self) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.named.store(Arc::default());
    }

    /// All regions, by name.
    pub fn all(&self) -> Vec<Arc<Region>> {
        let mut all: Vec<_> = self.named.load().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The bytes that a request names.
    ///
    /// # Errors
    /// When there is no such region, or the bytes do not lie within it.
    pub fn view(&self, range: &RegionRange) -> Result<RegionView, Error> {
        let name = range.region.as_str();
        let Some(region) = self.named.load().get(name).cloned() else {
            self.check_allowed()?;
            return Err(Error::UnknownRegion { kind: "", name: name.to_owned() });
        };
        let within = range.within(region.byte_size)?;
        Ok(RegionView::new(region, within.start, within.len()))
    }

    fn check_allowed(&self) -> Result<(), Error> {
        if self.allowed {
            return Ok(());
        }
        Err(Error::Unsupported {
            detail: "clients may not use shared memory on this server: start it with \
                     --allow-client-shm=true"
                .to_owned(),
        })
    }
}

impl Region {
    fn map(name: &str, key: &str, offset: u64, byte_size: u64) -> Result<Self, Error> {
        let object = open(key).ok_or_else(|| Error::UnopenableRegion { key: key.to_owned() })?;
        let refused = |why: &str| {
            Error::malformed(format!("failed to register shared memory region '{name}': {why}"))
        };
        let unmappable = || refused("unable to process address spaceInvalid argument");
        let end = offset.checked_add(byte_size).ok_or_else(unmappable)?;
        if byte_size == 0 || !offset.is_multiple_of(page_size()) {
            return Err(unmappable());
        }
        let found = fstat(&object).map_err(|error| refused(error.desc()))?;
        if u64::try_from(found.st_size).unwrap_or(0) < end {
            return Err(refused("invalid args"));
        }
        let len = usize::try_from(byte_size).map_err(|_| unmappable())?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw(&object);
        let map = map.map_err(|error| refused(&error.to_string()))?;
        let start = map.as_ptr().expose_provenance();
        let watch = Watch::begin(start, len).map_err(|error| refused(&error.to_string()))?;
        let object = (found.st_dev, found.st_ino);
        Ok(Self { name: name.into(), key: key.to_owned(), offset, byte_size, object, watch, map })
    }
}

/// Opens a shared-memory object that exists, without waiting for anyone and without following links.
fn open(key: &str) -> Option<OwnedFd> {
    shm_open(key, OFlag::O_RDWR | OFlag::O_NONBLOCK, Mode::empty()).ok()
}

fn page_size() -> u64 {
    // SAFETY: it takes no pointer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

impl ClientMemory for Region {
    fn pointer(&self, at: usize, _: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(at)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl RegionView {
    /// Whether the region kept its pages: where the client cut it short while it was in use, or the system
    /// had none for what nobody had written before, what was read may be zeros and what was written is lost.
    ///
    /// # Errors
    /// Says so, with the region's name.
    pub fn check_whole(&self) -> Result<(), Error> {
        let Region { watch, name, .. } = self.memory();
        match watch.is_cut_short() {
            true => Err(Error::malformed(format!(
                "shared memory region '{name}' was truncated while it was in use, or the system had no \
                 memory left for it"
            ))),
            false => Ok(()),
        }
    }

    /// Whether a byte of both is the same one, be it by way of two regions of one object.
    pub fn overlaps(&self, other: &Self) -> bool {
        let start = |view: &Self| view.memory().offset + view.at() as u64;
        self.memory().object == other.memory().object
            && start(self) < start(other) + other.len() as u64
            && start(other) < start(self) + self.len() as u64
    }

    /// Whether `bytes` lie in the view's region.
    pub fn is_home_of(&self, bytes: &[u8]) -> bool {
        let map = &self.memory().map;
        let start = map.as_ptr().addr();
        (start..start + map.len()).contains(&bytes.as_ptr().addr())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use nix::{sys::mman::shm_unlink, unistd::ftruncate};

    use super::*;
    use crate::memory::BufferPool;

    /// A shared-memory object that goes with the test.
    struct Object(String, OwnedFd);

    impl Object {
        fn new(name: &str, bytes: i64) -> Self {
            let key = format!("/nereid-test-{name}-{}", std::process::id());
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
            let object = shm_open(key.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            ftruncate(&object, bytes).unwrap();
            Self(key, object)
        }
    }

    impl Drop for Object {
        fn drop(&mut self) {
            let _ = shm_unlink(self.0.as_str());
        }
    }

    fn range(region: &str, offset: u64, byte_size: u64) -> RegionRange {
        RegionRange { region: region.into(), offset, byte_size }
    }

    #[test]
    fn views_lie_within_their_region() {
        let object = Object::new("views", 8192);
        let regions = Regions::new(true);
        regions.register("r", &object.0, 4096, 64).unwrap();
        for (offset, size, good) in [
            (0, 64, true),
            (60, 4, true),
            (60, 5, false),
            (64, 0, false),
            (0, 65, false),
            (u64::MAX, 1, false),
            (8, u64::MAX, false),
        ] {
            assert_eq!(regions.view(&range("r", offset, size)).is_ok(), good, "{offset} {size}");
        }
        let view = regions.view(&range("r", 8, 4)).unwrap();
        view.write(&[1, 2, 3]);
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        assert_eq!(view.copied(&pool).unwrap()[..], [1, 2, 3, 0]);
        regions.unregister("r");
        assert!(regions.view(&range("r", 8, 4)).is_err());
        assert_eq!(view.in_place()[..], [1, 2, 3, 0], "a view outlives the registration");
    }

    #[test]
    fn what_cannot_be_registered_is_refused() {
        let object = Object::new("refused", 8192);
        let regions = Regions::new(true);
        let register = |key: &str, offset, size| regions.register("r", key, offset, size);
        for (key, offset, size, expected) in [
            (object.0.as_str(), 0, 8193, "invalid args"),
            (&object.0, 8192, 8, "invalid args"),
            (&object.0, 0, 0, "unable to process address space"),
            (&object.0, 64, 64, "unable to process address space"),
            (&object.0, u64::MAX - 7, 16, "unable to process address space"),
            ("/nereid-test-absent", 0, 8, "Unable to open"),
            ("", 0, 8, "Unable to open"),
            ("/a/../b", 0, 8, "Unable to open"),
            ("/triton_python_backend_shm_region_1", 0, 8, "reserved"),
        ] {
            let error = register(key, offset, size).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        register(&object.0, 0, 8).unwrap();
        assert_eq!(
            register(&object.0, 0, 8).unwrap_err(),
            Error::RegionExists { name: "r".into() }
        );
        let closed = Regions::new(false).register("r", &object.0, 0, 8).unwrap_err();
        assert!(closed.to_string().contains("--allow-client-shm=true"));
    }

    #[test]
    fn a_region_that_is_cut_short_is_an_error_and_no_end() {
        let object = Object::new("cut", 1 << 20);
        let regions = Regions::new(true);
        regions.register("cut", &object.0, 0, 1 << 20).unwrap();
        let whole = Object::new("whole", 4096);
        regions.register("whole", &whole.0, 0, 4096).unwrap();
        let view = regions.view(&range("cut", 0, 1 << 20)).unwrap();
        view.write(&[7; 1 << 20]);
        view.check_whole().unwrap();
        ftruncate(&object.1, 4096).unwrap();
        let pool = BufferPool::new(4 << 20, 4 << 20).unwrap();
        view.copied(&pool).unwrap();
        let error = view.check_whole().unwrap_err().to_string();
        assert!(error.contains("'cut' was truncated"), "{error}");
        view.write(&[7; 8]);
        regions.view(&range("whole", 0, 4096)).unwrap().check_whole().unwrap();
    }
}
