//! Where the parts of the memory lie, and the entries of the two rings.

use crate::{
    MAGIC, VERSION,
    wire::{Malformed, Reader, Writer},
};

/// The size of an entry of the submission ring.
pub const SUBMISSION_BYTES: usize = 32;
/// The size of an entry of the completion ring.
pub const COMPLETION_BYTES: usize = 32;
/// The most entries of a ring.
pub const ENTRIES_MAX: u32 = 1 << 16;

/// The page of the header; what follows begins at a multiple of it.
const PAGE: u64 = 4096;
/// The header's bytes that say where the rest lies.
const HEADER_BYTES: usize = 64;

/// Where in the header each word is that both sides use, on cache lines of their own.
#[derive(Clone, Copy, Debug)]
pub struct Words;

impl Words {
    /// Submissions put so far: written by the client.
    pub const SUBMISSION_TAIL: usize = 128;
    /// Submissions taken so far: written by the server.
    pub const SUBMISSION_HEAD: usize = 192;
    /// Completions put so far: written by the server.
    pub const COMPLETION_TAIL: usize = 256;
    /// Completions taken so far: written by the client.
    pub const COMPLETION_HEAD: usize = 320;
    /// The server's bell.
    pub const SERVER_BELL: usize = 384;
    /// The client's bell.
    pub const CLIENT_BELL: usize = 448;
}

/// The beginning of the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of all of it.
    pub total_bytes: u64,
    /// Places of the submission ring: a power of two.
    pub submissions: u32,
    /// Places of the completion ring: a power of two.
    pub completions: u32,
    /// Where the submission ring begins.
    pub submissions_at: u64,
    /// Where the completion ring begins.
    pub completions_at: u64,
    /// Where the arena begins; offsets in requests and answers count from there.
    pub arena_at: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
}

impl Header {
    /// The memory for rings of at least so many places and an arena of at least so many bytes; `None`
    /// when that is more than can be.
    pub fn plan(submissions: u32, completions: u32, arena_bytes: u64) -> Option<Self> {
        let places =
            |wanted: u32| (wanted <= ENTRIES_MAX).then(|| wanted.max(1).next_power_of_two());
        let (submissions, completions) = (places(submissions)?, places(completions)?);
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE);
        let completions_at = PAGE + pages(u64::from(submissions) * SUBMISSION_BYTES as u64)?;
        let arena_at = completions_at + pages(u64::from(completions) * COMPLETION_BYTES as u64)?;
        let arena_bytes = pages(arena_bytes.max(1))?;
        let total_bytes = arena_at.checked_add(arena_bytes)?;
        // It is to be mapped.
        isize::try_from(total_bytes).ok()?;
        Some(Self {
            total_bytes,
            submissions,
            completions,
            submissions_at: PAGE,
            completions_at,
            arena_at,
            arena_bytes,
        })
    }

    /// As it stands at the beginning of the memory.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        let mut writer = Writer::new(&mut bytes);
        writer.bytes(&MAGIC);
        writer.u32(VERSION);
        writer.u32(PAGE as u32);
        writer.u64(self.total_bytes);
        writer.u32(self.submissions);
        writer.u32(self.completions);
        writer.u64(self.submissions_at);
        writer.u64(self.completions_at);
        writer.u64(self.arena_at);
        writer.u64(self.arena_bytes);
        bytes
    }

    /// Reads the beginning of the memory, which is `total` bytes long.
    ///
    /// # Errors
    /// When it is not one, or its parts do not lie within the memory or lie over each other.
    pub fn parse(bytes: &[u8], total: u64) -> Result<Self, Malformed> {
        const WHAT: &str = "the header of the ring's memory";
        let mut reader = Reader::new(WHAT, bytes);
        let magic = reader.bytes(MAGIC.len())?;
        let (version, page) = (reader.u32()?, reader.u32()?);
        if magic != MAGIC || version != VERSION || u64::from(page) != PAGE {
            let expected = format!("magic bytes {MAGIC:?}, version {VERSION}, {PAGE} bytes");
            return Err(Malformed::new(WHAT, expected, format!("{magic:?}, {version}, {page}")));
        }
        let header = Self {
            total_bytes: reader.u64()?,
            submissions: reader.u32()?,
            completions: reader.u32()?,
            submissions_at: reader.u64()?,
            completions_at: reader.u64()?,
            arena_at: reader.u64()?,
            arena_bytes: reader.u64()?,
        };
        let planned = Self::plan(header.submissions, header.completions, header.arena_bytes);
        if planned != Some(header) || header.total_bytes != total {
            let expected = format!("parts one behind the other in {total} bytes");
            return Err(Malformed::new(WHAT, expected, format!("{header:?}")));
        }
        Ok(header)
    }

    /// Where a place of the submission ring begins.
    pub fn submission_at(&self, place: usize) -> usize {
        self.submissions_at as usize + place * SUBMISSION_BYTES
    }

    /// Where a place of the completion ring begins.
    pub fn completion_at(&self, place: usize) -> usize {
        self.completions_at as usize + place * COMPLETION_BYTES
    }

    /// Where in the memory bytes of the arena lie.
    ///
    /// # Errors
    /// When they do not lie within the arena; `what` they are is told then.
    pub fn arena_range(&self, what: &'static str, span: Span) -> Result<usize, Malformed> {
        match span.offset.checked_add(span.length) {
            Some(end) if end <= self.arena_bytes => Ok((self.arena_at + span.offset) as usize),
            _ => {
                let expected = format!("bytes within the arena of {}", self.arena_bytes);
                Err(Malformed::new(
                    what,
                    expected,
                    format!("{} from {} on", span.length, span.offset),
                ))
            }
        }
    }
}

