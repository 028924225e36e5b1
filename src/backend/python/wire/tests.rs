use proptest::prelude::*;

use super::*;

/// Builds what Python's end writes, by hand: a frame's body.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn name(self, name: &str) -> Self {
        let length = u16::try_from(name.len()).unwrap();
        self.put(&length.to_le_bytes()).put(name.as_bytes())
    }

    fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        self.put(&length.to_le_bytes()).put(text.as_bytes())
    }

    fn tensor(self, name: &str, datatype: u8, dims: &[i64], place: u8) -> Self {
        let mut this = self.name(name).put(&[datatype, u8::try_from(dims.len()).unwrap(), place]);
        for dim in dims {
            this = this.put(&dim.to_le_bytes());
        }
        this
    }

    fn inline(self, data: &[u8]) -> Self {
        let mut this = self.put(&u32::try_from(data.len()).unwrap().to_le_bytes());
        this.0.resize(this.0.len().next_multiple_of(8), 0);
        this.put(data)
    }

    fn decode(self, kind: u8) -> Result<Said, Malformed> {
        decode(kind, self.0.into())
    }
}

fn response_head(count: u32, number: u64, flags: u8, code: u8, tensors: u16) -> Body {
    Body::default()
        .put(&count.to_le_bytes())
        .put(&number.to_le_bytes())
        .put(&[flags, code])
        .put(&tensors.to_le_bytes())
}

#[test]
fn a_response_has_tensors_in_every_place() {
    let said = response_head(1, 7, 3, 0, 3)
        .text("{\"a\":1}")
        .tensor("X", 11, &[2], 0)
        .inline(&[1, 2, 3, 4, 5, 6, 7, 8])
        .tensor("Y", 2, &[3, 2], 1)
        .put(&64_u64.to_le_bytes())
        .put(&6_u64.to_le_bytes())
        .tensor("Z", 13, &[1], 2)
        .put(&128_u64.to_le_bytes())
        .put(&9_u64.to_le_bytes())
        .decode(from_process::RESPONSES);
    let tensor = |name: &str, datatype, shape: &[i64], place| Tensor {
        name: name.into(),
        datatype,
        shape: shape.into(),
        place,
    };
    let expected = Response {
        number: 7,
        is_last: true,
        outcome: Some(Ok(Outputs {
            parameters: "{\"a\":1}".into(),
            tensors: smallvec::smallvec![
                tensor(
                    "X",
                    DataType::Fp32,
                    &[2],
                    Place::Inline(Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]))
                ),
                tensor(
                    "Y",
                    DataType::Uint8,
                    &[3, 2],
                    Place::Sender(Range { offset: 64, length: 6 })
                ),
                tensor(
                    "Z",
                    DataType::Bytes,
                    &[1],
                    Place::Receiver(Range { offset: 128, length: 9 })
                ),
            ],
        })),
    };
    assert_eq!(said, Ok(Said::Responses(vec![expected])));
}

#[test]
fn errors_and_ends_have_no_tensors() {
    let said = response_head(1, 1, 7, 4, 0).text("no").decode(from_process::RESPONSES);
    let failure = Failure { code: Code::Unavailable, message: "no".into() };
    let expected = Response { number: 1, is_last: true, outcome: Some(Err(failure)) };
    assert_eq!(said, Ok(Said::Responses(vec![expected])));
    let said = response_head(1, 2, 1, 0, 0).decode(from_process::RESPONSES);
    let expected = Response { number: 2, is_last: true, outcome: None };
    assert_eq!(said, Ok(Said::Responses(vec![expected])));
}

#[test]
fn a_tensor_must_be_as_long_as_its_shape_says() {
    for (datatype, dims, length) in
        [(11, &[2][..], 7), (11, &[i64::MAX, 8], 8), (2, &[-1], 1), (99, &[1], 1), (1, &[2, 0], 1)]
    {
        let said = response_head(1, 1, 2, 0, 1)
            .text("")
            .tensor("X", datatype, dims, 0)
            .inline(&vec![0; length])
            .decode(from_process::RESPONSES);
        assert!(said.is_err(), "{datatype} {dims:?} {length}");
    }
}

#[test]
fn a_long_list_takes_no_memory_before_it_is_there() {
    let said = Body::default().put(&u32::MAX.to_le_bytes()).decode(from_process::FREED);
    assert!(said.is_err());
}

#[test]
fn frames_come_whole_whatever_the_pieces() {
    let mut writer = Writer::default();
    writer.start("{}");
    writer.free(&[1, 2, 3]);
    writer.finalize();
    let bytes = writer.into_bytes();
    let mut frames = Frames::default();
    let mut kinds = Vec::new();
    for byte in bytes {
        frames.push(&[byte]);
        while let Some((kind, body)) = frames.next_frame().unwrap() {
            kinds.push((kind, body.len()));
        }
    }
    assert_eq!(kinds, [(to_process::START, 8), (to_process::FREE, 32), (to_process::FINALIZE, 0)]);
}

#[test]
fn a_frame_that_is_too_long_is_refused_at_its_header() {
    let mut frames = Frames::default();
    frames.push(&[0xff, 0xff, 0xff, 0xff, 33, 0, 0, 0]);
    assert!(frames.next_frame().is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(kind in 30..56_u8, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(kind, body.into());
    }

    #[test]
    fn nothing_that_is_cut_off_is_taken_for_whole(cut in 0..60_usize) {
        let whole = response_head(1, 7, 3, 0, 1)
            .text("")
            .tensor("X", 2, &[8], 0)
            .inline(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let cut = cut % whole.0.len();
        prop_assert!(decode(from_process::RESPONSES, Bytes::copy_from_slice(&whole.0[..cut])).is_err());
    }
}
