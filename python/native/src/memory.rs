//! The memory that the server and this process share, and what of it nothing refers to any more.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use pyo3::{prelude::*, types::PyBytes};

use crate::{
    frame::{Malformed, frame},
    lock,
};

/// The kind of the frame that gives lent memory back.
const FREED: u8 = 48;

/// What nothing refers to any more, by the kind of the frame that tells the server so.
///
/// Destructors append at any point of any thread. The lock is never waited for: whoever holds it is attached
/// to the interpreter, and does nothing meanwhile that another thread or a destructor could run in.
#[pyclass(frozen)]
#[derive(Default)]
pub struct Gone {
    list: Mutex<Vec<(u8, u64, u64)>>,
    /// Whether an answer waits to be sent that may name memory which has gone by now: the server must not
    /// hear of that before.
    is_held: AtomicBool,
}

#[pymethods]
impl Gone {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Notes one: the kind of frame, its number there, and how many bytes it kept.
    fn append(&self, kind: u8, number: u64, bytes: u64) {
        self.list().push((kind, number, bytes));
    }

    /// How many bytes all of them kept.
    fn bytes(&self) -> u64 {
        self.list().iter().fold(0, |sum, &(_, _, bytes)| sum.saturating_add(bytes))
    }

    fn __len__(&self) -> usize {
        self.list().len()
    }

    /// Forgets them.
    fn clear(&self) {
        self.list().clear();
    }

    /// The frames that tell the server of them, which are forgotten here; none while they are held.
    fn frames<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut bytes = Vec::new();
        self.put_frames(&mut bytes);
        PyBytes::new(py, &bytes)
    }
}

impl Gone {
    fn list(&self) -> MutexGuard<'_, Vec<(u8, u64, u64)>> {
        lock(&self.list)
    }

    /// Has no thread tell the server of them until [`Self::release`].
    pub fn hold(&self) {
        self.is_held.store(true, Ordering::Relaxed);
    }

    /// Ends that. Called by who sends now.
    pub fn release(&self) {
        self.is_held.store(false, Ordering::Relaxed);
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Appends the frames that tell the server of them, which are forgotten here; none while they are held.
    pub fn put_frames(&self, bytes: &mut Vec<u8>) {
        if self.is_held.load(Ordering::Relaxed) {
            return;
        }
        let mut gone = std::mem::take(&mut *self.list());
        gone.sort_by_key(|&(kind, _, _)| kind);
        for run in gone.chunk_by(|one, other| one.0 == other.0) {
            let Some(&(kind, _, _)) = run.first() else { continue };
            frame(bytes, kind, |bytes| {
                bytes
                    .extend_from_slice(&u32::try_from(run.len()).unwrap_or(u32::MAX).to_le_bytes());
                run.iter()
                    .for_each(|&(_, number, _)| bytes.extend_from_slice(&number.to_le_bytes()));
            });
        }
    }
}

/// The mapping: its lower half is lent by the server, the upper half by this process.
#[pyclass(frozen)]
pub struct Memory {
    address: usize,
    size: usize,
    gone: Py<Gone>,
}

#[pymethods]
impl Memory {
    /// Over a mapping that stays until the process ends.
    #[new]
    fn new(address: usize, size: usize, gone: Py<Gone>) -> Self {
        Self { address, size, gone }
    }
}

impl Memory {
    /// A part that the server has lent.
    ///
    /// # Errors
    /// When it is not in the server's half.
    pub fn lent(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<Lent> {
        let is_there = offset.checked_add(length).is_some_and(|end| end <= self.size as u64 / 2);
        let address =
            usize::try_from(offset).ok().and_then(|offset| self.address.checked_add(offset));
        match address {
            Some(address) if is_there => {
                Ok(Lent { address, offset, length, gone: self.gone.clone_ref(py) })
            }
            _ => Err(Malformed::new_err(format!(
                "the server lent bytes {offset}+{length} of {}",
                self.size / 2
            ))),
        }
    }

    /// What nothing refers to any more of it.
    pub fn gone(&self) -> &Gone {
        self.gone.get()
    }

    /// Where bytes lie in what the server lends; `None` when they lie elsewhere.
    pub fn offset_of(&self, data: *const u8, length: usize) -> Option<u64> {
        let offset = (data as usize).checked_sub(self.address)?;
        let end = offset.checked_add(length)?;
        (end <= self.size / 2).then_some(offset as u64)
    }

    /// Copies bytes to a part that this process gives the server.
    ///
    /// # Safety
    /// `data` is the address of so many bytes, which stay there meanwhile.
    ///
    /// # Errors
    /// When the part is not in this process's half.
    pub unsafe fn fill(
        &self,
        py: Python<'_>,
        offset: u64,
        data: *const u8,
        length: usize,
    ) -> PyResult<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let is_ours =
            start >= self.size / 2 && start.checked_add(length).is_some_and(|end| end <= self.size);
        if !is_ours {
            return Err(Malformed::new_err(format!(
                "bytes {offset}+{length} of {} are not this process's to give",
                self.size
            )));
        }
        let (source, target) = (data as usize, self.address + start);
        // SAFETY: the target was just held against the mapping, and is nobody else's until the server is
        // told of it; the caller vouches for the source.
        py.detach(|| unsafe {
            std::ptr::copy_nonoverlapping(source as *const u8, target as *mut u8, length);
        });
        Ok(())
    }

    /// The address of a byte.
    pub fn address_of(&self, offset: u64) -> usize {
        self.address.saturating_add(usize::try_from(offset).unwrap_or(usize::MAX))
    }
}

/// Bytes that the server has lent. They go back when the last array on them is gone.
#[pyclass(frozen)]
pub struct Lent {
    address: usize,
    offset: u64,
    length: u64,
    gone: Py<Gone>,
}

impl Lent {
    /// Where they are.
    pub fn data(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// How many there are.
    pub fn length(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.gone.get().append(FREED, self.offset, self.length);
    }
}
