use std::collections::BTreeMap;

use super::*;
use crate::{
    backend::{
        Batch, ModelRequest, ModelResponse, PlacementDevice, Respond, Responder, ResponseError,
    },
    inference::{Admitted, AdmittedInput, Code},
    proto::{ModelInput, ModelOutput, ModelParameter},
};

/// A model with this chain, these inputs and outputs.
pub(super) fn source(
    chain: &str,
    max_batch_size: u32,
    inputs: &[(&str, DataType, &[i64])],
    outputs: &[(&str, DataType, &[i64])],
) -> ModelSource {
    let specs = |specs: &[(&str, DataType, &[i64])]| {
        let spec = |&(name, datatype, dims): &(_, _, &[i64])| {
            TensorSpec::new(name, datatype, Shape::from(dims))
        };
        specs.iter().map(spec).collect::<Vec<_>>()
    };
    let config = ModelConfig {
        name: "m".to_owned(),
        max_batch_size: max_batch_size as i32,
        parameters: [(PARAMETER.to_owned(), ModelParameter { string_value: chain.to_owned() })]
            .into_iter()
            .collect(),
        input: inputs
            .iter()
            .map(|(name, datatype, dims)| ModelInput {
                name: (*name).to_owned(),
                data_type: datatype.to_config() as i32,
                dims: dims.to_vec(),
                ..ModelInput::default()
            })
            .collect(),
        output: outputs
            .iter()
            .map(|(name, datatype, dims)| ModelOutput {
                name: (*name).to_owned(),
                data_type: datatype.to_config() as i32,
                dims: dims.to_vec(),
                ..ModelOutput::default()
            })
            .collect(),
        ..ModelConfig::default()
    };
    ModelSource {
        name: "m".into(),
        version: 1,
        model_dir: "/m".into(),
        version_dir: "/m/1".into(),
        model_path: "/m/1".into(),
        config: Arc::new(config),
        signature: Arc::new(Signature {
            model: "m".into(),
            max_batch_size,
            inputs: specs(inputs),
            outputs: specs(outputs),
        }),
        settings: Arc::new(BTreeMap::new()),
    }
}

fn ops() -> Ops {
    Ops::new(Arc::new(Devices::none("no devices")))
}

pub(super) fn pool() -> BufferPool {
    BufferPool::new(1 << 20, 64 << 20).unwrap()
}

/// What a chain without a batch makes of these tensors.
pub(super) fn run(
    source: &ModelSource,
    tensors: Vec<(Shape, Bytes)>,
) -> Result<Vec<(Shape, Bytes)>, String> {
    let rows = tensors[0].0.first().copied().unwrap_or(1) as usize;
    let loaded = loaded(source)?;
    let outputs =
        loaded.run(rows, tensors.into_iter(), &pool()).map_err(|error| error.to_string())?;
    Ok(outputs.into_iter().flatten().map(|made| (made.shape, made.data)).collect())
}

