use std::ptr::NonNull;

use bytes::Bytes;

use super::BufferPool;

/// Bytes of a pool's arena that lie one behind the other, though they are held piece by piece.
struct Joined {
    first: NonNull<u8>,
    len: usize,
    _pieces: Vec<Bytes>,
}

// SAFETY: the pieces may go to any thread, and `first` points to what they hold.
unsafe impl Send for Joined {}
// SAFETY: nobody changes the bytes as long as the pieces are held.
unsafe impl Sync for Joined {}

impl AsRef<[u8]> for Joined {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `first` is derived from the arena's pointer, and the pieces, which are held, are these
        // bytes: they keep the arena mapped and everybody from writing there.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl BufferPool {
    /// The pieces as one, without a copy, if they lie in the arena each where the one before ends, as the
    /// parts of a buffer do.
    pub fn joined<'a>(&self, pieces: impl Iterator<Item = &'a Bytes> + Clone) -> Option<Bytes> {
        let arena = self.arena_address();
        let offset = |piece: &Bytes| piece.as_ptr().addr().checked_sub(arena.addr().get());
        let start = offset(pieces.clone().next()?)?;
        let end = pieces.clone().try_fold(start, |end, piece| {
            (offset(piece) == Some(end)).then(|| end.checked_add(piece.len())).flatten()
        });
        let end = end.filter(|&end| end <= self.arena_bytes())?;
        // SAFETY: the arena has more than `start` bytes, or just as many.
        let first = unsafe { arena.add(start) };
        let len = end - start;
        Some(Bytes::from_owner(Joined { first, len, _pieces: pieces.cloned().collect() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_buffer_are_one_again_if_they_are_in_order() {
        let pool = BufferPool::new(1 << 20, 1 << 30).unwrap();
        let frozen = |len: usize| {
            let mut buffer = pool.allocate(len).unwrap();
            buffer.iter_mut().zip(0_u8..=255).for_each(|(byte, value)| *byte = value);
            buffer.freeze()
        };
        let whole = frozen(90);
        let parts = [0..20, 20..21, 21..90].map(|range| whole.slice(range));
        let joined = pool.joined(parts.iter()).unwrap();
        assert_eq!((joined.as_ptr(), &joined), (whole.as_ptr(), &whole));
        drop((whole, parts));
        assert_eq!((joined[89], pool.used()), (89, 90));
        let tail = joined.slice(60..);
        drop(joined);
        assert_eq!((tail[0], pool.used()), (60, 90));
        drop(tail);
        assert_eq!(pool.used(), 0);

        let whole = frozen(8);
        let [first, middle, last] = [0..2, 2..6, 6..8].map(|range| whole.slice(range));
        for others in [vec![&middle, &first], vec![&first, &last], vec![&first, &first], vec![]] {
            assert!(pool.joined(others.into_iter()).is_none());
        }
        // Beyond the arena, and of no pool at all.
        for elsewhere in [frozen(2 << 20), Bytes::from(vec![1; 4])] {
            let parts = [elsewhere.slice(..2), elsewhere.slice(2..)];
            assert!(pool.joined(parts.iter()).is_none());
        }
    }
}
