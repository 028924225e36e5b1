//! Runs: types, shapes, who owns the memory, and what goes wrong at run time.

use super::{
    model::{Dim, Graph, attribute, graph_attribute, mlp, mlp_weights, unary},
    *,
};

/// The numbers that onnx.proto gives the types.
const ELEMENTS: [(DataType, i64); 13] = [
    (DataType::Bool, model::BOOL),
    (DataType::Uint8, model::UINT8),
    (DataType::Uint16, model::UINT16),
    (DataType::Uint32, model::UINT32),
    (DataType::Uint64, model::UINT64),
    (DataType::Int8, model::INT8),
    (DataType::Int16, model::INT16),
    (DataType::Int32, model::INT32),
    (DataType::Int64, model::INT64),
    (DataType::Fp16, model::FLOAT16),
    (DataType::Fp32, model::FLOAT),
    (DataType::Fp64, model::DOUBLE),
    (DataType::Bf16, model::BFLOAT16),
];

#[test]
fn every_type_passes_through_unchanged() {
    let Some(runtime) = runtime() else { return };
    for (datatype, element) in ELEMENTS {
        // Sizes that follow the input's are placed in the pool, unnamed ones owned by ONNX Runtime.
        for dims in [[Dim::Named("a"), Dim::Named("b")], [Dim::Any, Dim::Any]] {
            let file = unary("Identity", element, &dims);
            let case =
                Case::new(&file, &[("x", datatype, &[-1, -1])], &[("y", datatype, &[-1, -1])]);
            for shape in [[2, 3], [0, 3], [1, 1]] {
                let count = (shape[0] * shape[1]) as usize * datatype.size().unwrap();
                let words: Vec<u64> = vec![0x0101_0001_0100_0101; count.div_ceil(8)];
                let mut input = numbers(&shape, words);
                input.data.truncate(count);
                let output = case.run(&runtime, 1, std::slice::from_ref(&input)).unwrap();
                assert_eq!(output[0].shape, input.shape, "{datatype}");
                assert_eq!(output[0].data, input.data, "{datatype}");
                let shared = output[0].data.as_ptr() == input.data.as_ptr();
                assert!(count == 0 || !shared, "an output must not borrow its input's memory");
            }
        }
    }
}

#[test]
fn strings_of_any_bytes_pass_through() {
    let Some(runtime) = runtime() else { return };
    let file = unary("Identity", model::STRING, &[Dim::Named("n")]);
    let case = Case::new(&file, &[("x", DataType::Bytes, &[-1])], &[("y", DataType::Bytes, &[-1])]);
    let long = vec![b'x'; 5000];
    let given: [&[&[u8]]; 4] =
        [&[], &[b""], &[b"a", b"", b"\xff\x00z", b"gr\xc3\xbc\xc3\x9fe"], &[&long, b"short"]];
    for given in given {
        let input = strings(&[given.len() as i64], given);
        let output = case.run(&runtime, 1, std::slice::from_ref(&input)).unwrap();
        assert_eq!(output[0].shape, input.shape);
        assert_eq!(output[0].data, input.data);
    }
}

#[test]
fn an_mlp_gives_the_sums_worked_out_by_hand() {
    let Some(runtime) = runtime() else { return };
    let case =
        Case::new(&mlp(), &[("x", DataType::Fp32, &[64])], &[("logits", DataType::Fp32, &[10])])
            .batching(8);
    let (first, second) = (mlp_weights(64 * 256, 1), mlp_weights(256 * 10, 2));
    for rows in [1, 3, 8] {
        let x: Vec<f32> = (0..rows * 64).map(|index| index as f32 / 100.0 - 1.0).collect();
        let input = numbers(&[rows as i64, 64], x.clone());
        let output = &case.run(&runtime, rows as u32, &[input]).unwrap()[0];
        assert_eq!(output.shape, Shape::from([rows as i64, 10]));
        for (row, logits) in floats(output).chunks(10).enumerate() {
            let x = &x[row * 64..][..64];
            let hidden: Vec<f32> = (0..256)
                .map(|unit| (0..64).map(|i| x[i] * first[i * 256 + unit]).sum::<f32>().max(0.0))
                .collect();
            for (class, &logit) in logits.iter().enumerate() {
                let sum: f32 = (0..256).map(|unit| hidden[unit] * second[unit * 10 + class]).sum();
                assert!((logit - sum).abs() < 1e-2, "row {row}, class {class}: {logit}, {sum}");
            }
        }
    }
}

