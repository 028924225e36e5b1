use super::*;
use crate::inference::{Code, RequestedOutput};

const NOTE: &str = "NOTE: Setting a non-zero max_batch_size in the model config requires a batch \
    dimension to be prepended to each input shape. If you want to specify the full shape including \
    the batch dim in your input dims config, try setting max_batch_size to zero. See the model \
    configuration docs for more info on max_batch_size.";

/// `A` of four floats, `B` of any number of strings, and an optional `C` of any number of bytes.
fn signature(max_batch_size: u32) -> Signature {
    let tensor = |name, datatype, dim| TensorSpec::new(name, datatype, Shape::from([dim]));
    let mut optional = tensor("C", DataType::Uint8, -1);
    optional.optional = true;
    Signature {
        model: "m".into(),
        max_batch_size,
        inputs: vec![tensor("A", DataType::Fp32, 4), tensor("B", DataType::Bytes, -1), optional],
        outputs: vec![tensor("X", DataType::Fp32, 4), tensor("Y", DataType::Fp32, 4)],
    }
}

fn input(name: &str, datatype: DataType, shape: &[i64], data: &[u8]) -> InferInput {
    InferInput::new(name, datatype, shape.into(), data.to_vec())
}

fn floats(shape: &[i64], bytes: usize) -> InferInput {
    input("A", DataType::Fp32, shape, &vec![0; bytes])
}

fn strings(shape: &[i64], data: &[u8]) -> InferInput {
    input("B", DataType::Bytes, shape, data)
}

fn request<const N: usize>(inputs: [InferInput; N], outputs: &[&str]) -> InferRequest {
    let outputs = outputs
        .iter()
        .map(|&name| RequestedOutput { name: name.into(), ..RequestedOutput::default() });
    InferRequest {
        inputs: inputs.into_iter().collect(),
        outputs: outputs.collect(),
        ..InferRequest::default()
    }
}

fn refusal(signature: &Signature, mut request: InferRequest) -> String {
    let error = signature.admit(&mut request).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    error.to_string()
}

#[test]
fn a_request_that_fits_is_put_in_the_signatures_order() {
    let mut request =
        request([strings(&[2, 1], b"\x01\0\0\0x\0\0\0\0"), floats(&[2, 4], 32)], &["Y", "X"]);
    request.outputs[0].classification = 3;
    let admitted = signature(8).admit(&mut request).unwrap();
    assert_eq!(admitted.batch_size, 2);
    let shapes: Vec<_> =
        admitted.inputs.iter().map(|input| input.as_ref().map(|input| &input.shape[..])).collect();
    assert_eq!(shapes, [Some(&[2, 4][..]), Some(&[2, 1]), None]);
    assert_eq!(&admitted.outputs[..], [0, 1]);
    assert_eq!(&admitted.classes[..], [(1, 3)]);
    assert_eq!(admitted.byte_size(), 41);
}

#[test]
fn without_a_batch_dimension_shapes_are_whole() {
    let c = input("C", DataType::Uint8, &[0], b"");
    let mut request = request([floats(&[4], 16), strings(&[0], b""), c], &[]);
    let admitted = signature(0).admit(&mut request).unwrap();
    assert_eq!(admitted.batch_size, 1);
    assert!(admitted.inputs.iter().all(Option::is_some));
    assert_eq!(&admitted.outputs[..], [0, 1]);
}