pub(super) fn loaded(source: &ModelSource) -> Result<Loaded, String> {
    ops().load(source).map_err(|error| error.0)?;
    let steps = steps(source).unwrap();
    let signature = &source.signature;
    let given: Vec<_> =
        signature.inputs.iter().map(|input| (input.name.to_string(), form(input))).collect();
    let plan = plan(source, &steps, &given, sole_output(&source.config)).unwrap();
    let results = signature.outputs.iter().map(|output| result(source, &plan, output).unwrap());
    let results = results.collect();
    Ok(Loaded { plan, results, has_batch: signature.max_batch_size > 0 })
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn tensor<T: bytemuck::Pod>(dims: &[i64], elements: &[T]) -> (Shape, Bytes) {
    (Shape::from(dims), Bytes::copy_from_slice(bytemuck::cast_slice(elements)))
}

/// Files as a tensor of strings, one a row.
pub(super) fn files(files: &[Vec<u8>]) -> (Shape, Bytes) {
    let mut wire = Vec::new();
    for file in files {
        wire.extend_from_slice(&(file.len() as u32).to_le_bytes());
        wire.extend_from_slice(file);
    }
    (Shape::from([files.len() as i64, 1]), wire.into())
}

pub(super) fn png(width: u32, height: u32, colour: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    file
}

const FILE: (&str, DataType, &[i64]) = ("FILE", DataType::Bytes, &[1]);

#[test]
fn files_become_normalised_planes_in_one_stage() {
    let chain = r#"[{"op": "decode"}, {"op": "resize", "size": [1, 2]},
        {"op": "channels", "order": "BGR"},
        {"op": "normalize", "scale": 0.5, "mean": [1, 2, 3], "std": [1, 2, 4]},
        {"op": "layout", "to": "CHW"}]"#;
    let source = source(chain, 8, &[FILE], &[("OUT", DataType::Fp32, &[3, 1, 2])]);
    assert_eq!(loaded(&source).unwrap().plan.stages.len(), 1);
    let rgb = [10, 20, 30, 40, 50, 60];
    let grey = [8, 8, 16, 16];
    let rows = [png(2, 1, png::ColorType::Rgb, &rgb), png(2, 2, png::ColorType::Grayscale, &grey)];
    let made = run(&source, vec![files(&rows)]).unwrap();
    assert_eq!(made[0].0, Shape::from([2, 3, 1, 2]));
    let expected = [14.0, 29.0, 4.0, 11.5, 0.5, 4.25, 5.0, 5.0, 2.0, 2.0, 0.75, 0.75];
    assert_eq!(floats(&made[0].1), expected);
}

#[test]
fn pictures_are_letterboxed_covered_and_cropped() {
    let pixels: Vec<u8> = (0..8).collect();
    let input = ("P", DataType::Uint8, &[2, 4, 1][..]);
    for (steps, dims, expected) in [
        (
            r#"{"op": "resize", "size": [4, 4], "fit": "letterbox", "fill": 9, "filter": "nearest"}"#,
            &[4, 4, 1][..],
            &[9, 9, 9, 9, 0, 1, 2, 3, 4, 5, 6, 7, 9, 9, 9, 9][..],
        ),
        (
            r#"{"op": "resize", "size": [2, 2], "fit": "cover", "filter": "nearest"}"#,
            &[2, 2, 1],
            &[1, 2, 5, 6],
        ),
        (r#"{"op": "crop", "size": [1, 2]}"#, &[1, 2, 1], &[1, 2]),
        (r#"{"op": "crop", "square": 1.0}"#, &[2, 2, 1], &[1, 2, 5, 6]),
        (
            r#"{"op": "resize", "shorter": 2, "filter": "nearest"}, {"op": "crop", "size": [2, 2]}"#,
            &[2, 2, 1],
            &[1, 2, 5, 6],
        ),
        (
            r#"{"op": "resize", "size": [4, 4], "fit": "letterbox", "anchor": "top_left",
                "filter": "nearest"}, {"op": "crop", "size": [2, 4]}"#,
            &[2, 4, 1],
            &[4, 5, 6, 7, 0, 0, 0, 0],
        ),
    ] {
        let source =
            source(&format!("[{steps}]"), 0, &[input], &[("OUT", DataType::Uint8, &[-1, -1, 1])]);
        let made = run(&source, vec![tensor(&[2, 4, 1], &pixels)]).unwrap();
        assert_eq!((&*made[0].0, &*made[0].1), (dims, expected), "{steps}");
    }
}

#[test]
fn what_comes_after_a_model_is_done_row_by_row() {
    let chain = r#"[{"op": "softmax", "output": "P"}, {"op": "top_k", "k": 2, "output": ["V", "I"]},
        {"op": "argmax", "input": "P", "output": "A"}, {"op": "log_softmax", "input": "X", "output": "L"}]"#;
    let outputs: [(&str, DataType, &[i64]); 4] = [
        ("V", DataType::Fp32, &[2]),
        ("I", DataType::Int64, &[2]),
        ("A", DataType::Int64, &[1]),
        ("L", DataType::Fp32, &[3]),
    ];
    let source = source(chain, 4, &[("X", DataType::Fp32, &[3])], &outputs);
    let made = run(&source, vec![tensor(&[2, 3], &[0.0f32, 0.0, 0.0, 1.0, 3.0, 2.0])]).unwrap();
    let values = floats(&made[0].1);
    let second = [3f32, 2.0].map(|x| x.exp() / (1f32.exp() + 2f32.exp() + 3f32.exp()));
    for (got, expected) in values.iter().zip([1.0 / 3.0, 1.0 / 3.0, second[0], second[1]]) {
        assert!((got - expected).abs() < 1e-6, "{values:?}");
    }
    assert_eq!(made[1], tensor(&[2, 2], &[0i64, 1, 1, 2]));
    assert_eq!(made[2], tensor(&[2, 1], &[0i64, 1]));
    assert!((floats(&made[3].1)[4].exp() - second[0]).abs() < 1e-6);
}