#[test]
fn an_output_of_known_shape_lies_in_the_pool() {
    let Some(runtime) = runtime() else { return };
    let case =
        Case::new(&mlp(), &[("x", DataType::Fp32, &[64])], &[("logits", DataType::Fp32, &[10])])
            .batching(8);
    let pool = pool();
    let input = numbers(&[2, 64], vec![0.5_f32; 128]);
    let output = execute(&mut *case.instance(&runtime), 2, &[input], &pool).unwrap();
    assert_eq!(pool.used(), 2 * 10 * 4);
    drop(output);
    assert_eq!(pool.used(), 0);
}

/// Numbers with a sign, and how they compare with zero: one output that any bits will do for, one not.
#[test]
fn numbers_are_written_where_the_client_wants_them_and_all_else_is_not() {
    let Some(runtime) = runtime() else { return };
    let dims = [Dim::Named("n")];
    let file = Graph::default()
        .input("x", model::FLOAT, &dims)
        .node("Neg", &["x"], &["y"])
        .node_with("Cast", &["x"], &["z"], &[attribute("to", model::INT64)])
        .output("y", model::FLOAT, &dims)
        .output("z", model::INT64, &dims)
        .into_model();
    let case = Case::new(
        &file,
        &[("x", DataType::Fp32, &[-1])],
        &[("y", DataType::Fp32, &[-1]), ("z", DataType::Int64, &[-1])],
    );
    let mut instance = case.instance(&runtime);
    let inputs = [Some(numbers(&[3], vec![1.0_f32, -2.0, 3.0]))];
    // At a multiple of its type's size, at none, and without room.
    for (offset, length, is_lent) in [(64, 100, true), (66, 100, false), (64, 11, false)] {
        let (pool, arena) = (pool(), pool());
        let header = nereid_ring::Header::plan(8, 8, 4096).unwrap();
        let (memory, _file) = crate::memory::RingMemory::create(header, &arena).unwrap();
        let mut places = OutputPlaces::new();
        for (name, offset) in [("y", offset), ("z", 512)] {
            let view = memory.view("a place", nereid_ring::Span { offset, length }).unwrap();
            places.put(name.into(), SharedView::Ring(view));
        }
        let places = Arc::new(places);
        let wanted = [true, true];
        let batch =
            Batch { rows: 1, inputs: &inputs, wanted: &wanted, pool: &pool, places: Some(&places) };
        let outputs = instance.execute(&batch).unwrap();
        let (y, z) = (outputs[0].as_ref().unwrap(), outputs[1].as_ref().unwrap());
        assert_eq!(floats(y), [-1.0, 2.0, -3.0]);
        assert_eq!(&z.data[..], bytemuck::bytes_of(&[1_i64, -2, 3]));
        let span = memory.span_of(&y.data);
        assert_eq!(span, is_lent.then_some(nereid_ring::Span { offset, length: 12 }));
        assert_eq!(memory.span_of(&z.data), None, "indices lie where nobody changes them");
        assert_eq!(pool.used(), 24 + if is_lent { 0 } else { 12 });
    }
}

#[test]
fn an_output_of_unknown_shape_outlives_its_model() {
    let Some(runtime) = runtime() else { return };
    let file = Graph::default()
        .input("x", model::FLOAT, &[Dim::Named("n")])
        .node("NonZero", &["x"], &["y"])
        .output("y", model::INT64, &[Dim::Fixed(1), Dim::Any])
        .into_model();
    let case =
        Case::new(&file, &[("x", DataType::Fp32, &[-1])], &[("y", DataType::Int64, &[1, -1])]);
    let pool = pool();
    let input = numbers(&[5], vec![0.0_f32, 2.0, 0.0, 0.0, 1.0]);
    let output = execute(&mut *case.instance(&runtime), 1, &[input], &pool).unwrap();
    drop(case);
    let tensor = output[0].as_ref().unwrap();
    assert_eq!(tensor.shape, Shape::from([1, 2]));
    assert_eq!(&tensor.data[..], bytemuck::bytes_of(&[1_i64, 4]));
    assert_eq!(pool.used(), 0, "nothing was copied into the pool");
}

