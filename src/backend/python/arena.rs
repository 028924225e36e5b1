mod ranges;
mod reach;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use memmap2::MmapRaw;
use nix::{
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use self::{
    ranges::{ALIGNMENT, Ranges},
    reach::Reach,
};
use super::wire::Range;

/// Ranges shorter than this keep their pages until they are part of a longer one.
const GIVEN_BACK_BYTES_MIN: usize = 64 << 10;

/// The memory that the server shares with one process of a model.
///
/// It is a sealed memfd without a name, whose size is the limit and whose pages are taken as they are
/// used. The lower half is lent by the server to the process, the upper half by the process to the
/// server; each side keeps the books of what it lends.
///
/// Pages that are free stay for the next batch as long as there is one now and then: taking pages from
/// the system costs more than filling them. What nobody has used for a while goes back ([`Arena::trim`]).
pub struct Arena {
    map: MmapRaw,
    file: OwnedFd,
    half: usize,
    books: Mutex<Books>,
    /// How far the process's half is used, as far as the server has seen.
    theirs: Mutex<Reach>,
    room: Condvar,
    on_return: Box<dyn Fn(u64, u64) + Send + Sync>,
}

/// What of the lower half is lent.
struct Books {
    free: Ranges,
    lent: BTreeMap<usize, Loan>,
    reach: Reach,
    /// How many wait for room. To wake nobody is a system call too.
    waiting: usize,
}

struct Loan {
    length: usize,
    /// The process, and every tensor of the server's that lies in it.
    holders: usize,
}

/// The process claims memory that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model's process names bytes {offset}+{length} of shared memory, which it does not have"
)]
pub struct NotThere {
    offset: u64,
    length: u64,
}

