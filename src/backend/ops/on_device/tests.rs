use proptest::prelude::*;

use super::*;
use crate::{
    backend::{
        Batch, BatchTensor, Direct, Instance as _, ModelSource, Placement, PlacementDevice,
        ops::{
            Backend as _, Ops,
            tests::{files, loaded, png, pool, run, source},
        },
    },
    device::{
        Devices,
        host::{HostDevice, HostSettings},
        kernels::PLACES_MAX,
        streams::Runner,
    },
    inference::Code,
};

type Spec<'a> = (&'a str, DataType, &'a [i64]);

/// A chain in a lane of a device of the host.
fn direct(source: &ModelSource) -> Direct<Runner> {
    let devices =
        Devices::new(|| Ok(vec![Arc::new(HostDevice::start(HostSettings::default()).unwrap())]));
    let chain = Ops::new(Arc::new(devices)).load(source).map_err(|error| error.0).unwrap();
    let device = PlacementDevice::Gpu(0);
    let at = Placement { name: "m_0".into(), device, host_policy: String::new() };
    let instance = chain.on_device(&at).unwrap();
    Direct::of(instance.expect("the chain can run on devices")).unwrap()
}

/// Holds what a chain makes of a batch of `rows` rows on a device against what it makes on the processors, its
/// errors too, and gives the latter.
fn on_both(
    chain: &str,
    inputs: &[Spec<'_>],
    outputs: &[Spec<'_>],
    rows: u32,
    tensors: &[(&[i64], Vec<u8>)],
) -> Result<Vec<(Shape, Bytes)>, String> {
    let source = source(chain, 8, inputs, outputs);
    let mut device = direct(&source);
    let tensors: Vec<(Shape, Bytes)> = tensors
        .iter()
        .map(|(dims, data)| {
            (Shape::from(*dims).with_batch(rows.into()), Bytes::copy_from_slice(data))
        })
        .collect();
    let expected = run(&source, tensors.clone());
    let tensor = |(shape, data)| Some(BatchTensor { shape, data });
    let inputs: Vec<_> = tensors.into_iter().map(tensor).collect();
    let pool = pool();
    // Without the last, which then stays on the device, and with all.
    for wanted_count in [outputs.len() - 1, outputs.len()] {
        let wanted: Vec<bool> = (0..outputs.len()).map(|index| index < wanted_count).collect();
        let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool: &pool, places: None };
        let made = match (device.execute(&batch), &expected) {
            (Ok(made), Ok(_)) => made,
            (made, expected) => {
                let expected = expected.as_ref().err();
                assert_eq!(made.as_ref().err().map(|error| &error.0), expected);
                continue;
            }
        };
        for ((made, (shape, data)), wanted) in
            made.iter().zip(expected.iter().flatten()).zip(wanted)
        {
            let made = made.as_ref().map(|made| (&made.shape, &made.data));
            assert_eq!(made, wanted.then_some((shape, data)));
        }
    }
    expected
}

/// The same of rows that are all alike.
fn of_one_row(chain: &str, input: Spec<'_>, outputs: &[Spec<'_>], rows: u32, row: &[u8]) {
    let data: Vec<u8> = row.iter().copied().cycle().take(row.len() * rows as usize).collect();
    on_both(chain, &[input], outputs, rows, &[(input.2, data)]).unwrap();
}