/// By a node of the graph, and by one in a branch, whose outputs take another way.
#[test]
fn a_size_that_the_file_foretells_wrongly_does_not_fail_the_batch() {
    let Some(runtime) = runtime() else { return };
    let promised = [Dim::Fixed(1), Dim::Named("n")];
    let branch = || {
        let dims = [Dim::Fixed(1), Dim::Any];
        Graph::default().node("NonZero", &["x"], &["z"]).output("z", model::INT64, &dims)
    };
    let branches =
        [graph_attribute("then_branch", branch()), graph_attribute("else_branch", branch())];
    let graph = Graph::default().input("x", model::FLOAT, &[Dim::Named("n")]);
    let graphs = [
        graph.clone().node("NonZero", &["x"], &["y"]),
        graph
            .node("ReduceSum", &["x"], &["sum"])
            .node_with("Cast", &["sum"], &["flag"], &[attribute("to", model::BOOL)])
            .node("Squeeze", &["flag"], &["chosen"])
            .node_with("If", &["chosen"], &["y"], &branches),
    ];
    for graph in graphs {
        let file = graph.output("y", model::INT64, &promised).into_model();
        let case =
            Case::new(&file, &[("x", DataType::Fp32, &[-1])], &[("y", DataType::Int64, &[1, -1])]);
        let mut instance = case.instance(&runtime);
        for values in [vec![1.0_f32, 1.0], vec![0.0, 1.0, 1.0], vec![0.0]] {
            let expected: Vec<i64> =
                (0_i64..).zip(&values).filter(|(_, value)| **value != 0.0).map(|it| it.0).collect();
            let input = numbers(&[values.len() as i64], values);
            let output = execute(&mut *instance, 1, &[input], &pool()).unwrap();
            let output = output[0].as_ref().unwrap();
            assert_eq!(output.shape, Shape::from([1, expected.len() as i64]));
            assert_eq!(&output.data[..], bytemuck::cast_slice::<i64, u8>(&expected));
        }
    }
}

#[test]
fn scalars_are_what_a_configuration_calls_one_element() {
    let Some(runtime) = runtime() else { return };
    let file = unary("Neg", model::INT64, &[]);
    let case = Case::new(&file, &[("x", DataType::Int64, &[1])], &[("y", DataType::Int64, &[1])]);
    let output = case.run(&runtime, 1, &[numbers(&[1], vec![16000_i64])]).unwrap();
    assert_eq!(output[0].shape, Shape::from([1]));
    assert_eq!(&output[0].data[..], (-16000_i64).to_le_bytes());
}

/// Outputs that no node computes into the memory given: the graph's input itself, a constant, and
/// what a branch returns.
#[test]
fn outputs_that_are_inputs_constants_or_branches_reach_their_place() {
    let Some(runtime) = runtime() else { return };
    let one = [Dim::Fixed(2)];
    let branch = |factor: &str| {
        Graph::default().node("Mul", &["x", factor], &["z"]).output("z", model::FLOAT, &one)
    };
    let file = Graph::default()
        .input("x", model::FLOAT, &one)
        .input("up", model::BOOL, &[])
        .weights("constant", &[2], &[7.0, 8.0])
        .weights("two", &[1], &[2.0])
        .weights("half", &[1], &[0.5])
        .node("Identity", &["constant"], &["same"])
        .node_with(
            "If",
            &["up"],
            &["chosen"],
            &[
                graph_attribute("then_branch", branch("two")),
                graph_attribute("else_branch", branch("half")),
            ],
        )
        .output("x", model::FLOAT, &one)
        .output("constant", model::FLOAT, &one)
        .output("same", model::FLOAT, &one)
        .output("chosen", model::FLOAT, &one)
        .into_model();
    let output = |name| (name, DataType::Fp32, &[2][..]);
    let case = Case::new(
        &file,
        &[("x", DataType::Fp32, &[2]), ("up", DataType::Bool, &[1])],
        &[output("x"), output("constant"), output("same"), output("chosen")],
    );
    for (up, chosen) in [(1_u8, [6.0_f32, -8.0]), (0, [1.5, -2.0])] {
        let inputs = [numbers(&[2], vec![3.0_f32, -4.0]), tensor(&[1], vec![up])];
        let outputs = case.run(&runtime, 1, &inputs).unwrap();
        let values: Vec<Vec<f32>> = outputs.iter().map(floats).collect();
        assert_eq!(values[0], [3.0, -4.0]);
        assert_eq!(values[1], [7.0, 8.0]);
        assert_eq!(values[2], [7.0, 8.0]);
        assert_eq!(values[3], chosen);
    }
}

#[test]
fn only_wanted_outputs_are_made() {
    let Some(runtime) = runtime() else { return };
    let dims = [Dim::Named("n")];
    let file = Graph::default()
        .input("x", model::FLOAT, &dims)
        .node("Neg", &["x"], &["a"])
        .node("Abs", &["x"], &["b"])
        .output("a", model::FLOAT, &dims)
        .output("b", model::FLOAT, &dims)
        .into_model();
    let output = |name| (name, DataType::Fp32, &[-1][..]);
    // In another order than that of the file.
    let case = Case::new(&file, &[output("x")], &[output("b"), output("a")]);
    let mut instance = case.instance(&runtime);
    let inputs = [Some(numbers(&[1], vec![-5.0_f32]))];
    for wanted in [[true, false], [false, true], [false, false], [true, true]] {
        let pool = pool();
        let batch = Batch { rows: 1, inputs: &inputs, wanted: &wanted, pool: &pool, places: None };
        let outputs = instance.execute(&batch).unwrap();
        assert_eq!(outputs.iter().map(Option::is_some).collect::<Vec<_>>(), wanted);
        assert!(outputs.iter().flatten().all(|output| floats(output) == [5.0]));
    }
}

