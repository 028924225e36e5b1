use std::ops::Range;

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, Thread},
};
#[cfg(not(loom))]
use {
    cell::UnsafeCell,
    std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread::{self, Thread},
    },
};

/// One chunk in [`Shared::open`], whose lowest bit is [`PARKED`].
const CHUNK: usize = 2;
/// Set in [`Shared::open`] when the owner sleeps until no chunk is open.
const PARKED: usize = 1;
/// Looks at a copy in progress on another thread before the owner sleeps: some microseconds, which
/// is what waking a sleeper costs its waker.
const SPINS: u32 = if cfg!(loom) { 1 } else { 128 };

/// Memory that several threads fill at once.
pub trait Destination: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> usize;

    /// Copies `bytes` to the bytes from `at` on.
    ///
    /// # Safety
    /// All of them lie inside, and nobody else reads or writes any of them meanwhile.
    unsafe fn write(&self, at: usize, bytes: &[u8]);
}

/// Pieces that lie apart, on their way into one destination, one behind the other: copied by
/// whichever threads have time, without a lock.
///
/// The destination is cut into chunks. A thread claims the next chunk, copies it and commits it. The
/// owner copies whatever nobody has claimed and then waits for copies that are in progress elsewhere,
/// never for a thread that has not begun: one that is asked for help may come late or not at all.
///
/// Dropping it instead of [completing](Gather::complete) it gives everything up; the memory goes with
/// the last [`Filler`].
pub struct Gather<D: Destination, P: AsRef<[u8]>>(Arc<Shared<D, P>>);

/// A way to help with a [`Gather`] from any thread. It keeps the pieces alive.
pub struct Filler<D: Destination, P: AsRef<[u8]>>(Arc<Shared<D, P>>);

/// The pieces are not as long as the destination.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongLength {
    /// The bytes of the destination.
    pub expected: usize,
    /// The bytes of all pieces.
    pub got: usize,
}

struct Shared<D, P> {
    /// Read by whoever has claimed a chunk, taken by the owner when all are committed.
    destination: UnsafeCell<Option<D>>,
    /// Where each piece begins in the destination, ascending.
    pieces: Vec<(usize, P)>,
    len: usize,
    chunk_bytes: usize,
    chunks: usize,
    /// The first chunk that nobody has claimed.
    next: AtomicUsize,
    /// Chunks that are not committed, times [`CHUNK`], plus [`PARKED`].
    open: AtomicUsize,
    /// Set before [`PARKED`] is, and not changed after.
    owner: UnsafeCell<Option<Thread>>,
}

// SAFETY: a piece is only read, by any thread. The destination is only reached between claim and
// commit of a chunk, through `&D`, and taken when every chunk is committed. The owner's thread is
// written before the bit that lets others read it.
unsafe impl<D: Destination, P: AsRef<[u8]> + Send + Sync> Sync for Shared<D, P> {}
// SAFETY: nothing in it is bound to a thread.
unsafe impl<D: Destination, P: AsRef<[u8]> + Send + Sync> Send for Shared<D, P> {}

impl<D: Destination, P: AsRef<[u8]>> Gather<D, P> {
    /// Nothing is copied yet. `chunk_bytes`, of which there is at least one, is what one claim takes.
    ///
    /// # Errors
    /// When the pieces do not fill the destination exactly.
    pub fn new(
        destination: D,
        pieces: impl IntoIterator<Item = P>,
        chunk_bytes: usize,
    ) -> Result<Self, WrongLength> {
        let (expected, mut got) = (destination.size(), 0_usize);
        let placed = pieces.into_iter().map(|piece| {
            let start = got;
            got = got.saturating_add(piece.as_ref().len());
            (start, piece)
        });
        let pieces: Vec<_> = placed.collect();
        if got != expected {
            return Err(WrongLength { expected, got });
        }
        let chunk_bytes = chunk_bytes.max(1);
        let chunks = expected.div_ceil(chunk_bytes);
        Ok(Self(Arc::new(Shared {
            destination: UnsafeCell::new(Some(destination)),
            pieces,
            len: expected,
            chunk_bytes,
            chunks,
            next: AtomicUsize::new(0),
            open: AtomicUsize::new(chunks * CHUNK),
            owner: UnsafeCell::new(None),
        })))
    }

    /// The number of chunks: how many threads can have a share.
    pub fn chunks(&self) -> usize {
        self.0.chunks
    }

    /// For a thread that may help.
    pub fn filler(&self) -> Filler<D, P> {
        Filler(self.0.clone())
    }

    /// Whether every chunk has been copied.
    pub fn is_filled(&self) -> bool {
        self.0.is_filled()
    }