/// Bytes of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Where they begin, counted from the arena's beginning.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

impl Span {
    /// Whether both have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let end = |span: &Self| span.offset.saturating_add(span.length);
        self.length > 0 && other.length > 0 && self.offset < end(other) && other.offset < end(self)
    }
}

/// What a submission asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To run the request that `span` holds.
    Infer,
    /// To give up the requests in flight that have this token. It has no completion of its own.
    Cancel,
}

/// An entry of the submission ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The client's name for the request, which comes back with its completions.
    pub token: u64,
    /// What to do.
    pub operation: Operation,
    /// Where the request's description lies.
    pub span: Span,
}

impl Submission {
    /// As it stands in the ring.
    pub fn encode(&self) -> [u8; SUBMISSION_BYTES] {
        let operation = match self.operation {
            Operation::Infer => 1,
            Operation::Cancel => 2,
        };
        entry(self.token, [operation, 0], self.span)
    }

    /// Reads an entry, and the token alone where the rest makes no sense.
    pub fn parse(bytes: &[u8; SUBMISSION_BYTES]) -> (u64, Result<Self, Malformed>) {
        let mut reader = Reader::new("a submission", bytes);
        let token = reader.u64().unwrap_or_default();
        let mut rest = || {
            let operation = match reader.u32()? {
                1 => Operation::Infer,
                2 => Operation::Cancel,
                other => {
                    let expected = "operation 1 (infer) or 2 (cancel)";
                    return Err(Malformed::new("a submission", expected, other));
                }
            };
            reader.u32()?;
            let span = Span { offset: reader.u64()?, length: reader.u64()? };
            Ok(Self { token, operation, span })
        };
        (token, rest())
    }
}

/// How a request went: 0, or a number for each kind of failure that the protocol knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Status {
    Ok = 0,
    Unknown = 1,
    Internal = 2,
    NotFound = 3,
    InvalidArgument = 4,
    Unavailable = 5,
    Unsupported = 6,
    AlreadyExists = 7,
    Cancelled = 8,
}

impl Status {
    /// The status of a number; one that is not known counts as [`Status::Unknown`].
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ok,
            2 => Self::Internal,
            3 => Self::NotFound,
            4 => Self::InvalidArgument,
            5 => Self::Unavailable,
            6 => Self::Unsupported,
            7 => Self::AlreadyExists,
            8 => Self::Cancelled,
            _ => Self::Unknown,
        }
    }

    /// Its name in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Unknown => "Unknown",
            Self::Internal => "Internal",
            Self::NotFound => "Not found",
            Self::InvalidArgument => "Invalid argument",
            Self::Unavailable => "Unavailable",
            Self::Unsupported => "Unsupported",
            Self::AlreadyExists => "Already exists",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// In an entry of the completion ring: no other of this request follows.
const FINAL: u32 = 1;