#[test]
fn names_and_numbers_of_tensors_are_held_against_the_signature() {
    let a = || floats(&[1, 4], 16);
    let b = || strings(&[1, 0], b"");
    let other = || input("N", DataType::Fp32, &[1], b"");
    let missing = |got: usize, names: &str, missing: &str| {
        format!(
            "[request id: <id_unknown>] expected number of inputs between 2 and 3 but got {got} \
             inputs for model 'm'. Got input(s) {names}, but missing required input(s) {missing}. \
             Please provide all required input(s)."
        )
    };
    let twice = |what: &str| format!("[request id: <id_unknown>] {what} already exists in request");
    for (request, expected) in [
        (request([a(), a()], &["N"]), twice("input 'A'")),
        (request([], &["N", "X", "Y", "X"]), twice("output 'X'")),
        (request([], &["N"]), "unexpected inference output 'N' for model 'm'".to_owned()),
        (request([], &[]), missing(0, "[]", "['A','B']")),
        (request([b()], &[]), missing(1, "['B']", "['A']")),
        (request([a(), b(), other(), other()], &[]), missing(4, "['A','B','N','N']", "[]")),
        (request([a(), other()], &[]), "unexpected inference input 'N' for model 'm'".to_owned()),
        (
            request([b(), input("C", DataType::Uint8, &[1, 0], b"")], &[]),
            missing(2, "['B','C']", "['A']"),
        ),
    ] {
        assert_eq!(refusal(&signature(8), request), expected);
    }
    let mut all_required = signature(8);
    all_required.inputs[2].optional = false;
    assert_eq!(
        refusal(&all_required, request([a(), b()], &[])),
        "[request id: <id_unknown>] expected 3 inputs but got 2 inputs for model 'm'. Got input(s) \
         ['A','B'], but missing required input(s) ['C']. Please provide all required input(s)."
    );
}

#[test]
fn shapes_types_and_sizes_are_held_against_the_signature() {
    let b = || strings(&[1, 0], b"");
    for (inputs, expected) in [
        (
            [floats(&[], 0), b()],
            "input 'A' has no shape but model requires batch dimension for 'm'".to_owned(),
        ),
        (
            [floats(&[2, 4], 32), b()],
            "input 'B' batch size does not match other inputs for 'm'".to_owned(),
        ),
        (
            [floats(&[9, 4], 144), strings(&[9, 0], b"")],
            "inference request batch-size must be <= 8 for 'm'".to_owned(),
        ),
        (
            [floats(&[0, 4], 0), strings(&[0, 0], b"")],
            "inference request batch-size must be >= 1 for 'm', got 0".to_owned(),
        ),
        (
            [floats(&[-1, 4], 0), b()],
            "All input dimensions should be specified for input 'A' for model 'm', got [-1,4]"
                .to_owned(),
        ),
        (
            [floats(&[1, -4], 0), b()],
            "All input dimensions should be specified for input 'A' for model 'm', got [1,-4]"
                .to_owned(),
        ),
        (
            [input("A", DataType::Int32, &[1, 4], &[0; 16]), b()],
            "inference input 'A' data-type is 'INT32', but model 'm' expects 'FP32'".to_owned(),
        ),
        (
            [floats(&[1, 5], 20), b()],
            format!(
                "unexpected shape for input 'A' for model 'm'. Expected [-1,4], got [1,5]. {NOTE}"
            ),
        ),
        (
            [floats(&[1, 2, 2], 16), b()],
            format!(
                "unexpected shape for input 'A' for model 'm'. Expected [-1,4], got [1,2,2]. {NOTE}"
            ),
        ),
        (
            [floats(&[1, 4], 15), b()],
            "input byte size mismatch for input 'A' for model 'm'. Expected 16, got 15".to_owned(),
        ),
        (
            [floats(&[2, 4], 32), strings(&[2, i64::MAX], b"")],
            "input 'B' for model 'm' has shape [2,9223372036854775807]: the number of elements is \
             too large"
                .to_owned(),
        ),
    ] {
        let expected = format!("[request id: <id_unknown>] {expected}");
        assert_eq!(refusal(&signature(8), request(inputs, &[])), expected);
    }
    assert_eq!(
        refusal(&signature(0), request([floats(&[5], 20), strings(&[0], b"")], &[])),
        "[request id: <id_unknown>] unexpected shape for input 'A' for model 'm'. Expected [4], got \
         [5]. "
    );
}