#[test]
fn sequences_are_padded_and_entries_gathered() {
    let chain = r#"[{"op": "pad", "input": "T", "length": 4, "value": -1, "output": ["OUT", "MASK"]},
        {"op": "gather", "input": ["OUT", "I"], "output": "G"}]"#;
    let inputs: [(&str, DataType, &[i64]); 2] =
        [("T", DataType::Int32, &[-1]), ("I", DataType::Int64, &[2])];
    let outputs: [(&str, DataType, &[i64]); 3] = [
        ("OUT", DataType::Int32, &[4]),
        ("MASK", DataType::Int64, &[4]),
        ("G", DataType::Int32, &[2]),
    ];
    let source = source(chain, 4, &inputs, &outputs);
    let sequences = tensor(&[2, 2], &[1i32, 2, 3, 4]);
    let made = run(&source, vec![sequences.clone(), tensor(&[2, 2], &[1i64, 3, 0, 0])]).unwrap();
    assert_eq!(made[0], tensor(&[2, 4], &[1i32, 2, -1, -1, 3, 4, -1, -1]));
    assert_eq!(made[1], tensor(&[2, 4], &[1i64, 1, 0, 0, 1, 1, 0, 0]));
    assert_eq!(made[2], tensor(&[2, 2], &[2i32, -1, 3, 3]));
    let error = run(&source, vec![sequences, tensor(&[2, 2], &[1i64, 3, 0, 4])]).unwrap_err();
    assert_eq!(error, "step 2 (gather): row 1: expected indices of 0 to 3, got 4");
    let long = tensor(&[1, 5], &[0i32; 5]);
    let error = run(&source, vec![long, tensor(&[1, 2], &[0i64, 0])]).unwrap_err();
    assert_eq!(error, "step 1 (pad): expected at most 4 elements, or 'truncate', got 5");
}

#[test]
fn rows_are_cut_to_the_sequences_that_they_begin_with() {
    let inputs: [(&str, DataType, &[i64]); 2] =
        [("X", DataType::Int32, &[4]), ("N", DataType::Int64, &[1])];
    let chain = r#"[{"op": "unpad", "input": ["X", "N"]}]"#;
    let source = source(chain, 4, &inputs, &[("Y", DataType::Int32, &[-1])]);
    let rows = tensor(&[2, 4], &[1i32, 2, 3, 4, 5, 6, 7, 8]);
    let made = run(&source, vec![rows.clone(), tensor(&[2, 1], &[3i64, 3])]).unwrap();
    assert_eq!(made[0], tensor(&[2, 3], &[1i32, 2, 3, 5, 6, 7]));
    for (lengths, told) in [
        ([5i64, 5], "row 0: expected a length of 0 to 4, got 5"),
        ([2, 3], "row 1: its sequence has a length of 3, that of row 0 2: a batch has one length"),
    ] {
        let error = run(&source, vec![rows.clone(), tensor(&[2, 1], &lengths)]).unwrap_err();
        assert_eq!(error, format!("step 1 (unpad): {told}"));
    }
}