#[test]
fn a_run_that_fails_says_what_onnx_runtime_said_and_the_model_goes_on() {
    let Some(runtime) = runtime() else { return };
    let case =
        Case::new(&mlp(), &[("x", DataType::Fp32, &[64])], &[("logits", DataType::Fp32, &[10])])
            .batching(8);
    let mut instance = case.instance(&runtime);
    let cases = [
        (numbers(&[1, 65], vec![0.0_f32; 65]), "Got invalid dimensions for input: x"),
        (numbers(&[64], vec![0.0_f32; 64]), "Invalid rank for input: x"),
        (numbers(&[1, 64], vec![0.0_f32; 63]), "not enough space"),
        (numbers(&[1, -64], vec![0.0_f32; 64]), "onnx runtime error"),
        (numbers(&[i64::MAX, 64], vec![0.0_f32; 64]), "onnx runtime error"),
    ];
    for (input, expected) in cases {
        let error = execute(&mut *instance, 1, &[input], &pool()).unwrap_err().0;
        assert!(error.contains("model 'm'") && error.contains(expected), "{error}");
    }
    let batch = Batch { rows: 1, inputs: &[None], wanted: &[true], pool: &pool(), places: None };
    let error = instance.execute(&batch).unwrap_err().0;
    assert!(error.contains("Missing Input: x"), "{error}");
    let small = BufferPool::new(4096, 8).unwrap();
    let good = numbers(&[1, 64], vec![0.0_f32; 64]);
    let error = execute(&mut *instance, 1, std::slice::from_ref(&good), &small).unwrap_err().0;
    assert!(error.contains("40 bytes") && error.contains("budget of 8 bytes"), "{error}");
    assert!(execute(&mut *instance, 1, &[good], &pool()).is_ok());
}

#[test]
fn malformed_strings_are_refused() {
    let Some(runtime) = runtime() else { return };
    let file = unary("Identity", model::STRING, &[Dim::Named("n")]);
    let case = Case::new(&file, &[("x", DataType::Bytes, &[-1])], &[("y", DataType::Bytes, &[-1])]);
    let cut = tensor(&[1], &[9, 0, 0, 0, b'x'][..]);
    let too_few = strings(&[1 << 60], &[b"one"]);
    let too_many = strings(&[1], &[b"one", b"two"]);
    for input in [cut, too_few, too_many] {
        let error = case.run(&runtime, 1, &[input]).unwrap_err().0;
        assert!(error.contains("does not fit its shape"), "{error}");
    }
}

#[test]
fn instances_of_one_session_run_at_once() {
    let Some(runtime) = runtime() else { return };
    let case =
        Case::new(&mlp(), &[("x", DataType::Fp32, &[64])], &[("logits", DataType::Fp32, &[10])])
            .batching(8);
    let loaded = case.load(&runtime).unwrap();
    // Each thread has values of its own and changes the shape from run to run.
    let input =
        |thread: usize, rows: usize| numbers(&[rows as i64, 64], vec![thread as f32; rows * 64]);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let expected = case.run(&runtime, 1, &[input(thread, 1)]).unwrap()[0].data.clone();
            let mut instance = instance_on(&*loaded, PlacementDevice::Cpu).unwrap();
            scope.spawn(move || {
                let pool = pool();
                for run in 0..400 {
                    let rows = 1 + (run + thread) % 8;
                    let input = input(thread, rows);
                    let output = execute(&mut *instance, rows as u32, &[input], &pool).unwrap();
                    let output = output[0].as_ref().unwrap();
                    assert_eq!(output.shape, Shape::from([rows as i64, 10]));
                    let (expected, _) = expected.as_chunks::<4>();
                    let (got, _) = output.data.as_chunks::<4>();
                    for (&expected, &got) in expected.iter().cycle().zip(got) {
                        let (expected, got) =
                            (f32::from_le_bytes(expected), f32::from_le_bytes(got));
                        // Kernels of one and of more rows may sum in another order.
                        assert!((expected - got).abs() <= 1e-3 * expected.abs().max(1.0));
                    }
                }
            });
        }
    });
}