/// An entry of the completion ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's.
    pub token: u64,
    /// How it went.
    pub status: Status,
    /// Whether no other of this request follows.
    pub is_final: bool,
    /// Where the answer lies; of no length when there is none, or no room for it in the request's area.
    pub answer: Span,
}

impl Completion {
    /// As it stands in the ring.
    pub fn encode(&self) -> [u8; COMPLETION_BYTES] {
        let flags = if self.is_final { FINAL } else { 0 };
        entry(self.token, [self.status as u32, flags], self.answer)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// Never, as long as an entry has its size.
    pub fn parse(bytes: &[u8; COMPLETION_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("a completion", bytes);
        Ok(Self {
            token: reader.u64()?,
            status: Status::from_number(reader.u32()?),
            is_final: reader.u32()? & FINAL != 0,
            answer: Span { offset: reader.u64()?, length: reader.u64()? },
        })
    }
}

/// Both rings' entries have the same parts.
fn entry(token: u64, [first, second]: [u32; 2], span: Span) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&token.to_le_bytes());
    bytes[8..12].copy_from_slice(&first.to_le_bytes());
    bytes[12..16].copy_from_slice(&second.to_le_bytes());
    bytes[16..24].copy_from_slice(&span.offset.to_le_bytes());
    bytes[24..].copy_from_slice(&span.length.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plan_has_its_parts_one_behind_the_other() {
        let header = Header::plan(100, 3, 10_000).unwrap();
        assert_eq!((header.submissions, header.completions), (128, 4));
        assert_eq!(
            (header.submissions_at, header.completions_at, header.arena_at, header.arena_bytes),
            (4096, 8192, 12_288, 12_288)
        );
        assert_eq!(header.total_bytes, 24_576);
        assert_eq!(header.encode().len(), HEADER_BYTES);
        assert_eq!(Header::parse(&header.encode(), 24_576), Ok(header));
        assert!(Header::parse(&header.encode(), 24_575).is_err());
        assert_eq!(Header::plan(ENTRIES_MAX + 1, 1, 1), None);
        assert_eq!(Header::plan(1, 1, u64::MAX), None);
        assert_eq!(Header::plan(1, 1, u64::MAX - PAGE), None);
    }

    #[test]
    fn spans_that_touch_do_not_overlap() {
        let span = |offset, length| Span { offset, length };
        assert!(span(0, 4).overlaps(&span(3, 1)));
        assert!(!span(0, 4).overlaps(&span(4, 1)));
        assert!(!span(0, 0).overlaps(&span(0, 4)));
        assert!(span(u64::MAX - 1, 9).overlaps(&span(0, u64::MAX)));
    }

    proptest! {
        #[test]
        fn only_what_lies_within_the_arena_is_found(offset: u64, length: u64, small in 0u64..9000) {
            let header = Header::plan(1, 1, 8192).unwrap();
            for span in [Span { offset, length }, Span { offset: small, length }, Span { offset: small, length: small }] {
                let inside = u128::from(span.offset) + u128::from(span.length) <= 8192;
                let found = header.arena_range("x", span);
                prop_assert_eq!(found.is_ok(), inside);
                if let Ok(at) = found {
                    prop_assert!(at as u64 + span.length <= header.total_bytes);
                }
            }
        }

        #[test]
        fn any_header_is_refused_or_lies_within_its_memory(bytes: [u8; HEADER_BYTES], total: u64) {
            if let Ok(header) = Header::parse(&bytes, total) {
                prop_assert!(header.arena_at + header.arena_bytes <= total);
            }
        }

        #[test]
        fn entries_are_read_as_written(token: u64, offset: u64, length: u64, is_final: bool) {
            let span = Span { offset, length };
            let submission = Submission { token, operation: Operation::Infer, span };
            prop_assert_eq!(Submission::parse(&submission.encode()), (token, Ok(submission)));
            let completion = Completion { token, status: Status::Unavailable, is_final, answer: span };
            prop_assert_eq!(Completion::parse(&completion.encode()), Ok(completion));
        }

        #[test]
        fn any_entry_is_read_or_refused(bytes: [u8; SUBMISSION_BYTES]) {
            let _ = Submission::parse(&bytes);
            prop_assert!(Completion::parse(&bytes).is_ok());
        }
    }
}
