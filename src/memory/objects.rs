use std::{fs::File, io, io::Write as _, ptr::NonNull};

use memmap2::{MmapOptions, MmapRaw};
use nix::{
    fcntl::OFlag,
    sys::{
        mman::{shm_open, shm_unlink},
        stat::Mode,
    },
};

use super::fault::Watch;

/// A POSIX shared-memory object of another process, all of it mapped.
pub struct SharedObject {
    key: String,
    // Before the map, which it must not outlive.
    watch: Watch,
    map: MmapRaw,
}

impl SharedObject {
    /// Maps the object of a name.
    ///
    /// # Errors
    /// When there is none, it is empty, or it cannot be mapped.
    pub fn open(key: &str) -> io::Result<Self> {
        let object = shm_open(key, OFlag::O_RDWR | OFlag::O_NONBLOCK, Mode::empty())?;
        let map = MmapOptions::new().map_raw(&object)?;
        let watch = Watch::begin(map.as_ptr().expose_provenance(), map.len())?;
        Ok(Self { key: key.to_owned(), watch, map })
    }

    /// Its name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether it has no bytes; it has.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Where it lies. Other processes can change its bytes at any time.
    pub fn first(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }

    /// Whether it was cut short while it was mapped, so that what was read may be zeros.
    pub fn is_cut_short(&self) -> bool {
        self.watch.is_cut_short()
    }
}

/// A POSIX shared-memory object of this process, which goes when it is dropped.
pub struct OwnObject {
    key: String,
}

impl OwnObject {
    /// Makes an object that holds `content`.
    ///
    /// # Errors
    /// When there is one of that name, or the system refuses.
    pub fn create(key: &str, content: &[u8]) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = shm_open(key, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let object = Self { key: key.to_owned() };
        File::from(file).write_all(content)?;
        Ok(object)
    }
}

impl Drop for OwnObject {
    fn drop(&mut self) {
        if let Err(error) = shm_unlink(self.key.as_str()) {
            log::warn!("cannot remove the shared-memory object '{}': {error}", self.key);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_object_holds_what_it_is_given_and_goes() {
        let key = format!("/nereid-object-test-{}", std::process::id());
        let object = OwnObject::create(&key, b"content").unwrap();
        let shared = SharedObject::open(&key).unwrap();
        assert_eq!((shared.len(), shared.is_cut_short()), (7, false));
        assert_eq!(std::fs::read(format!("/dev/shm{key}")).unwrap(), b"content");
        assert!(OwnObject::create(&key, b"x").is_err());
        drop(object);
        assert!(SharedObject::open(&key).is_err());
        assert_eq!(shared.len(), 7, "who has it mapped keeps it");
    }
}
