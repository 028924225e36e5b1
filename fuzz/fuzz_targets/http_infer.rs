//! Bodies of inference calls. The first two bytes say how many of the last ones are the binary tail
//! (little-endian), the rest is the body: JSON and tail.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nereid::{
    inference::InferOutput,
    ingress::http::{infer_request::parse, infer_response::encode},
};
use nereid_fuzz::answer;

fuzz_target!(|input: &[u8]| {
    let Some((tail, body)) = input.split_first_chunk() else {
        return;
    };
    let json_length = body.len().saturating_sub(usize::from(u16::from_le_bytes(*tail)));
    let Ok((mut request, form)) = parse("m", "1", &body.to_vec().into(), json_length) else {
        return;
    };
    // What came in goes out again: an answer is written from tensors that nobody has checked.
    let inputs = std::mem::take(&mut request.inputs);
    let outputs = inputs.into_iter().map(|input| InferOutput {
        name: input.name.as_str().into(),
        datatype: input.datatype,
        shape: input.shape,
        data: input.data.into_bytes(),
    });
    let _ = encode(&answer(request, outputs), &form);
});
