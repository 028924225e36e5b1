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

use super::wire::Range;

/// What is given out begins at multiples of this: the widest vector registers and a cache line.
const ALIGNMENT: usize = 64;
/// So much of a half keeps its pages, whether they are used or not.
const KEPT_BYTES: usize = 16 << 20;
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
}

/// How far a half is used. The lowest range that is free is taken first, so this is how much of it is
/// needed.
struct Reach {
    /// The end of the farthest range since the half was trimmed last.
    now: usize,
    /// The same for the time before that.
    before: usize,
    /// Up to where pages that are free are kept.
    kept: usize,
    /// Up to where they always are.
    least: usize,
}

impl Reach {
    fn of_half(start: usize) -> Self {
        let least = start + KEPT_BYTES;
        Self { now: 0, before: 0, kept: least, least }
    }

    /// Notes a range that is used, by its end.
    fn note(&mut self, end: usize) {
        self.now = self.now.max(end);
        self.kept = self.kept.max(end);
    }

    /// Begins a new while. Tells from where on pages are no longer kept, if some were kept till now.
    fn trim(&mut self) -> Option<usize> {
        let kept = self.now.max(self.before).max(self.least);
        self.before = std::mem::take(&mut self.now);
        (kept < std::mem::replace(&mut self.kept, kept)).then_some(kept)
    }
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
            (books.lent.remove(&offset)?.length, books.reach.kept)
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
            if books.reach.kept >= kept {
                books.free.give(offset, length);
                break;
            }
            // Less is kept by now.
            kept = books.reach.kept;
        }
        self.room.notify_all();
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
        let waited = self.room.wait_timeout(self.books(), limit);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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

/// Ranges that are free, by where they begin; no two touch. The lowest that is large enough is taken
/// first, so that the pages of the far end are rarely needed.
struct Ranges(BTreeMap<usize, usize>);

impl Ranges {
    fn new(start: usize, end: usize) -> Self {
        Self(BTreeMap::from([(start, end)]))
    }

    fn take(&mut self, length: usize) -> Option<usize> {
        // What is given out has a place of its own, even if it is empty.
        let length = length.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let found = self.0.iter().find(|(start, end)| *end - *start >= length);
        let (&start, &end) = found?;
        self.0.remove(&start);
        if end - start > length {
            self.0.insert(start + length, end);
        }
        Some(start)
    }

    /// The length of the longest.
    fn widest(&self) -> usize {
        self.0.iter().map(|(start, end)| end - start).max().unwrap_or(0)
    }

    /// Takes all that is free from `from` on.
    fn split_off(&mut self, from: usize) -> BTreeMap<usize, usize> {
        let from = from.next_multiple_of(ALIGNMENT);
        let mut taken = self.0.split_off(&from);
        if let Some(mut last) = self.0.last_entry()
            && *last.get() > from
        {
            taken.insert(from, std::mem::replace(last.get_mut(), from));
        }
        taken
    }