#[test]
fn boxes_that_overlap_are_suppressed() {
    let chain = r#"[{"op": "nms", "input": ["B", "S"], "output": ["BOXES", "SCORES", "CLASSES", "COUNT"],
        "iou_threshold": 0.5, "score_threshold": 0.2, "max_output": 3}]"#;
    let inputs: [(&str, DataType, &[i64]); 2] =
        [("B", DataType::Fp32, &[-1, 4]), ("S", DataType::Fp32, &[-1, 2])];
    let outputs: [(&str, DataType, &[i64]); 4] = [
        ("BOXES", DataType::Fp32, &[3, 4]),
        ("SCORES", DataType::Fp32, &[3]),
        ("CLASSES", DataType::Int64, &[3]),
        ("COUNT", DataType::Int32, &[1]),
    ];
    let source = source(chain, 4, &inputs, &outputs);
    let boxes = [[0f32, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 0.0, 30.0, 10.0]];
    let scores = [[0.9f32, 0.1], [0.8, 0.0], [0.1, 0.3]];
    let made = run(
        &source,
        vec![tensor(&[1, 3, 4], boxes.as_flattened()), tensor(&[1, 3, 2], scores.as_flattened())],
    )
    .unwrap();
    let kept = [boxes[0], boxes[2], [0.0; 4]];
    assert_eq!(made[0], tensor(&[1, 3, 4], kept.as_flattened()));
    assert_eq!(made[1], tensor(&[1, 3], &[0.9f32, 0.3, 0.0]));
    assert_eq!(made[2], tensor(&[1, 3], &[0i64, 1, -1]));
    assert_eq!(made[3], tensor(&[1, 1], &[2i32]));
}

#[test]
fn numbers_are_quantised_and_back() {
    let chain = r#"[{"op": "cast", "to": "UINT8", "scale": 0.5, "zero_point": 10, "output": "Q"},
        {"op": "cast", "to": "FP32", "scale": 0.5, "zero_point": 10}]"#;
    let outputs: [(&str, DataType, &[i64]); 2] =
        [("Q", DataType::Uint8, &[3]), ("OUTPUT", DataType::Fp32, &[3])];
    let source = source(chain, 0, &[("X", DataType::Fp32, &[3])], &outputs);
    let made = run(&source, vec![tensor(&[3], &[1.0f32, -9.0, 1.3])]).unwrap();
    assert_eq!(made[0], tensor(&[3], &[12u8, 0, 13]));
    assert_eq!(made[1], tensor(&[3], &[1.0f32, -5.0, 1.5]));
}

#[test]
fn a_bad_file_is_named_by_its_row() {
    let chain = r#"[{"op": "decode", "max_pixels": 6}, {"op": "crop", "size": [1, 2]}]"#;
    let source = source(chain, 8, &[FILE], &[("OUT", DataType::Uint8, &[1, 2, 3])]);
    let good = png(2, 1, png::ColorType::Rgb, &[0; 6]);
    let mut cut = good.clone();
    cut.truncate(40);
    let large = png(7, 1, png::ColorType::Grayscale, &[0; 7]);
    let narrow = png(1, 2, png::ColorType::Grayscale, &[0; 2]);
    for (file, expected) in [
        (b"GIF89a".to_vec(), "expected a JPEG or PNG file, got 6 bytes that are neither"),
        (Vec::new(), "expected a JPEG or PNG file, got 0 bytes that are neither"),
        (cut, "the PNG file cannot be decoded: "),
        (vec![0xff, 0xd8, 0xff, 0xe0, 0, 0], "the JPEG file cannot be decoded: "),
        (large, "the picture has 7 × 1 pixels: expected at most 6 of them"),
        (narrow, "a picture of 1 × 2 pixels is too small to cut 2 × 1 out of it"),
    ] {
        let error = run(&source, vec![files(&[good.clone(), file])]).unwrap_err();
        let place = "step 1 (decode), step 2 (crop): row 1: ";
        assert!(error.starts_with(&format!("{place}{expected}")), "{error}");
    }
}

#[test]
fn rows_of_different_sizes_are_no_batch() {
    let source = source(
        r#"[{"op": "decode", "channels": 1}]"#,
        8,
        &[FILE],
        &[("OUT", DataType::Uint8, &[-1, -1, 1])],
    );
    let [one, two] =
        [1, 2].map(|width| png(width, 1, png::ColorType::Grayscale, &[7, 7][..width as usize]));
    let made = run(&source, vec![files(std::slice::from_ref(&two))]).unwrap();
    assert_eq!(made[0], tensor(&[1, 1, 2, 1], &[7u8, 7]));
    let error = run(&source, vec![files(&[one, two])]).unwrap_err();
    assert!(
        error.contains("row 1: its picture becomes 2 × 1 pixels, that of row 0 1 × 1"),
        "{error}"
    );
}