#[test]
fn strings_are_as_many_as_the_shape_says_and_whole() {
    let on_indicator = |got| {
        format!(
            "incomplete string length indicator for inference input 'B' for model 'm', expecting 4 \
             bytes but only {got} bytes available. Please make sure the string length indicator is \
             in one buffer."
        )
    };
    for (count, data, expected) in [
        (
            1,
            &b""[..],
            "expected 1 string elements for inference input 'B' for model 'm', got 0".to_owned(),
        ),
        (1, b"\0\0", on_indicator(2)),
        (1, b"\x01\0\0\0ab", on_indicator(1)),
        (
            1,
            b"\x03\0\0\0ab",
            "incomplete string data for inference input 'B' for model 'm', expecting string of \
             length 3 but only 2 bytes available"
                .to_owned(),
        ),
        (
            1,
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
            "unexpected number of string elements 2 for inference input 'B' for model 'm', \
             expecting 1"
                .to_owned(),
        ),
    ] {
        let request = request([floats(&[1, 4], 16), strings(&[1, count], data)], &[]);
        assert_eq!(
            refusal(&signature(8), request),
            format!("[request id: <id_unknown>] {expected}")
        );
    }
}

#[test]
fn strings_are_read_across_pieces() {
    let data = b"\x02\0\0\0ab\x01\0\0\0c";
    for at in 0..=data.len() {
        let mut split = floats(&[1, 4], 16);
        (split.name, split.datatype, split.shape) =
            ("B".into(), DataType::Bytes, Shape::from([1, 2]));
        split.data = Rope::from(data[..at].to_vec());
        split.data.push(data[at..].to_vec().into());
        let mut request = request([floats(&[1, 4], 16), split], &[]);
        assert!(signature(8).admit(&mut request).is_ok(), "split at {at}");
    }
}

#[test]
fn a_refusal_names_the_request() {
    let mut request = request([floats(&[1, 4], 16), floats(&[1, 4], 16)], &[]);
    request.id = "7".into();
    assert_eq!(
        refusal(&signature(8), request),
        "[request id: 7] input 'A' already exists in request"
    );
}

/// What a step of an ensemble gives is held to the same as what a client sends.
#[test]
fn tensors_in_order_are_admitted_like_those_by_name() {
    let none = b"\0\0\0\0";
    let bytes = |shape: &[i64]| input("C", DataType::Uint8, shape, b"abc");
    for (inputs, fits) in [
        (vec![floats(&[1, 4], 16), strings(&[1, 1], none)], true),
        (vec![floats(&[1, 4], 16), strings(&[1, 1], none), bytes(&[1, 3])], true),
        (vec![strings(&[1, 1], none), bytes(&[1, 3])], false),
        (vec![floats(&[1, 4], 16), strings(&[2, 1], none)], false),
        (vec![floats(&[9, 4], 144), strings(&[9, 0], b"")], false),
        (vec![floats(&[0, 4], 0), strings(&[0, 1], b"")], false),
        (vec![floats(&[1, 5], 20), strings(&[1, 1], none)], false),
        (vec![floats(&[1, 4], 12), strings(&[1, 1], none)], false),
        (vec![floats(&[1, 4], 16), strings(&[1, 1], b"\0\0")], false),
        (vec![input("A", DataType::Int32, &[1, 4], &[0; 16]), strings(&[1, 1], none)], false),
    ] {
        let signature = signature(8);
        let of_name = |spec: &TensorSpec| inputs.iter().find(|input| *input.name == *spec.name);
        let in_order = signature.inputs.iter().map(|spec| {
            let InferInput { datatype, shape, data, .. } = of_name(spec)?.clone();
            Some((datatype, AdmittedInput { shape, data }))
        });
        let (datatypes, in_order): (Vec<_>, SmallVec<_>) = (signature.inputs.iter().zip(in_order))
            .map(|(spec, input)| {
                (input.as_ref().map_or(spec.datatype, |it| it.0), input.map(|it| it.1))
            })
            .unzip();
        let wanted = [0, 1].into_iter().collect();
        let in_order = signature.admit_in_order(in_order, &datatypes, wanted);
        let mut request = request([], &[]);
        request.inputs = inputs.clone().into_iter().collect();
        let by_name = signature.admit(&mut request);
        assert_eq!(by_name.is_ok(), fits, "{inputs:?}");
        let told = |admitted: Result<Admitted, Error>| match admitted {
            Ok(admitted) => format!("{admitted:?}"),
            Err(error) => {
                error.to_string().trim_start_matches("[request id: <id_unknown>] ").into()
            }
        };
        assert_eq!(told(in_order), told(by_name));
    }
}