    /// Frees what was taken.
    fn give(&mut self, start: usize, length: usize) {
        let (mut start, mut end) = (start, start + length.max(1).next_multiple_of(ALIGNMENT));
        if let Some(next) = self.0.remove(&end) {
            end = next;
        }
        let before = self.0.range(..start).next_back().map(|(&from, &to)| (from, to));
        if let Some((from, to)) = before
            && to == start
        {
            start = from;
        }
        self.0.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_that_are_taken_do_not_overlap_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 0..3000_usize), 1..80),
        ) {
            let mut free = Ranges::new(0, 64 << 10);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (takes, size) in steps {
                if takes || taken.is_empty() {
                    let Some(start) = free.take(size) else { continue };
                    prop_assert!(start % ALIGNMENT == 0 && start + size <= 64 << 10);
                    for &(other, length) in &taken {
                        prop_assert!(start + size.max(1) <= other || other + length.max(1) <= start);
                    }
                    taken.push((start, size));
                } else {
                    let (start, length) = taken.swap_remove(size % taken.len());
                    free.give(start, length);
                }
            }
            for (start, length) in taken {
                free.give(start, length);
            }
            prop_assert_eq!(free.0, BTreeMap::from([(0, 64 << 10)]));
        }
    }

    fn arena(bytes: usize) -> (Arc<Arena>, Arc<AtomicUsize>) {
        let returned = Arc::new(AtomicUsize::new(0));
        let count = returned.clone();
        let arena = Arena::new(bytes, move |_, length| {
            count.fetch_add(usize::try_from(length).unwrap(), Ordering::Relaxed);
        });
        (arena.unwrap(), returned)
    }

    #[test]
    fn a_loan_ends_when_the_process_and_every_tensor_in_it_are_done() {
        let (arena, _) = arena(1 << 20);
        let range = arena.lend(6, [&b"abc"[..], b"def"].into_iter()).unwrap();
        let part = arena.own(Range { offset: range.offset + 1, length: 4 }).unwrap();
        assert_eq!(part, &b"bcde"[..]);
        arena.take_back(range.offset).unwrap();
        assert_eq!(arena.lent_bytes(), 6);
        drop(part);
        assert_eq!(arena.lent_bytes(), 0);
        assert!(arena.take_back(range.offset).is_err());
    }

    #[test]
    fn what_the_process_lent_goes_back_with_the_last_reference() {
        let (arena, returned) = arena(1 << 20);
        let offset = arena.half() as u64;
        let bytes = arena.borrowed(Range { offset, length: 100 }).unwrap();
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(returned.load(Ordering::Relaxed), 0);
        drop(part);
        assert_eq!(returned.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn what_is_not_there_cannot_be_named() {
        let (arena, _) = arena(1 << 20);
        let half = arena.half() as u64;
        for range in [
            Range { offset: 0, length: 1 },
            Range { offset: half - 1, length: 2 },
            Range { offset: half, length: half + 1 },
            Range { offset: u64::MAX, length: 2 },
            Range { offset: half, length: u64::MAX },
        ] {
            assert!(arena.borrowed(range).is_err(), "{range:?}");
        }
        let lent = arena.lend(64, [&[0; 64][..]].into_iter()).unwrap();
        for range in [
            Range { offset: lent.offset, length: 65 },
            Range { offset: lent.offset + 64, length: 1 },
            Range { offset: half, length: 1 },
        ] {
            assert!(arena.own(range).is_err(), "{range:?}");
        }
    }

    #[test]
    fn a_full_half_refuses_and_takes_again_when_there_is_room() {
        let (arena, _) = arena(1 << 20);
        let all = vec![1; arena.half()];
        let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
        assert!(arena.lend(1, [&b"x"[..]].into_iter()).is_none());
        arena.take_back(range.offset).unwrap();
        assert!(arena.lend(1, [&b"x"[..]].into_iter()).is_some());
    }

    /// Bytes that the system has given for an arena.
    fn resident(arena: &Arena) -> usize {
        let blocks = nix::sys::stat::fstat(arena.file()).unwrap().st_blocks;
        usize::try_from(blocks).unwrap() * 512
    }

    #[test]
    fn pages_stay_for_the_next_batch_and_go_back_when_none_comes() {
        let (arena, _) = arena(128 << 20);
        let all = vec![1; 40 << 20];
        for _ in 0..3 {
            let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
            arena.take_back(range.offset).unwrap();
            assert!(resident(&arena) >= all.len());
            assert_eq!(arena.trim(), None);
        }
        // The while that has just begun, and the one before it, have seen none.
        arena.trim();
        arena.trim();
        assert!(resident(&arena) <= KEPT_BYTES, "{}", resident(&arena));
        assert!(arena.lend(arena.half(), [&all[..]].into_iter()).is_some());
    }

    #[test]
    fn pages_that_are_used_when_the_rest_goes_back_follow_later() {
        let (arena, _) = arena(128 << 20);
        let all = vec![1; 40 << 20];
        let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
        (0..3).for_each(|_| _ = arena.trim());
        assert!(resident(&arena) >= all.len());
        arena.take_back(range.offset).unwrap();
        assert!(resident(&arena) <= KEPT_BYTES);
    }

    #[test]
    fn the_process_is_told_to_give_back_what_the_server_has_not_seen_for_a_while() {
        let (arena, _) = arena(128 << 20);
        let half = arena.half() as u64;
        drop(arena.borrowed(Range { offset: half, length: 40 << 20 }).unwrap());
        let told: Vec<_> = (0..4).map(|_| arena.trim()).collect();
        assert_eq!(told, [None, None, Some(half + KEPT_BYTES as u64), None]);
    }
}