#[test]
fn a_chain_completes_its_configuration() {
    let chain = r#"[{"op": "decode", "input": "IMAGE"}, {"op": "resize", "size": [4, 5]},
        {"op": "layout", "to": "CHW"}, {"op": "cast", "to": "FP16", "output": "PIXELS"}]"#;
    let told = ops().inspect(&source(chain, 0, &[], &[])).unwrap().unwrap();
    let tensor = |name: &str, datatype, dims: &[i64]| ModelIoTensor {
        name: name.to_owned(),
        datatype,
        dims: Shape::from(dims),
    };
    assert_eq!(told.inputs, [tensor("IMAGE", DataType::Bytes, &[-1, 1])]);
    assert_eq!(told.outputs, [tensor("PIXELS", DataType::Fp16, &[-1, 3, 4, 5])]);

    let chain =
        r#"[{"op": "softmax", "output": "P"}, {"op": "top_k", "k": 2, "output": ["V", "I"]}]"#;
    let told =
        ops().inspect(&source(chain, 0, &[("X", DataType::Fp32, &[9])], &[])).unwrap().unwrap();
    let expected = [tensor("V", DataType::Fp32, &[2]), tensor("I", DataType::Int64, &[2])];
    assert_eq!(told.outputs, expected);
    assert_eq!(ops().inspect(&source(chain, 0, &[], &[])), Ok(None));
}