    /// Copies what nobody has claimed, waits for what others are copying, and returns the destination,
    /// filled.
    pub fn complete(self) -> D {
        let shared = self.0;
        while shared.fill_chunk() {}
        shared.wait();
        // SAFETY: every chunk is committed, whoever claims from now on finds none, and only the one
        // `Gather`, which is consumed here, takes the destination.
        let destination = shared.destination.with_mut(|place| unsafe { (*place).take() });
        destination.expect("a gather is completed once")
    }
}

impl<D: Destination, P: AsRef<[u8]>> Clone for Filler<D, P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Destination, P: AsRef<[u8]>> Filler<D, P> {
    /// Copies one chunk that nobody has claimed; `false` when there was none.
    pub fn fill_chunk(&self) -> bool {
        self.0.fill_chunk()
    }
}

impl<D: Destination, P: AsRef<[u8]>> Shared<D, P> {
    fn fill_chunk(&self) -> bool {
        // The look before the claim keeps latecomers from counting the claims up for ever.
        if self.next.load(Ordering::Relaxed) >= self.chunks {
            return false;
        }
        let claimed = self.next.fetch_add(1, Ordering::Relaxed);
        if claimed >= self.chunks {
            return false;
        }
        let start = claimed * self.chunk_bytes;
        self.copy(start..self.len.min(start.saturating_add(self.chunk_bytes)));
        self.commit();
        true
    }

    /// Copies the bytes of `chunk`, which the caller has claimed and not committed.
    fn copy(&self, chunk: Range<usize>) {
        let first = self.pieces.partition_point(|(start, _)| *start <= chunk.start) - 1;
        self.destination.with(|place| {
            // SAFETY: the owner takes the destination only when every chunk is committed.
            let Some(destination) = (unsafe { &*place }) else { return };
            for (start, piece) in &self.pieces[first..] {
                if *start >= chunk.end {
                    break;
                }
                let piece = piece.as_ref();
                let from = chunk.start.saturating_sub(*start).min(piece.len());
                let to = (chunk.end - start).min(piece.len());
                // SAFETY: the bytes lie in the chunk, which this thread alone has claimed, and the
                // owner reads them only when it is committed.
                unsafe { destination.write(start + from, &piece[from..to]) };
            }
        });
    }

    fn commit(&self) {
        if self.open.fetch_sub(CHUNK, Ordering::AcqRel) == CHUNK | PARKED {
            self.owner.with(|owner| {
                // SAFETY: the owner set it before `PARKED`, which was seen, and does not touch it again.
                let owner = unsafe { &*owner };
                owner.iter().for_each(Thread::unpark);
            });
        }
    }

    fn is_filled(&self) -> bool {
        self.open.load(Ordering::Acquire) < CHUNK
    }

    /// Returns when every chunk is committed.
    fn wait(&self) {
        for _ in 0..SPINS {
            if self.is_filled() {
                return;
            }
            std::hint::spin_loop();
        }
        // SAFETY: others read it only after they have seen `PARKED`, which is set below.
        self.owner.with_mut(|owner| unsafe { *owner = Some(thread::current()) });
        if self.open.fetch_or(PARKED, Ordering::AcqRel) < CHUNK {
            return;
        }
        while !self.is_filled() {
            thread::park();
        }
    }
}

