//! What the process of a Python model can send: frames, whole or in two pieces, cut at the place that the
//! first byte gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nereid::backend::python::wire::{Frames, Malformed, Said, Tensor, decode};

/// All that is said, up to what is malformed.
fn said(pieces: [&[u8]; 2]) -> (Vec<Said>, Option<Malformed>) {
    let (mut frames, mut all) = (Frames::default(), Vec::new());
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.next_frame().and_then(|frame| {
                frame.map(|(kind, body)| decode(kind, body)).transpose()
            }) {
                Ok(Some(said)) => all.push(said),
                Ok(None) => break,
                Err(malformed) => return (all, Some(malformed)),
            }
        }
    }
    (all, None)
}

/// A tensor that was taken is as long as its shape says.
fn check(tensor: &Tensor) {
    assert!(tensor.shape.is_fixed());
    if let Some(size) = tensor.datatype.size() {
        let elements = tensor.shape.element_count().expect("it was counted");
        assert_eq!(elements * size as u64, tensor.length());
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let whole = said([bytes, &[]]);
    let (head, tail) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    // Values may be numbers that are not equal to themselves.
    assert_eq!(format!("{whole:?}"), format!("{:?}", said([head, tail])));
    for said in whole.0 {
        match said {
            Said::Responses(responses) => {
                let outputs = responses.iter().filter_map(|it| it.outcome.as_ref()?.as_ref().ok());
                outputs.flat_map(|outputs| &outputs.tensors).for_each(check);
            }
            Said::Call(call) => call.inputs.iter().for_each(check),
            _ => {}
        }
    }
});
