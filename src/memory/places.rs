use std::{
    fmt,
    sync::atomic::{AtomicU8, AtomicUsize, Ordering},
};

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::{pool::Buffer, regions::RegionView, ring::RingView};

/// In [`OutputPlaces::state`]: nobody has been given memory yet.
const UNUSED: u8 = 0;
/// Somebody has been.
const LENT: u8 = 1;
/// Nobody will be.
const CLOSED: u8 = 2;

/// Where the outputs of one request are to go, in memory that its client shares with the server. Who
/// computes an output may write it there, and then nobody copies it.
///
/// The client can change the bytes at any time. So nothing may be written there that is read again to be
/// relied on; what any bits will do for, such as floating-point numbers, may.
#[derive(Default)]
pub struct OutputPlaces {
    named: SmallVec<[(CompactString, SharedView); 1]>,
    /// Where outputs without a place of their own go, one behind the other.
    area: Option<Area>,
    state: AtomicU8,
}

/// Bytes that a client shares with the server.
#[derive(Clone, Debug)]
pub enum SharedView {
    /// Of a region that it registered.
    Region(RegionView),
    /// Of its arena.
    Ring(RingView),
}

struct Area {
    view: RingView,
    alignment: usize,
    used: AtomicUsize,
}

/// Memory for one output, which its owner may write.
pub struct OutputMemory(Kind);

enum Kind {
    Pool(Buffer),
    Lent(SharedView),
}

impl OutputPlaces {
    /// No place yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the output of this name go to `view`, which no other place lies over.
    pub fn put(&mut self, output: CompactString, view: SharedView) {
        self.named.push((output, view));
    }

    /// Has outputs of other names go to `view`, each at the next multiple of `alignment`.
    pub fn put_others(&mut self, view: RingView, alignment: usize) {
        self.area = Some(Area { view, alignment, used: AtomicUsize::new(0) });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.area.is_none()
    }

    /// Memory for the `len` bytes of an output, if they fit where it is to go and that is a multiple of
    /// `alignment`.
    pub fn lend(&self, output: &str, len: usize, alignment: usize) -> Option<OutputMemory> {
        if len == 0 {
            return None;
        }
        let named = self.named.iter().find(|(name, _)| name == output);
        let view = match (named, &self.area) {
            (Some((_, view)), _) => view.first(len)?,
            (None, Some(area)) => area.next(len)?,
            (None, None) => return None,
        };
        let is_aligned = view.pointer().addr().is_multiple_of(alignment);
        (is_aligned && self.is_open()).then(|| OutputMemory(Kind::Lent(view)))
    }

    /// Whether they can still be lent, which they are from now on.
    fn is_open(&self) -> bool {
        let before = self.state.compare_exchange(UNUSED, LENT, Ordering::AcqRel, Ordering::Acquire);
        before != Err(CLOSED)
    }

    /// Lends nothing from now on. Returns whether something was lent, which may still be written to.
    pub fn close(&self) -> bool {
        self.state.swap(CLOSED, Ordering::AcqRel) == LENT
    }
}

impl fmt::Debug for OutputPlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = self.area.as_ref().map(|area| &area.view);
        f.debug_struct("OutputPlaces").field("named", &self.named).field("area", &area).finish()
    }
}

impl Area {
    /// The next bytes that are free, if there are so many.
    fn next(&self, len: usize) -> Option<SharedView> {
        let end = |start: usize| start.checked_add(len).filter(|&end| end <= self.view.len());
        let start = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            end(used.checked_next_multiple_of(self.alignment)?)
        });
        let start = start.ok()?.checked_next_multiple_of(self.alignment)?;
        Some(SharedView::Ring(self.view.slice(start, len)?))
    }
}

impl SharedView {
    fn first(&self, len: usize) -> Option<Self> {
        match self {
            Self::Region(view) => view.slice(0, len).map(Self::Region),
            Self::Ring(view) => view.slice(0, len).map(Self::Ring),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Region(view) => view.len(),
            Self::Ring(view) => view.len(),
        }
    }

    fn pointer(&self) -> *mut u8 {
        match self {
            Self::Region(view) => view.pointer(),
            Self::Ring(view) => view.pointer(),
        }
    }
}

impl OutputMemory {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Pool(buffer) => buffer.len(),
            Kind::Lent(view) => view.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where to write it. There is no slice of it, because a client may write there too.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.0 {
            Kind::Pool(buffer) => buffer.as_mut_ptr(),
            Kind::Lent(view) => view.pointer(),
        }
    }

    /// Shares the memory read-only.
    pub fn freeze(self) -> Bytes {
        match self.0 {
            Kind::Pool(buffer) => buffer.freeze(),
            Kind::Lent(SharedView::Region(view)) => view.in_place(),
            Kind::Lent(SharedView::Ring(view)) => view.in_place(),
        }
    }
}

impl From<Buffer> for OutputMemory {
    fn from(buffer: Buffer) -> Self {
        Self(Kind::Pool(buffer))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use nereid_ring::{Header, Span};

    use super::*;
    use crate::memory::{BufferPool, RingMemory};

    const ALIGNMENT: usize = 64;

    /// Places with an area of 1000 bytes and one for the output `own` of 100, at a multiple of 4.
    fn places() -> (OutputPlaces, *mut u8, *mut u8) {
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let header = Header::plan(8, 8, 8192).unwrap();
        let (memory, _file) = RingMemory::create(header, &pool).unwrap();
        let view = |offset, length| memory.view("a place", Span { offset, length }).unwrap();
        let (area, own) = (view(64, 1000), view(4100, 100));
        let starts = (area.pointer(), own.pointer());
        let mut places = OutputPlaces::new();
        assert!(places.is_empty());
        places.put_others(area, ALIGNMENT);
        places.put("own".into(), SharedView::Ring(own));
        (places, starts.0, starts.1)
    }

    #[test]
    fn an_output_is_lent_its_own_place_or_the_next_of_the_area() {
        let (places, area, own) = places();
        let lent = |output, len, alignment| {
            let memory = places.lend(output, len, alignment);
            memory.map(|mut memory| (memory.as_mut_ptr(), memory.len()))
        };
        assert_eq!(lent("own", 100, 4), Some((own, 100)));
        assert_eq!(lent("own", 8, 4), Some((own, 8)));
        assert_eq!(lent("own", 101, 4), None, "it does not fit");
        assert_eq!(lent("own", 8, 8), None, "it lies at a multiple of 4 only");
        assert_eq!(lent("a", 65, 8), Some((area, 65)));
        assert_eq!(lent("b", 872, 8), Some((area.wrapping_add(128), 872)));
        assert_eq!(lent("c", 1, 1), None, "the area is used up");
        assert_eq!(lent("d", 0, 1), None);
        assert_eq!(lent("own", usize::MAX, 1), None);
        assert_eq!(lent("e", usize::MAX, 1), None);
    }

    #[test]
    fn what_is_closed_is_lent_no_more_and_tells_whether_it_was() {
        let (places, ..) = places();
        assert!(places.lend("own", 101, 4).is_none());
        assert!(!places.close());
        assert!(places.lend("own", 4, 4).is_none());
        let (places, ..) = self::places();
        let memory = places.lend("own", 4, 4).unwrap();
        assert!(places.close());
        assert!(places.lend("own", 4, 4).is_none());
        assert_eq!(memory.freeze().len(), 4);
    }
}
