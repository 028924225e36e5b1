use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// What a piece that is joined with its neighbour may be at most: so many bytes cost little to copy, and
/// are many times what a piece costs by itself.
const JOINED_MAX: usize = 4 << 10;

/// What [`Rope::zeros`] has.
static ZEROS: [u8; 4096] = [0; 4096];

/// Bytes as they arrived: a sequence of reference-counted pieces that is one piece most of the time.
///
/// A tensor that came in several network frames stays in those frames until its one copy.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    pieces: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Rope {
    /// So many zeros, which take no memory of their own.
    pub fn zeros(mut len: usize) -> Self {
        let mut rope = Self::default();
        while len > 0 {
            let piece = len.min(ZEROS.len());
            rope.push(Bytes::from_static(&ZEROS[..piece]));
            len -= piece;
        }
        rope
    }

    /// Whether this is known to be nothing but zeros, as what [`zeros`](Self::zeros) gives.
    pub fn is_zeros(&self) -> bool {
        !self.pieces.is_empty() && self.pieces.iter().all(|it| it.as_ptr() == ZEROS.as_ptr())
    }

    /// So many bytes that are not here: no piece has them.
    pub fn absent(len: usize) -> Self {
        Self { pieces: SmallVec::new(), len }
    }

    /// Whether there are bytes, but not here.
    pub fn is_absent(&self) -> bool {
        self.len > 0 && self.pieces.is_empty()
    }

    /// The number of bytes in all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The pieces in order, taken out.
    pub fn into_pieces(self) -> smallvec::IntoIter<[Bytes; 1]> {
        self.pieces.into_iter()
    }

    /// Appends a piece without copying it.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Appends what arrives from outside, which may come byte by byte: small neighbours are copied together,
    /// so that there are never many more pieces than the bytes would fill.
    pub fn arrive(&mut self, piece: Bytes) {
        let last = self.pieces.last_mut();
        let fits = |last: &Bytes| !piece.is_empty() && last.len() + piece.len() <= JOINED_MAX;
        let Some(last) = last.filter(|last| fits(last)) else { return self.push(piece) };
        self.len += piece.len();
        // One that was joined before is nobody else's and has room; one of the network's buffers is left there.
        let mut joined = match std::mem::take(last).try_into_mut() {
            Ok(own) if own.capacity() == JOINED_MAX => own,
            Ok(other) => copied(&other),
            Err(shared) => copied(&shared),
        };
        joined.extend_from_slice(&piece);
        *last = joined.freeze();
    }

    /// The bytes as one slice, if they lie in one piece.
    pub fn contiguous(&self) -> Option<&[u8]> {
        match self.pieces.as_slice() {
            [] => Some(&[]),
            [only] => Some(only),
            _ => None,
        }
    }

    /// The first `len` bytes as one slice: where they lie, if that is in one piece.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn front(&self, len: usize) -> Cow<'_, [u8]> {
        match self.pieces.first().and_then(|first| first.get(..len)) {
            Some(front) => Cow::Borrowed(front),
            None => Cow::Owned(self.slice(0..len).into_bytes().into()),
        }
    }

    /// The bytes as one piece: without a copy where they already are one.
    pub fn into_bytes(self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces.into_iter().next().unwrap_or_default(),
            _ => {
                let mut whole = Vec::with_capacity(self.len);
                for piece in &self.pieces {
                    whole.extend_from_slice(piece);
                }
                whole.into()
            }
        }
    }

    /// Copies all bytes to the start of `target`, which must be at least as long.
    ///
    /// # Panics
    /// When `target` is shorter than the rope.
    pub fn copy_to(&self, target: &mut [u8]) {
        let mut at = 0;
        for piece in &self.pieces {
            target[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
    }

    /// Takes the first `at` bytes off, sharing the piece that is cut.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_to(&mut self, at: usize) -> Rope {
        if at == self.len {
            return std::mem::take(self);
        }
        let front = self.slice(0..at);
        *self = self.slice(at..self.len);
        front
    }

    /// The bytes of `range`, sharing the pieces.
    ///
    /// # Panics
    /// When `range` reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Rope {
        assert!(range.start <= range.end && range.end <= self.len, "rope range out of bounds");
        let mut rope = Rope::default();
        let mut at = 0;
        for piece in &self.pieces {
            let start = range.start.clamp(at, at + piece.len());
            let end = range.end.clamp(at, at + piece.len());
            if start < end {
                rope.push(piece.slice(start - at..end - at));
            }
            at += piece.len();
            if at >= range.end {
                break;
            }
        }
        rope
    }
}

fn copied(bytes: &[u8]) -> BytesMut {
    let mut copy = BytesMut::with_capacity(JOINED_MAX);
    copy.extend_from_slice(bytes);
    copy
}

impl From<Bytes> for Rope {
    fn from(piece: Bytes) -> Self {
        let mut rope = Self::default();
        rope.push(piece);
        rope
    }
}

impl From<Vec<u8>> for Rope {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_was_made_as_zeros_is_known_to_be_that() {
        for len in [1, 4096, 10_000] {
            let zeros = Rope::zeros(len);
            assert!(zeros.is_zeros() && zeros.len() == len);
            assert!(zeros.clone().into_bytes().iter().all(|byte| *byte == 0));
            assert!(!Rope::from(vec![0; len]).is_zeros() && !Rope::absent(len).is_zeros());
        }
        assert!(!Rope::default().is_zeros());
    }

    proptest! {
        #[test]
        fn a_rope_reads_like_its_pieces_joined(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..6),
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let joined = pieces.concat();
            let mut rope = Rope::default();
            for piece in pieces {
                rope.push(piece.into());
            }
            prop_assert_eq!(rope.len(), joined.len());
            let (a, b) = (cut.0.index(joined.len() + 1), cut.1.index(joined.len() + 1));
            let range = a.min(b)..a.max(b);
            prop_assert_eq!(rope.slice(range.clone()).into_bytes(), &joined[range]);
            prop_assert_eq!(&*rope.front(a), &joined[..a]);
            let mut back = rope.clone();
            prop_assert_eq!(back.split_to(a).into_bytes(), &joined[..a]);
            prop_assert_eq!(back.into_bytes(), &joined[a..]);
            let mut copy = vec![0; joined.len()];
            rope.copy_to(&mut copy);
            prop_assert_eq!(&copy, &joined);
            prop_assert_eq!(rope.into_bytes(), joined);
        }

        #[test]
        fn what_arrives_in_little_pieces_lies_in_few(
            sizes in prop::collection::vec(prop_oneof![
                6 => 0..3_usize,
                3 => 0..JOINED_MAX,
                1 => JOINED_MAX..3 * JOINED_MAX,
            ], 0..300),
        ) {
            let mut network = BytesMut::from_iter((0_u32..).map(|n| (n % 251) as u8).take(sizes.iter().sum()));
            let sent = network.to_vec();
            let mut rope = Rope::default();
            for &size in &sizes {
                let piece = network.split_to(size).freeze();
                let at = piece.as_ptr();
                rope.arrive(piece);
                // What is large stays where it is.
                let last = rope.pieces().last().map(|last| last.as_ptr());
                prop_assert!(size < JOINED_MAX || last == Some(at));
            }
            prop_assert_eq!(rope.len(), sent.len());
            // Two neighbours hold more than one piece may be joined to.
            prop_assert!(rope.pieces().len() <= 2 * sent.len() / JOINED_MAX + 1, "{}", rope.pieces().len());
            prop_assert_eq!(rope.into_bytes(), sent);
        }
    }
}