fn bytes_of<T: bytemuck::NoUninit>(elements: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(elements).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_chain_gives_the_same_on_a_device(
        rows in 1u32..8,
        values in proptest::collection::vec(-9.0f32..9.0, 1..200),
    ) {
        let (columns, row) = (values.len() as i64, bytes_of(&values));
        let input: Spec<'_> = ("X", DataType::Fp32, &[columns]);
        let whole: &[i64] = &[columns];
        of_one_row(r#"[{"op": "softmax"}]"#, input, &[("Y", DataType::Fp32, whole)], rows, &row);
        of_one_row(
            r#"[{"op": "log_softmax", "output": "P"}, {"op": "top_k", "k": 1, "output": ["V", "I"]}]"#,
            input,
            &[("V", DataType::Fp32, &[1]), ("I", DataType::Int64, &[1])],
            rows,
            &row,
        );
        of_one_row(
            r#"[{"op": "cast", "to": "INT8", "scale": 0.1, "output": "Q"},
                {"op": "cast", "to": "FP32", "scale": 0.1, "output": "D"},
                {"op": "argmax", "output": "A"}]"#,
            input,
            &[("A", DataType::Int64, &[1]), ("D", DataType::Fp32, whole)],
            rows,
            &row,
        );
    }

    #[test]
    fn entries_are_gathered_alike(
        rows in 1u32..7,
        count in 0usize..9,
        width in 1usize..4,
        // Now and then one that names no entry.
        indices in proptest::collection::vec(-1i64..9, 1..30),
        is_wide: bool,
        datatype in proptest::sample::select(vec![DataType::Bool, DataType::Fp16, DataType::Fp32, DataType::Int64]),
        seed: u64,
    ) {
        let wanted = indices.len() / rows as usize;
        let indices = &indices[..wanted * rows as usize];
        let size = datatype.size().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let entries: Vec<u8> = (0..rows as usize * count * width * size).map(|_| random.u8(..)).collect();
        let (of_indices, bytes) = match is_wide {
            true => (DataType::Int64, bytes_of(indices)),
            false => (DataType::Int32, bytes_of(&indices.iter().map(|&it| it as i32).collect::<Vec<_>>())),
        };
        let inputs: [Spec<'_>; 2] =
            [("E", datatype, &[-1, width as i64]), ("I", of_indices, &[-1])];
        let made = on_both(
            r#"[{"op": "gather", "input": ["E", "I"]}]"#,
            &inputs,
            &[("Y", datatype, &[-1, width as i64])],
            rows,
            &[(&[count as i64, width as i64], entries), (&[wanted as i64], bytes)],
        );
        prop_assert_eq!(made.is_ok(), indices.iter().all(|&index| (0..count as i64).contains(&index)));
    }

    #[test]
    fn sequences_are_padded_alike(
        rows in 1u32..7,
        given in 0i64..12,
        width in 0i64..4,
        to in prop_oneof![
            (1i64..12).prop_map(|length| format!(r#""length": {length}"#)),
            (1i64..6).prop_map(|multiple| format!(r#""multiple": {multiple}"#)),
        ],
        truncate: bool,
        with_mask: bool,
        datatype in proptest::sample::select(vec![DataType::Int8, DataType::Bf16, DataType::Int32, DataType::Fp64]),
        seed: u64,
    ) {
        let size = datatype.size().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let data = (0..i64::from(rows) * given * width).flat_map(|_| (0..size).map(|_| random.u8(..)).collect::<Vec<_>>());
        let names = if with_mask { r#"["Y", "M"]"# } else { r#""Y""# };
        let outputs: [Spec<'_>; 2] = [("Y", datatype, &[-1, width]), ("M", DataType::Int64, &[-1])];
        let made = on_both(
            &format!(r#"[{{"op": "pad", {to}, "value": -3, "truncate": {truncate}, "output": {names}}}]"#),
            &[("X", datatype, &[-1, width])],
            &outputs[..1 + usize::from(with_mask)],
            rows,
            &[(&[given, width], data.collect())],
        );
        prop_assert!(made.is_ok() || !truncate);
    }

    #[test]
    fn rows_are_cut_alike(
        rows in 1u32..7,
        given in 0i64..9,
        width in 0i64..4,
        lengths in proptest::collection::vec(-1i64..10, 6),
        is_equal in proptest::bool::weighted(0.8),
        datatype in proptest::sample::select(vec![DataType::Int8, DataType::Bf16, DataType::Fp32, DataType::Fp64]),
    ) {
        let lengths: Vec<i64> =
            (0..rows as usize).map(|row| lengths[if is_equal { 0 } else { row }]).collect();
        let size = i64::from(rows) * given * width * datatype.size().unwrap() as i64;
        let inputs: [Spec<'_>; 2] = [("X", datatype, &[-1, width]), ("N", DataType::Int32, &[1])];
        let of_lengths: Vec<i32> = lengths.iter().map(|&length| length as i32).collect();
        let made = on_both(
            r#"[{"op": "unpad", "input": ["X", "N"]}]"#,
            &inputs,
            &[("Y", datatype, &[-1, width])],
            rows,
            &[(&[given, width], (0..size).map(|at| at as u8).collect()), (&[1], bytes_of(&of_lengths))],
        );
        let fits = (0..=given).contains(&lengths[0]);
        prop_assert_eq!(made.is_ok(), fits && lengths.iter().all(|&length| length == lengths[0]));
    }

    #[test]
    fn boxes_are_suppressed_alike(
        rows in 1u32..5,
        count in 0usize..40,
        classes in 0usize..4,
        limits in (1u32..20, 0u32..20),
        threshold in 0u8..=4,
        centred: bool,
        class_agnostic: bool,
        seed: u64,
    ) {
        let (max_output, candidates) = (limits.0, limits.0 + limits.1);
        let mut random = fastrand::Rng::with_seed(seed);
        let (boxes, scores) = (rows as usize * count, rows as usize * count * classes);
        let boxes: Vec<f32> = (0..4 * boxes).map(|_| f32::from(random.u8(..40))).collect();
        // Some are no number.
        let score = |random: &mut fastrand::Rng| match random.u8(..) { 0 => f32::NAN, it => f32::from(it) / 256.0 };
        let scores: Vec<f32> = (0..scores).map(|_| score(&mut random)).collect();
        let form = if centred { "centers" } else { "corners" };
        let kept = i64::from(max_output);
        let chain = format!(
            r#"[{{"op": "nms", "input": ["B", "S"], "output": ["BB", "BS", "BC", "N"], "iou_threshold": {},
                "score_threshold": 0.25, "max_output": {max_output}, "candidates": {candidates},
                "boxes": "{form}", "class_agnostic": {class_agnostic}}}]"#,
            f32::from(threshold) / 4.0,
        );
        let outputs: [Spec<'_>; 4] = [
            ("BB", DataType::Fp32, &[kept, 4]),
            ("BS", DataType::Fp32, &[kept]),
            ("BC", DataType::Int64, &[kept]),
            ("N", DataType::Int32, &[1]),
        ];
        let tensors: [(&[i64], Vec<u8>); 2] = [
            (&[count as i64, 4], bytes_of(&boxes)),
            (&[count as i64, classes as i64], bytes_of(&scores)),
        ];
        let inputs: [Spec<'_>; 2] = [("B", DataType::Fp32, &[-1, 4]), ("S", DataType::Fp32, &[-1, -1])];
        on_both(&chain, &inputs, &outputs, rows, &tensors).unwrap();
    }
}

/// Of what a step finds, a later one takes its part, without a way by the host.
#[test]
fn steps_that_choose_follow_each_other() {
    let chain = r#"[{"op": "top_k", "input": "S", "k": 2, "output": ["V", "I"]},
        {"op": "gather", "input": ["E", "I"], "output": "G"},
        {"op": "pad", "length": 3, "value": 7, "output": ["Y", "M"]}]"#;
    let inputs: [Spec<'_>; 2] = [("S", DataType::Fp32, &[-1]), ("E", DataType::Int32, &[-1, 2])];
    let outputs: [Spec<'_>; 3] = [
        ("Y", DataType::Int32, &[3, 2]),
        ("M", DataType::Int64, &[3]),
        ("I", DataType::Int64, &[2]),
    ];
    let scores = bytes_of(&[0.5f32, 0.25, 0.75, 1.0, 3.0, 2.0]);
    let entries = bytes_of(&[1i32, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60]);
    let made =
        on_both(chain, &inputs, &outputs, 2, &[(&[3], scores.clone()), (&[3, 2], entries.clone())]);
    let expected = bytes_of(&[5i32, 6, 1, 2, 7, 7, 30, 40, 50, 60, 7, 7]);
    assert_eq!(made.unwrap()[0].1, expected);
    // The second row's largest has no entry.
    let made = on_both(
        chain,
        &inputs,
        &outputs,
        2,
        &[(&[3], scores.clone()), (&[2, 2], entries[..32].to_vec())],
    );
    assert_eq!(made.unwrap_err(), "step 2 (gather): row 0: expected indices of 0 to 1, got 2");
    let made =
        on_both(chain, &inputs, &outputs, 2, &[(&[1], scores[..8].to_vec()), (&[3, 2], entries)]);
    assert_eq!(made.unwrap_err(), "step 1 (top_k): expected 2 elements or more, got 1");
}

#[test]
fn scores_without_boxes_are_refused_alike() {
    let chain = r#"[{"op": "nms", "input": ["B", "S"], "iou_threshold": 0.5, "max_output": 1, "output": ["Y"]}]"#;
    let inputs: [Spec<'_>; 2] = [("B", DataType::Fp32, &[-1, 4]), ("S", DataType::Fp32, &[-1])];
    let boxes = bytes_of(&[0f32, 0.0, 1.0, 1.0]);
    let output: Spec<'_> = ("Y", DataType::Fp32, &[1, 4]);
    let tensors: [(&[i64], Vec<u8>); 2] = [(&[1, 4], boxes), (&[2], bytes_of(&[1f32, 2.0]))];
    let error = on_both(chain, &inputs, &[output], 1, &tensors).unwrap_err();
    assert_eq!(
        error,
        "step 1 (nms): expected a score for each box, got scores [2] and boxes [1,4]"
    );
}

/// What a run has noted down of the rows of one request fails that one alone, as its own rows are numbered.
#[test]
fn an_index_at_fault_is_its_request_s() {
    let chain = r#"[{"op": "gather", "input": ["E", "I"]}]"#;
    let inputs: [Spec<'_>; 2] = [("E", DataType::Fp32, &[3]), ("I", DataType::Int64, &[1])];
    let model = on_device(chain, &inputs, ("Y", DataType::Fp32, &[1])).unwrap();
    let tensor = |dims: &[i64], bytes: Vec<u8>| {
        Some(BatchTensor { shape: Shape::from(dims), data: bytes.into() })
    };
    let given = [tensor(&[4, 3], vec![0; 48]), tensor(&[4, 1], vec![0; 32])];
    let (wanted, pool) = ([true], pool());
    let batch = Batch { rows: 4, inputs: &given, wanted: &wanted, pool: &pool, places: None };
    let laid = model.lay_out(&batch).unwrap();
    assert_eq!(laid.notes, [64]);
    let (_, expected) = laid.parts(4, |_| true, &pool).unwrap();
    let note = Bytes::from(bytes_of(&[-1i64, 0, -1, 0, 0, 9, -1, 0]));
    let returned = [Some(Bytes::new()), Some(note)];
    assert_eq!(model.fault(&expected, 0..2, &returned), None);
    let error = model.fault(&expected, 1..4, &returned).unwrap();
    assert_eq!(error.code, Code::InvalidArgument);
    assert_eq!(error.message, "step 1 (gather): row 1: expected indices of 0 to 2, got 9");
    assert_eq!(model.fault(&expected, 3..4, &returned), None);
}

#[test]
fn pictures_are_made_ready_on_a_device() {
    let chain = r#"[{"op": "resize", "size": [2, 2]}, {"op": "normalize", "scale": 0.5},
        {"op": "layout", "to": "CHW"}]"#;
    let pixels: Vec<u8> = (0..4 * 6 * 3).collect();
    let output: Spec<'_> = ("Y", DataType::Fp32, &[3, 2, 2]);
    of_one_row(chain, ("P", DataType::Uint8, &[4, 6, 3]), &[output], 3, &pixels);
}

/// A file of a picture of this width and two rows.
fn file(width: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * 2 * 3).map(|value| value.wrapping_mul(7)).collect();
    png(width.into(), 2, ::png::ColorType::Rgb, &pixels)
}

const DECODE: &str = r#"[{"op": "decode"}, {"op": "resize", "size": [2, 2]}, {"op": "normalize", "scale": 0.5},
    {"op": "layout", "to": "CHW"}]"#;

#[test]
fn files_are_decoded_before_and_the_rest_runs_on_a_device() {
    let output: Spec<'_> = ("Y", DataType::Fp32, &[3, 2, 2]);
    of_one_row(DECODE, ("F", DataType::Bytes, &[1]), &[output], 3, &files(&[file(4)]).1);
    // More than one launch has places for.
    let rows = PLACES_MAX as u32 + 3;
    of_one_row(DECODE, ("F", DataType::Bytes, &[1]), &[output], rows, &files(&[file(3)]).1);
}

/// A chain on a device, in lanes.
fn on_device(chain: &str, inputs: &[Spec<'_>], output: Spec<'_>) -> Option<Launches> {
    let source = source(chain, 8, inputs, &[output]);
    Launches::of(&Arc::new(loaded(&source).unwrap()))
}

/// One that begins with files.
fn launches(chain: &str, output: Spec<'_>) -> Option<Launches> {
    on_device(chain, &[("F", DataType::Bytes, &[1])], output)
}

#[test]
fn a_request_whose_file_is_at_fault_fails_by_itself_as_on_the_processors() {
    let model = launches(DECODE, ("Y", DataType::Fp32, &[3, 2, 2])).unwrap();
    assert_eq!(model.prepared(), [0]);
    let (_, good) = files(&[file(2), file(5)]);
    let Prepared { data: ready, becomes } = model.prepare(0, 2, good, &pool()).unwrap();
    assert_eq!(*becomes, [3, 2, 2]);
    let found = ready::found(&ready, 2).unwrap();
    let sides: Vec<_> = found.iter().map(|it| (it.sides, it.pixels.len())).collect();
    assert_eq!(sides, [([2, 2], 12), ([5, 2], 30)]);
    assert!(ready::found(&ready, 3).is_none() && ready::found(&ready.slice(1..), 2).is_none());
    let (_, bad) = files(&[file(2), vec![1, 2, 3]]);
    let error = model.prepare(0, 2, bad, &pool()).unwrap_err();
    let told = "expected a JPEG or PNG file, got 3 bytes that are neither";
    assert_eq!(error.code, Code::InvalidArgument);
    assert!(error.message.contains("row 1") && error.message.ends_with(told), "{}", error.message);
    let small = BufferPool::new(0, 100).unwrap();
    let (_, file) = files(&[file(9)]);
    assert_eq!(model.prepare(0, 1, file, &small).unwrap_err().code, Code::Unavailable);
}

const SHORTER: &str = r#"[{"op": "decode"}, {"op": "resize", "shorter": 2}]"#;

#[test]
fn pictures_of_a_request_become_one_size_and_those_of_another_may_become_another() {
    let output: Spec<'_> = ("Y", DataType::Uint8, &[-1, -1, 3]);
    let model = launches(SHORTER, output).unwrap();
    let becomes = |files_of: &[Vec<u8>]| {
        let ready = model.prepare(0, files_of.len() as u32, files(files_of).1, &pool());
        ready.map(|ready| ready.becomes)
    };
    assert_eq!(becomes(&[file(3), file(3)]), Ok(Shape::from([2, 3, 3])));
    assert_eq!(becomes(&[file(4)]), Ok(Shape::from([2, 4, 3])));
    let input: Spec<'_> = ("F", DataType::Bytes, &[1]);
    let unequal = files(&[file(3), file(5)]).1.to_vec();
    let error = on_both(SHORTER, &[input], &[output], 2, &[(&[1], unequal)]).unwrap_err();
    let told = "row 1: its picture becomes 5 × 2 pixels, that of row 0 3 × 2: a batch has one size";
    assert!(error.ends_with(told), "{error}");
    of_one_row(SHORTER, input, &[output], 3, &files(&[file(7)]).1);
}

#[test]
fn pictures_too_small_to_be_cut_are_refused_alike() {
    let chain = r#"[{"op": "crop", "size": [2, 2]}]"#;
    let input: Spec<'_> = ("P", DataType::Uint8, &[-1, -1, 3]);
    let output: Spec<'_> = ("Y", DataType::Uint8, &[2, 2, 3]);
    let error = on_both(chain, &[input], &[output], 2, &[(&[1, 2, 3], vec![0; 12])]).unwrap_err();
    assert_eq!(
        error,
        "step 1 (crop): row 0: a picture of 2 × 1 pixels is too small to cut 2 × 2 out of it"
    );
}

#[test]
fn what_decodes_a_file_in_two_ways_stays_on_the_processors() {
    let twice = r#"[{"op": "decode"}, {"op": "resize", "size": [2, 2], "output": "A"},
        {"op": "decode", "input": "F", "channels": 1}, {"op": "resize", "size": [2, 2], "output": "G"}]"#;
    assert!(launches(twice, ("A", DataType::Uint8, &[2, 2, 3])).is_none());
}
