//! `ModelInferRequest` messages. The first byte says into pieces of how many bytes the rest is cut,
//! as the network would.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nereid::{
    inference::{DataType, InferOutput, Rope, Shape, Signature, TensorSpec},
    ingress::grpc::{infer_request, infer_response},
};
use nereid_fuzz::answer;

fuzz_target!(|input: &[u8]| {
    let Some((&size, message)) = input.split_first() else {
        return;
    };
    let mut rope = Rope::default();
    for piece in message.chunks(usize::from(size).max(1)) {
        rope.push(Bytes::copy_from_slice(piece));
    }
    let Ok(mut request) = infer_request(rope) else {
        return;
    };
    // Held against a model that takes whatever the first tensor is called.
    let Some(first) = request.inputs.first() else {
        return;
    };
    let tensor = |name: &str| TensorSpec::new(name, first.datatype, Shape::from([-1]));
    let signature = Signature {
        model: "m".into(),
        max_batch_size: u32::from(size % 2) * 8,
        inputs: vec![tensor(&first.name)],
        outputs: vec![tensor("OUT")],
    };
    let Ok(admitted) = signature.admit(&mut request) else {
        return;
    };
    let outputs = admitted.inputs.into_iter().flatten().map(|input| InferOutput {
        name: "OUT".into(),
        datatype: DataType::Bytes,
        shape: input.shape,
        data: input.data.into_bytes(),
    });
    let segments = infer_response(&answer(request, outputs));
    let length: usize = segments.iter().map(Bytes::len).sum();
    let header = segments.concat();
    assert_eq!(header[1..5], u32::try_from(length - 5).unwrap().to_be_bytes());
});