#[cfg(not(loom))]
mod cell {
    /// The standard cell with loom's interface.
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Buffer, BufferPool};

    fn buffer(len: usize) -> Buffer {
        BufferPool::new(1 << 20, 1 << 20).unwrap().allocate(len).unwrap()
    }

    #[test]
    fn pieces_that_do_not_fill_the_destination_are_refused() {
        for (expected, got) in [(3, 4), (4, 3), (1, 0), (0, 1)] {
            let pieces = [Bytes::from(vec![1; got])];
            let refused = Gather::new(buffer(expected), pieces, 2).err();
            assert_eq!(refused, Some(WrongLength { expected, got }));
        }
    }

    #[test]
    fn nothing_is_complete_at_once() {
        let gather = Gather::new(buffer(0), Vec::<Bytes>::new(), 4).unwrap();
        assert!(gather.is_filled());
        assert!(!gather.filler().fill_chunk());
        assert_eq!(gather.complete().len(), 0);
    }

    #[test]
    fn a_helper_copies_one_chunk_at_a_time_until_none_is_left() {
        let pieces = [Bytes::from_static(b"ab"), Bytes::from_static(b"cdefg")];
        let gather = Gather::new(buffer(7), pieces, 3).unwrap();
        let helper = gather.filler();
        assert_eq!(gather.chunks(), 3);
        for _ in 0..3 {
            assert!(!gather.is_filled());
            assert!(helper.fill_chunk());
        }
        assert!(gather.is_filled());
        assert!(!helper.fill_chunk());
        assert_eq!(&gather.complete()[..], b"abcdefg");
        assert!(!helper.fill_chunk());
    }

    #[test]
    fn what_is_given_up_is_freed_with_its_last_helper() {
        let source = std::sync::Arc::new([1_u8; 4]);
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let piece = Bytes::from_owner(Piece(source.clone()));
        let gather = Gather::new(pool.allocate(4).unwrap(), [piece], 4).unwrap();
        let helper = gather.filler();
        drop(gather);
        assert!(helper.fill_chunk());
        assert_eq!((std::sync::Arc::strong_count(&source), pool.used()), (2, 4));
        drop(helper);
        assert_eq!((std::sync::Arc::strong_count(&source), pool.used()), (1, 0));
    }

    struct Piece(std::sync::Arc<[u8; 4]>);

    impl AsRef<[u8]> for Piece {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_and_chunks_the_destination_is_the_pieces_joined(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            chunk_bytes in 1_usize..64,
            helpers in 0_usize..3,
        ) {
            let joined = pieces.concat();
            let pieces = pieces.into_iter().map(Bytes::from);
            let gather = Gather::new(buffer(joined.len()), pieces, chunk_bytes).unwrap();
            let helpers: Vec<_> = (0..helpers)
                .map(|_| {
                    let filler = gather.filler();
                    std::thread::spawn(move || while filler.fill_chunk() {})
                })
                .collect();
            prop_assert_eq!(&gather.complete()[..], &joined[..]);
            helpers.into_iter().for_each(|helper| helper.join().unwrap());
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell as Tracked;

    use super::*;

    /// Bytes that loom watches one by one. Each write adds, so that a second one would show.
    struct Cells {
        bytes: Vec<Tracked<u8>>,
        /// Loom reports it when it is never freed.
        _watched: Arc<()>,
    }

    // SAFETY: loom reports every access that is not ordered.
    unsafe impl Sync for Cells {}

    impl Cells {
        fn new(len: usize) -> Self {
            let bytes = (0..len).map(|_| Tracked::new(0)).collect();
            Self { bytes, _watched: Arc::new(()) }
        }

        fn read(&self) -> Vec<u8> {
            // SAFETY: loom checks that nobody writes meanwhile.
            self.bytes.iter().map(|byte| byte.with(|byte| unsafe { *byte })).collect()
        }
    }

    impl Destination for Cells {
        fn size(&self) -> usize {
            self.bytes.len()
        }

        unsafe fn write(&self, at: usize, bytes: &[u8]) {
            for (cell, byte) in self.bytes[at..].iter().zip(bytes) {
                // SAFETY: loom checks that nobody else reads or writes meanwhile.
                cell.with_mut(|cell| unsafe { *cell += byte });
            }
        }
    }

    /// A piece whose owner loom watches.
    struct Piece {
        bytes: Vec<u8>,
        _owner: Arc<()>,
    }

    impl AsRef<[u8]> for Piece {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    fn gather(owner: &Arc<()>) -> Gather<Cells, Piece> {
        let pieces = [vec![1, 2], vec![3]].map(|bytes| Piece { bytes, _owner: owner.clone() });
        Gather::new(Cells::new(3), pieces, 1).unwrap()
    }

    #[test]
    fn every_byte_is_copied_once_and_seen_by_the_one_that_completes() {
        loom::model(|| {
            let gather = gather(&Arc::new(()));
            let helper = gather.filler();
            let helping = thread::spawn(move || while helper.fill_chunk() {});
            assert_eq!(gather.complete().read(), [1, 2, 3]);
            helping.join().unwrap();
        });
    }

    #[test]
    fn two_helpers_share_with_the_owner() {
        loom::model(|| {
            let gather = gather(&Arc::new(()));
            let helping: Vec<_> = (0..2)
                .map(|_| {
                    let helper = gather.filler();
                    thread::spawn(move || {
                        helper.fill_chunk();
                    })
                })
                .collect();
            assert_eq!(gather.complete().read(), [1, 2, 3]);
            helping.into_iter().for_each(|helping| helping.join().unwrap());
        });
    }

    #[test]
    fn a_helper_that_comes_too_late_finds_nothing() {
        loom::model(|| {
            let gather = gather(&Arc::new(()));
            let helper = gather.filler();
            assert_eq!(gather.complete().read(), [1, 2, 3]);
            assert!(!thread::spawn(move || helper.fill_chunk()).join().unwrap());
        });
    }

    #[test]
    fn what_is_given_up_is_freed_whoever_lets_go_last() {
        loom::model(|| {
            let owner = Arc::new(());
            let gather = gather(&owner);
            let helper = gather.filler();
            let helping = thread::spawn(move || helper.fill_chunk());
            drop(gather);
            assert!(helping.join().unwrap());
            assert_eq!(Arc::strong_count(&owner), 1);
        });
    }
}