#[test]
fn a_chain_that_cannot_be_is_refused_at_load() {
    let float = ("X", DataType::Fp32, &[8][..]);
    let pixels = ("X", DataType::Uint8, &[-1, -1, 3][..]);
    type Case<'a> = (&'a str, (&'a str, DataType, &'a [i64]), &'a str);
    let cases: [Case<'_>; 20] = [
        ("[", float, "parameter 'chain' of model 'm': expected a list of steps in JSON"),
        (
            r#"[{"op": "decode"}]"#,
            float,
            "step 1 (decode): expected BYTES [1], one file a row, got FP32 [8]",
        ),
        (
            r#"[{"op": "resize", "size": [1, 1]}]"#,
            float,
            "expected pixels, UINT8 [height,width,channels]",
        ),
        (r#"[{"op": "resize"}]"#, pixels, "expected either 'size' or 'shorter'"),
        (
            r#"[{"op": "resize", "size": [0, 1]}]"#,
            pixels,
            "expected sides of 1 to 16384, got [0, 1]",
        ),
        (
            r#"[{"op": "resize", "size": [1, 1], "fill": [1]}]"#,
            pixels,
            "expected one number or 3 as 'fill'",
        ),
        (
            r#"[{"op": "normalize"}, {"op": "crop", "square": 1}]"#,
            pixels,
            "step 2 (crop): must come before 'normalize'",
        ),
        (r#"[{"op": "normalize", "std": 0}]"#, pixels, "expected 'scale' and 'std' other than 0"),
        (
            r#"[{"op": "channels", "order": "RGA"}]"#,
            pixels,
            "the letters of RGB in any order, got 'RGA'",
        ),
        (
            r#"[{"op": "crop", "square": 2}]"#,
            pixels,
            "expected 'square' above 0 and up to 1, got 2",
        ),
        (
            r#"[{"op": "softmax"}]"#,
            pixels,
            "expected FP32 with one dimension or more, got UINT8 [-1,-1,3]",
        ),
        (r#"[{"op": "top_k", "k": 9}]"#, float, "expected 'k' of 1 to 8 for FP32 [8], got 9"),
        (r#"[{"op": "cast", "to": "INT64"}]"#, float, "not FP32 to INT64"),
        (r#"[{"op": "cast", "to": "UINT8", "scale": 0}]"#, float, "expected 'scale' other than 0"),
        (r#"[{"op": "pad"}]"#, float, "expected either 'length' or 'multiple'"),
        (
            r#"[{"op": "pad", "length": 4}]"#,
            float,
            "expected at most 4 elements, or 'truncate', got FP32 [8]",
        ),
        (r#"[{"op": "gather"}]"#, float, "expected 2 input(s), got 1"),
        (
            r#"[{"op": "softmax", "input": "Y"}]"#,
            float,
            "no tensor 'Y' is there by then; there are 'X'",
        ),
        (r#"[{"op": "softmax", "output": "X"}]"#, float, "there is a tensor 'X' already"),
        (r#"[{"op": "softmax", "output": ["P", "Q"]}]"#, float, "gives 1 tensors, got names for 2"),
    ];
    for (chain, input, expected) in cases {
        let source = source(chain, 0, &[input], &[("OUT", DataType::Fp32, &[-1])]);
        let error = ops().load(&source).err().expect(chain).0;
        assert!(error.contains(expected), "{chain}: {error}");
    }
}

#[test]
fn outputs_must_be_what_the_chain_makes() {
    let chain = r#"[{"op": "softmax", "output": "P"}]"#;
    let input = ("X", DataType::Fp32, &[8][..]);
    for (output, expected) in [
        (
            ("Q", DataType::Fp32, &[8][..]),
            "output 'Q' of model 'm' is not made by its chain, which makes 'P'",
        ),
        (
            ("P", DataType::Fp32, &[7]),
            "output 'P' of model 'm' is FP32 [8] by its chain: the configuration has FP32 [7]",
        ),
        (("P", DataType::Int64, &[8]), "the configuration has INT64 [8]"),
    ] {
        let error = ops().load(&source(chain, 0, &[input], &[output])).err().unwrap().0;
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_instance_runs_whole_batches() {
    let outputs: [(&str, DataType, &[i64]); 1] = [("A", DataType::Int64, &[1])];
    let source = source(r#"[{"op": "argmax"}]"#, 4, &[("X", DataType::Fp32, &[2])], &outputs);
    let placement =
        Placement { name: "m_0".into(), device: PlacementDevice::Cpu, host_policy: String::new() };
    let host = Arc::new(Host::without_models(pool()));
    let instance = ops().load(&source).unwrap().instance(&placement, &host).unwrap();
    let mut instance = instance.into_batches().expect("nothing in it can fail");
    // Not aligned for its type.
    let mut bytes = vec![0];
    bytes.extend([1f32, 2.0, 4.0, 3.0].iter().flat_map(|value| value.to_le_bytes()));
    let data = Bytes::from(bytes).slice(1..);
    let inputs = [Some(BatchTensor { shape: Shape::from([2, 2]), data })];
    let batch = Batch { rows: 2, inputs: &inputs, wanted: &[true], pool: &pool(), places: None };
    let made = instance.execute(&batch).unwrap();
    let made = made[0].as_ref().unwrap();
    assert_eq!((made.shape.clone(), made.data.clone()), tensor(&[2, 1], &[1i64, 0]));
}

#[test]
fn what_a_later_step_takes_is_an_output_too_where_the_configuration_says_so() {
    let chain = r#"[{"op": "decode", "output": "picture"},
        {"op": "resize", "input": "picture", "size": [2, 2], "output": "small"}]"#;
    let names = |outputs: &[(&str, DataType, &[i64])]| -> Vec<String> {
        let told = ops().inspect(&source(chain, 0, &[FILE], outputs)).unwrap().unwrap();
        told.outputs.into_iter().map(|output| output.name).collect()
    };
    let picture: (&str, DataType, &[i64]) = ("picture", DataType::Uint8, &[-1, -1, 3]);
    assert_eq!(names(&[]), ["small"]);
    assert_eq!(names(&[picture]), ["small", "picture"]);
    assert_eq!(names(&[("other", DataType::Uint8, &[1])]), ["small"]);
}

/// Keeps what a model answers.
struct Kept(std::sync::mpsc::Sender<Result<ModelResponse, ResponseError>>);

impl Respond for Kept {
    fn send(&mut self, response: Result<ModelResponse, ResponseError>) {
        self.0.send(response).unwrap();
    }

    fn finish(mut self: Box<Self>, last: Option<Result<ModelResponse, ResponseError>>) {
        last.into_iter().for_each(|last| self.send(last));
    }

    fn drop_unfinished(self: Box<Self>) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn a_bad_file_fails_its_own_request_alone() {
    let source = source(
        r#"[{"op": "decode", "channels": 1}]"#,
        8,
        &[FILE],
        &[("OUT", DataType::Uint8, &[-1, -1, 1])],
    );
    let host = Arc::new(Host::without_models(pool()));
    let placement =
        Placement { name: "m_0".into(), device: PlacementDevice::Cpu, host_policy: String::new() };
    let instance = ops().load(&source).unwrap().instance(&placement, &host).unwrap();
    let ModelInstance::Requests(mut instance) = instance else { panic!("files come one by one") };
    let (answers, answered) = std::sync::mpsc::channel();
    let good = png(2, 1, png::ColorType::Grayscale, &[7, 9]);
    let requests = [good, b"no picture".to_vec()].map(|file| {
        let (shape, data) = files(&[file]);
        let input = AdmittedInput { shape, data: data.into() };
        ModelRequest {
            id: "".into(),
            tensors: Admitted {
                batch_size: 1,
                inputs: [Some(input)].into_iter().collect(),
                outputs: [0].into_iter().collect(),
                classes: Default::default(),
            },
            parameters: Default::default(),
            sequence: None,
            callers: None,
            priority: 0,
            queue_timeout: None,
            deadline: None,
            trace: None,
            responder: Responder::new(Box::new(Kept(answers.clone()))),
        }
    });
    instance.execute(requests.into(), &host);
    let response = answered.recv().unwrap().unwrap();
    let output = &response.outputs[0];
    assert_eq!((output.output, output.datatype), (0, DataType::Uint8));
    assert_eq!((output.shape.clone(), output.data.clone()), tensor(&[1, 1, 2, 1], &[7u8, 9]));
    let error = answered.recv().unwrap().unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    let expected = "step 1 (decode): row 0: expected a JPEG or PNG file, got 10 bytes";
    assert!(error.message.starts_with(expected), "{}", error.message);
    drop(response);
    assert_eq!(host.pool.used(), 0);
}

#[test]
fn jpeg_files_of_every_kind_are_decoded() {
    macro_rules! seed {
        ($name:literal) => {
            include_bytes!(concat!("../../../fuzz/seeds/picture_file/", $name)).as_slice()
        };
    }
    let mut memory = pool().reservation();
    // A gold ellipse on teal: the middle and a corner, as Pillow decodes them.
    let (gold, teal) = ([255, 215, 0], [0, 128, 128]);
    for file in [seed!("baseline"), seed!("progressive"), seed!("cmyk"), seed!("rgb")] {
        for channels in [3, 4] {
            let pixels = decode::decode(file, channels, decode::Limit(1000), &mut memory).unwrap();
            assert_eq!((pixels.width, pixels.height), (24, 17));
            let each = usize::from(channels);
            for (at, expected) in [(5 * 24 + 12, gold), (16 * 24, teal)] {
                let pixel = &pixels.bytes[at * each..][..each];
                let is_close = |(a, b): (&u8, u8)| a.abs_diff(b) <= 32;
                assert!(pixel.iter().zip(expected).all(is_close), "{pixel:?}");
                assert!(channels == 3 || pixel[3] == 255);
            }
        }
    }
    for file in [seed!("baseline"), seed!("grey"), seed!("cmyk"), seed!("grey_opacity")] {
        let pixels = decode::decode(file, 1, decode::Limit(1000), &mut memory).unwrap();
        assert!(pixels.bytes[5 * 24 + 12].abs_diff(202) <= 16, "{}", pixels.bytes[5 * 24 + 12]);
    }
    let cut = &seed!("baseline")[..700];
    let error = decode::decode(cut, 3, decode::Limit(1000), &mut memory).err().unwrap();
    assert!(error.to_string().starts_with("the JPEG file cannot be decoded"), "{error}");
    let error =
        decode::decode(seed!("baseline"), 3, decode::Limit(407), &mut memory).err().unwrap();
    assert!(error.to_string().contains("24 × 17 pixels: expected at most 407"), "{error}");
}