impl Arena {
    /// Memory of `bytes` in both halves together; `on_return` is told the offset and the length of what
    /// the process lent and the server no longer needs, on whatever thread drops it.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn new(
        bytes: usize,
        on_return: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let half = (bytes / 2).next_multiple_of(page_size()).max(page_size());
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create("nereid-python", flags)?;
        nix::unistd::ftruncate(&file, i64::try_from(half * 2).map_err(io::Error::other)?)?;
        // The mapping must stay whole, whatever the process does.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Arc::new(Self {
            map: MmapRaw::map_raw(&file)?,
            file,
            half,
            books: Mutex::new(Books {
                free: Ranges::new(0, half),
                lent: BTreeMap::new(),
                reach: Reach::of_half(0),
                waiting: 0,
            }),
            theirs: Mutex::new(Reach::of_half(half)),
            room: Condvar::new(),
            on_return: Box::new(on_return),
        }))
    }

    /// The file, for the process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The size of both halves.
    pub fn size(&self) -> usize {
        self.half * 2
    }

    /// The size of one half.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Bytes that are lent to the process.
    pub fn lent_bytes(&self) -> usize {
        self.books().lent.values().map(|loan| loan.length).sum()
    }

    /// Whether parts of these lengths can be lent, if nothing else is meanwhile.
    pub fn has_room(&self, lengths: impl Iterator<Item = usize>) -> bool {
        let aligned = |length: usize| length.max(1).checked_next_multiple_of(ALIGNMENT);
        let total = lengths.map(aligned).try_fold(0, |sum: usize, it| sum.checked_add(it?));
        // What fits into one range also does when some of it finds room in others.
        total.is_some_and(|total| self.books().free.widest() >= total)
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends memory that holds `pieces`, one behind the other; `None` when there is no room.
    pub fn lend<'p>(&self, length: usize, pieces: impl Iterator<Item = &'p [u8]>) -> Option<Range> {
        let offset = {
            let mut books = self.books();
            let offset = books.free.take(length)?;
            books.lent.insert(offset, Loan { length, holders: 1 });
            books.reach.note(offset + length);
            offset
        };
        let mut at = offset;
        for piece in pieces {
            let end = at + piece.len();
            assert!(end <= offset + length, "pieces are longer than they were said to be");
            // SAFETY: `at..end` lies in the range that was just taken, which lies in the mapping and is
            // nobody else's until the process is told of it; `piece` cannot be part of it.
            unsafe {
                let target = self.map.as_mut_ptr().add(at);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), target, piece.len());
            }
            at = end;
        }
        Some(Range { offset: offset as u64, length: length as u64 })
    }

    /// Takes back what was lent, because the process no longer needs it, or never learnt of it.
    ///
    /// # Errors
    /// When it was not lent.
    pub fn take_back(&self, offset: u64) -> Result<(), NotThere> {
        let not_there = NotThere { offset, length: 0 };
        let offset = usize::try_from(offset).map_err(|_| not_there)?;
        self.release(offset).ok_or(not_there)
    }

    /// One holder of what begins at `offset` is gone.
    fn release(&self, offset: usize) -> Option<()> {
        let (length, kept) = {
            let mut books = self.books();
            let loan = books.lent.get_mut(&offset)?;
            loan.holders -= 1;
            if loan.holders > 0 {
                return Some(());
            }
            (books.lent.remove(&offset)?.length, books.reach.kept())
        };
        self.free(offset, length, kept);
        Some(())
    }

    /// Frees a range that is in nobody's book, so that its next owner has not written yet when its
    /// pages beyond `kept` go back.
    fn free(&self, offset: usize, length: usize, mut kept: usize) {
        loop {
            self.give_back_pages(offset.max(kept), offset + length);
            let mut books = self.books();
            if books.reach.kept() >= kept {
                books.free.give(offset, length);
                if books.waiting > 0 {
                    self.room.notify_all();
                }
                return;
            }
            // Less is kept by now.
            kept = books.reach.kept();
        }
    }

    /// Gives pages back that have not been used since before the last call. Returns from where on the
    /// process should give back those of its half, if it should.
    pub fn trim(&self) -> Option<u64> {
        let unused = {
            let mut books = self.books();
            books.reach.trim().map(|kept| (books.free.split_off(kept), kept))
        };
        if let Some((ranges, kept)) = unused {
            ranges.into_iter().for_each(|(start, end)| self.free(start, end - start, kept));
        }
        let theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner).trim();
        theirs.map(|kept| kept as u64)
    }

    /// Waits until something that was lent has come back, or for `limit`.
    pub fn wait_for_room(&self, limit: Duration) {
        let mut books = self.books();
        books.waiting += 1;
        let waited = self.room.wait_timeout(books, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }

    /// Gives the whole pages of a range back to the system.
    fn give_back_pages(&self, start: usize, end: usize) {
        let page = page_size();
        let (start, end) = (start.next_multiple_of(page), end / page * page);
        if end.saturating_sub(start) < GIVEN_BACK_BYTES_MIN {
            return;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (Ok(offset), Ok(length)) = (i64::try_from(start), i64::try_from(end - start)) else {
            return;
        };
        if let Err(error) = fallocate(self.file.as_fd(), flags, offset, length) {
            log::debug!("pages of shared memory cannot be given back: {error}");
        }
    }

    /// What the process lent, until the last reference to it is gone.
    ///
    /// # Errors
    /// When it is not in the process's half.
    pub fn borrowed(self: &Arc<Self>, range: Range) -> Result<Bytes, NotThere> {
        let (start, length) = self.inside(range, self.half, self.half * 2)?;
        self.theirs.lock().unwrap_or_else(PoisonError::into_inner).note(start + length);
        let arena = self.clone();
        Ok(Bytes::from_owner(Held { arena, start, length, origin: Origin::Process }))
    }

    /// A part of what was lent to the process, which names it in an answer.
    ///
    /// # Errors
    /// When it is not inside of one loan.
    pub fn own(self: &Arc<Self>, range: Range) -> Result<Bytes, NotThere> {
        let (start, length) = self.inside(range, 0, self.half)?;
        let loan = {
            let mut books = self.books();
            let found = books.lent.range_mut(..=start).next_back();
            match found {
                Some((&offset, loan)) if start + length <= offset + loan.length => {
                    loan.holders += 1;
                    offset
                }
                _ => return Err(NotThere { offset: range.offset, length: range.length }),
            }
        };
        let arena = self.clone();
        Ok(Bytes::from_owner(Held { arena, start, length, origin: Origin::Server { loan } }))
    }

    fn inside(&self, range: Range, from: usize, to: usize) -> Result<(usize, usize), NotThere> {
        let Range { offset, length } = range;
        let not_there = NotThere { offset, length };
        let start = usize::try_from(offset).map_err(|_| not_there)?;
        let length = usize::try_from(length).map_err(|_| not_there)?;
        let end = start.checked_add(length).ok_or(not_there)?;
        if start < from || end > to { Err(not_there) } else { Ok((start, length)) }
    }
}

/// A part of the memory that the server reads.
struct Held {
    arena: Arc<Arena>,
    start: usize,
    length: usize,
    origin: Origin,
}

enum Origin {
    /// The process lent it.
    Process,
    /// The server lent it, as a part of this loan.
    Server { loan: usize },
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `inside` has held the range against the mapping, which the seals keep whole and the
        // arena keeps alive. The process must not write what it has sent; if it does all the same, the
        // bytes that go out are wrong ones of its own model, and nothing interprets them here: strings
        // are copied before they are checked.
        unsafe { std::slice::from_raw_parts(self.arena.map.as_ptr().add(self.start), self.length) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.origin {
            Origin::Process => (self.arena.on_return)(self.start as u64, self.length as u64),
            Origin::Server { loan } => {
                let released = self.arena.release(loan);
                debug_assert!(released.is_some(), "a loan lives as long as its holders");
            }
        }
    }
}

fn page_size() -> usize {
    // SAFETY: it takes a number, and may be called at any time from any thread.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4 << 10)
}
