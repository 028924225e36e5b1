//! Where one is among the frames of a connection, without reading what is in them.

/// What a client says first, before its first frame.
const PREFACE_LEN: usize = 24;
/// A frame's length, kind, flags and stream.
pub const HEAD_LEN: usize = 9;
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The frames that go one way.
#[derive(Default)]
pub struct Frames {
    /// Bytes that belong to no head.
    skip: usize,
    head: [u8; HEAD_LEN],
    head_len: usize,
    /// Whether the bytes that are skipped are those of a tensor.
    in_data: bool,
    /// Whether header fields have begun that have not ended.
    in_fields: bool,
    /// How often the next byte has begun something new.
    ended: u64,
    /// Bytes of tensors that there were.
    data: u64,
}

/// What the head of a frame says.
pub struct FrameHead {
    pub kind: u8,
    pub flags: u8,
    pub has_stream: bool,
}

impl Frames {
    /// Those of a client, which says hello first.
    pub fn of_client() -> Self {
        Self { skip: PREFACE_LEN, ..Self::default() }
    }

    /// Goes on by these bytes, and shows the head of each frame that begins in them.
    pub fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            if self.in_data {
                self.data += skipped as u64;
            }
            let part = &bytes[skipped..];
            let (of_head, rest) = part.split_at(part.len().min(HEAD_LEN - self.head_len));
            if skipped > 0 {
                self.end_if_whole();
            }
            self.head[self.head_len..][..of_head.len()].copy_from_slice(of_head);
            self.head_len += of_head.len();
            bytes = rest;
            if self.head_len == HEAD_LEN {
                let [long, mid, short, kind, flags, stream @ ..] = self.head;
                self.skip = u32::from_be_bytes([0, long, mid, short]) as usize;
                self.head_len = 0;
                self.in_data = kind == DATA;
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.in_fields = flags & END_HEADERS == 0;
                }
                self.end_if_whole();
                seen(FrameHead { kind, flags, has_stream: stream != [0; 4] });
            }
        }
    }

    fn end_if_whole(&mut self) {
        if self.is_between() && !self.in_fields {
            self.ended += 1;
        }
    }

    /// Whether the next byte begins a frame.
    pub fn is_between(&self) -> bool {
        self.skip == 0 && self.head_len == 0
    }

    /// The number of the frame, or of the header fields over several, of which a part is there and a part
    /// is not; with how much there is of tensors, which may take as long as they like if they go on.
    pub fn in_part(&self) -> Option<(u64, u64)> {
        (!self.is_between() || self.in_fields).then_some((self.ended, self.data))
    }

    /// Bytes of tensors that there were.
    pub fn data(&self) -> u64 {
        self.data
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame whose payload looks like heads of others.
    pub fn frame(kind: u8, flags: u8, stream: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![0, (len >> 8) as u8, len as u8, kind, flags, 0, 0, 0, stream];
        frame.resize(HEAD_LEN + len, PING);
        frame
    }

    #[test]
    fn what_is_there_in_part_has_a_number() {
        let mut frames = Frames::of_client();
        let mut after = |bytes: &[u8]| {
            frames.pass(bytes, |_| {});
            frames.in_part()
        };
        assert_eq!(after(&[0; PREFACE_LEN - 1]), Some((0, 0)));
        assert_eq!(after(&[0]), None);
        // A head, then what it announces.
        let whole = frame(WINDOW_UPDATE, 0, 0, 4);
        assert_eq!(after(&whole[..3]), Some((1, 0)));
        assert_eq!(after(&whole[3..10]), Some((1, 0)));
        assert_eq!(after(&whole[10..]), None);
        assert_eq!(after(&frame(PING, 0, 0, 0)), None);
        // Fields over three frames are one thing.
        assert_eq!(after(&frame(HEADERS, 1, 1, 5)), Some((3, 0)));
        assert_eq!(after(&frame(CONTINUATION, 0, 1, 5)), Some((3, 0)));
        assert_eq!(after(&frame(CONTINUATION, 0, 1, 5)[..4]), Some((3, 0)));
        assert_eq!(after(&frame(CONTINUATION, END_HEADERS, 1, 5)[4..]), None);
        // A tensor's is another with each byte.
        let data = frame(DATA, 0, 1, 100);
        assert_eq!(after(&data[..8]), Some((4, 0)));
        assert_eq!(after(&data[8..60]), Some((4, 51)));
        assert_eq!(after(&data[60..61]), Some((4, 52)));
        assert_eq!(after(&data[61..]), None);
        assert_eq!(after(&frame(HEADERS, END_HEADERS, 3, 5)[..9]), Some((5, 100)));
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in prop::collection::vec((0_u8..10, 0_u8..2, 0_usize..40), 0..20),
            cuts in prop::collection::vec(1_usize..30, 1..20),
        ) {
            let all: Vec<u8> = frames
                .iter()
                .flat_map(|(kind, flags, len)| frame(*kind, *flags, 0, *len))
                .collect();
            let (mut found, mut place, mut rest) = (Vec::new(), Frames::default(), &all[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, behind) = rest.split_at(rest.len().min(*cut));
                place.pass(part, |head| found.push((head.kind, head.flags)));
                rest = behind;
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, _)| (*kind, *flags)).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(place.is_between());
        }
    }
}
