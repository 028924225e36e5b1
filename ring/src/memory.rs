//! The file behind the memory: made and sealed by the server, mapped by both.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU32,
};

/// A file that cannot grow, shrink or lose its seals: what was mapped of it stays.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

const NAME: &CStr = c"nereid-ring";

/// Why the memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The system refuses.
    #[error("cannot {what} {bytes} bytes of the ring's memory: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// With how much.
        bytes: usize,
        /// Why not.
        source: io::Error,
    },
    /// The file could be cut short while it is used.
    #[error("the ring's memory is not sealed: expected seals {SEALS:#x}, got {got:#x}")]
    Unsealed {
        /// Its seals.
        got: libc::c_int,
    },
}

/// A shared mapping of the whole file. The other side can change any byte at any time, so it is only
/// read by copying, by atomic words, or by those who can bear any bits.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory; nothing ties it to a thread.
unsafe impl Send for Memory {}
// SAFETY: what is not atomic is written by pointer only, by whoever was given the range.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes a sealed file of `len` bytes of zeros and maps it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(len: usize) -> Result<(Self, OwnedFd), MemoryError> {
        let failed = |what| {
            let source = io::Error::last_os_error();
            MemoryError::System { what, bytes: len, source }
        };
        // SAFETY: the name is a C string.
        let descriptor = unsafe {
            libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if descriptor < 0 {
            return Err(failed("make"));
        }
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let length = libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX);
        // SAFETY: these take no pointers.
        if unsafe { libc::ftruncate(descriptor, length) } != 0 {
            return Err(failed("reserve"));
        }
        // SAFETY: as above.
        if unsafe { libc::fcntl(descriptor, libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(failed("seal"));
        }
        let memory = Self::map_whole(&file, len)?;
        Ok((memory, file))
    }

    /// Maps a file that the server has made, which must be sealed.
    ///
    /// # Errors
    /// When it is not, is not so long, or the system refuses.
    pub fn map(file: BorrowedFd<'_>, len: usize) -> Result<Self, MemoryError> {
        // SAFETY: it takes no pointer.
        let got = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if got & SEALS != SEALS {
            return Err(MemoryError::Unsealed { got });
        }
        // SAFETY: the descriptor is open; a file offset is only told.
        let size = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
        if usize::try_from(size).ok() != Some(len) {
            let source = io::Error::other(format!("the file has {size}"));
            return Err(MemoryError::System { what: "map", bytes: len, source });
        }
        Self::map_whole(&file, len)
    }

    fn map_whole(file: &impl AsRawFd, len: usize) -> Result<Self, MemoryError> {
        // SAFETY: a new mapping, where the system chooses, of an open file; it overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(MemoryError::System { what: "map", bytes: len, source });
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| {
            let source = io::Error::other("the system mapped it at address 0");
            MemoryError::System { what: "map", bytes: len, source }
        })?;
        Ok(Self { start, len })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The word at a multiple of four.
    ///
    /// # Panics
    /// When there is none.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        let pointer = self.pointer(at, size_of::<u32>()).cast::<u32>();
        assert!(pointer.is_aligned(), "a word lies at a multiple of four");
        // SAFETY: the word lies within the mapping, which lives as long as `self`, and is aligned. This
        // side uses it by atomic operations only; what the other does to it are single writes.
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// Copies the bytes from `at` on. Should the other side write meanwhile, they are a mixture of its
    /// own bytes.
    ///
    /// # Panics
    /// When they do not lie within the memory.
    pub fn read(&self, at: usize, target: &mut [u8]) {
        let source = self.pointer(at, target.len());
        // SAFETY: the bytes lie within the mapping, and `target` is ours, so apart from it.
        unsafe { std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len()) };
    }

    /// Copies `bytes`, which may lie in this memory too, to `at`.
    ///
    /// # Panics
    /// When they do not fit there.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let target = self.pointer(at, bytes.len());
        // SAFETY: the place lies within the mapping, which is writable; `copy` allows overlap.
        unsafe { std::ptr::copy(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Where the `length` bytes from `at` on lie.
    ///
    /// # Panics
    /// When they do not lie within the memory.
    pub fn pointer(&self, at: usize, length: usize) -> *mut u8 {
        let end = at.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.len), "{length} bytes at {at} of {}", self.len);
        // SAFETY: the place lies within the mapping.
        unsafe { self.start.as_ptr().add(at) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrows from it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn both_sides_see_the_same_and_none_can_change_its_size() {
        let (ours, file) = Memory::create(8192).unwrap();
        let theirs = Memory::map(file.as_fd(), 8192).unwrap();
        ours.write(100, b"triton");
        let mut seen = [0; 6];
        theirs.read(100, &mut seen);
        assert_eq!(&seen, b"triton");
        theirs.word(4096).store(7, Ordering::Relaxed);
        assert_eq!(ours.word(4096).load(Ordering::Relaxed), 7);
        for length in [0, 4096, 16_384] {
            // SAFETY: it takes no pointer.
            assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), length) }, -1);
        }
        assert!(Memory::map(file.as_fd(), 4096).is_err());
    }

    #[test]
    #[should_panic(expected = "bytes at 8190")]
    fn nothing_behind_the_end_is_reached() {
        let (memory, _) = Memory::create(8192).unwrap();
        memory.read(8190, &mut [0; 3]);
    }
}
