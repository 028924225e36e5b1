use proptest::prelude::*;

use super::*;
use crate::{
    backend::{
        Batch, BatchTensor, Direct, Instance as _, Placement, PlacementDevice,
        ops::{
            Backend as _, Ops,
            tests::{files, loaded, png, pool, run, source},
        },
    },
    device::{
        Devices,
        host::{HostDevice, HostSettings},
        kernels::PLACES_MAX,
    },
    inference::Code,
};

type Spec<'a> = (&'a str, DataType, &'a [i64]);

/// What a chain makes of a batch of `rows` rows, on a device and on the processors.
fn on_both(chain: &str, input: Spec<'_>, outputs: &[Spec<'_>], rows: u32, row: &[u8]) {
    let devices =
        Devices::new(|| Ok(vec![Arc::new(HostDevice::start(HostSettings::default()).unwrap())]));
    let source = source(chain, 8, &[input], outputs);
    let chain = Ops::new(Arc::new(devices)).load(&source).map_err(|error| error.0).unwrap();
    let at = |device| Placement { name: "m_0".into(), device, host_policy: String::new() };
    let instance = chain.on_device(&at(PlacementDevice::Gpu(0))).unwrap();
    let mut device = Direct::of(instance.expect("the chain can run on devices")).unwrap();
    let data: Vec<u8> = row.iter().copied().cycle().take(row.len() * rows as usize).collect();
    let (shape, data) = (Shape::from(input.2).with_batch(rows.into()), Bytes::from(data));
    let expected = run(&source, vec![(shape.clone(), data.clone())]).unwrap();
    let inputs = [Some(BatchTensor { shape, data })];
    let pool = pool();
    // Without the last, which then stays on the device, and with all.
    for wanted_count in [outputs.len() - 1, outputs.len()] {
        let wanted: Vec<bool> = (0..outputs.len()).map(|index| index < wanted_count).collect();
        let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool: &pool, places: None };
        let made = device.execute(&batch).unwrap();
        for ((made, (shape, data)), wanted) in made.iter().zip(&expected).zip(wanted) {
            let made = made.as_ref().map(|made| (&made.shape, &made.data));
            assert_eq!(made, wanted.then_some((shape, data)));
        }
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_chain_gives_the_same_on_a_device(
        rows in 1u32..8,
        values in proptest::collection::vec(-9.0f32..9.0, 1..200),
    ) {
        let (columns, row) = (values.len() as i64, floats(&values));
        let input: Spec<'_> = ("X", DataType::Fp32, &[columns]);
        let whole: &[i64] = &[columns];
        on_both(r#"[{"op": "softmax"}]"#, input, &[("Y", DataType::Fp32, whole)], rows, &row);
        on_both(
            r#"[{"op": "log_softmax", "output": "P"}, {"op": "top_k", "k": 1, "output": ["V", "I"]}]"#,
            input,
            &[("V", DataType::Fp32, &[1]), ("I", DataType::Int64, &[1])],
            rows,
            &row,
        );
        on_both(
            r#"[{"op": "cast", "to": "INT8", "scale": 0.1, "output": "Q"},
                {"op": "cast", "to": "FP32", "scale": 0.1, "output": "D"},
                {"op": "argmax", "output": "A"}]"#,
            input,
            &[("A", DataType::Int64, &[1]), ("D", DataType::Fp32, whole)],
            rows,
            &row,
        );
    }
}

#[test]
fn pictures_are_made_ready_on_a_device() {
    let chain = r#"[{"op": "resize", "size": [2, 2]}, {"op": "normalize", "scale": 0.5},
        {"op": "layout", "to": "CHW"}]"#;
    let pixels: Vec<u8> = (0..4 * 6 * 3).collect();
    let output: Spec<'_> = ("Y", DataType::Fp32, &[3, 2, 2]);
    on_both(chain, ("P", DataType::Uint8, &[4, 6, 3]), &[output], 3, &pixels);
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
    on_both(DECODE, ("F", DataType::Bytes, &[1]), &[output], 3, &files(&[file(4)]).1);
    // More than one launch has places for.
    let rows = PLACES_MAX as u32 + 3;
    on_both(DECODE, ("F", DataType::Bytes, &[1]), &[output], rows, &files(&[file(3)]).1);
}

/// A chain on a device, in lanes.
fn launches(chain: &str, output: Spec<'_>) -> Option<Launches> {
    let source = source(chain, 8, &[("F", DataType::Bytes, &[1])], &[output]);
    Launches::of(&Arc::new(loaded(&source).unwrap()))
}

#[test]
fn a_request_whose_file_is_at_fault_fails_by_itself_as_on_the_processors() {
    let model = launches(DECODE, ("Y", DataType::Fp32, &[3, 2, 2])).unwrap();
    assert_eq!(model.prepared(), [0]);
    let (_, good) = files(&[file(2), file(5)]);
    let ready = model.prepare(0, 2, good, &pool()).unwrap();
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

#[test]
fn what_gives_pictures_of_several_sizes_or_decodes_in_two_ways_stays_on_the_processors() {
    let shorter = r#"[{"op": "decode"}, {"op": "resize", "shorter": 2}]"#;
    assert!(launches(shorter, ("Y", DataType::Uint8, &[-1, -1, 3])).is_none());
    let twice = r#"[{"op": "decode"}, {"op": "resize", "size": [2, 2], "output": "A"},
        {"op": "decode", "input": "F", "channels": 1}, {"op": "resize", "size": [2, 2], "output": "G"}]"#;
    assert!(launches(twice, ("A", DataType::Uint8, &[2, 2, 3])).is_none());
}
