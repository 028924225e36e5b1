//! What the back end adds to ONNX Runtime: an MLP (64 → 256 → 10, batch 1) through
//! `Instance::execute` and through a bare session of the `ort` crate.
//!
//! Needs the library: `nereid backend install onnxruntime`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::Criterion;
use nereid::{
    backend::{
        Backend as _, Batch, BatchTensor, Host, ModelSource, Placement, PlacementDevice, directory,
        onnxruntime::{OnnxRuntime, VERSION},
    },
    inference::{DataType, Signature, TensorSpec},
    memory::BufferPool,
};
use ort::{
    memory::Allocator,
    session::{OutputSelector, RunOptions, Session},
    value::Tensor,
};

#[path = "../src/backend/onnxruntime/tests/model.rs"]
mod model;

fn main() {
    let directory = directory::default().expect("a backend directory or a home");
    let runtime = match OnnxRuntime::open(&directory) {
        Ok(runtime) => runtime,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model::mlp()).expect("the model file");
    let row: Vec<f32> = (0..64).map(|index| index as f32 / 64.0).collect();

    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(4))
        .warm_up_time(Duration::from_secs(1))
        .configure_from_args();
    through_the_back_end(&mut criterion, &runtime, folder.path(), &row);
    let library = directory.join(format!("onnxruntime/libonnxruntime.so.{VERSION}"));
    through_a_bare_session(&mut criterion, &library, &path, row);
    criterion.final_summary();
}

fn through_the_back_end(
    criterion: &mut Criterion,
    runtime: &OnnxRuntime,
    folder: &std::path::Path,
    row: &[f32],
) {
    let source = ModelSource {
        name: "mlp".into(),
        version: 1,
        model_dir: folder.to_owned(),
        version_dir: folder.to_owned(),
        model_path: folder.join("model.onnx"),
        config: Arc::default(),
        signature: Arc::new(Signature {
            model: "mlp".into(),
            max_batch_size: 8,
            inputs: vec![TensorSpec::new("x", DataType::Fp32, [64].into())],
            outputs: vec![TensorSpec::new("logits", DataType::Fp32, [10].into())],
        }),
        settings: Arc::default(),
    };
    let placement = Placement {
        name: "mlp_0".to_owned(),
        device: PlacementDevice::Cpu,
        host_policy: "cpu".to_owned(),
    };
    let loaded = runtime.load(&source).expect("the model loads");
    let pool = BufferPool::new(1 << 20, 1 << 20).expect("a pool");
    let host = Arc::new(Host::without_models(pool.clone()));
    let instance = loaded.instance(&placement, &host).expect("an instance");
    let mut instance = instance.into_batches().expect("it takes batches");
    let mut buffer = pool.allocate(row.len() * 4).expect("room in the pool");
    buffer.copy_from_slice(bytemuck::cast_slice(row));
    let data: Bytes = buffer.freeze();
    let inputs = [Some(BatchTensor { shape: [1, 64].into(), data })];
    let batch = Batch { rows: 1, inputs: &inputs, wanted: &[true], pool: &pool, places: None };
    criterion.bench_function("onnxruntime/mlp/execute", |bench| {
        bench.iter(|| instance.execute(&batch).expect("a run"));
    });
}

fn through_a_bare_session(
    criterion: &mut Criterion,
    library: &std::path::Path,
    path: &std::path::Path,
    row: Vec<f32>,
) {
    let env = ort::init_from(library).expect("the library").build().expect("an environment");
    let builder = Session::builder(&env).expect("options");
    let builder = builder.with_intra_threads(1).expect("the number of threads");
    let mut builder = builder.with_intra_op_spinning(false).expect("the option");
    let mut session = builder.commit_from_file(path).expect("the model loads");

    // The input too is made once only: this is the least that a run through that crate can cost.
    let input = Tensor::from_array(([1_usize, 64], row)).expect("the input");
    let output = Tensor::<f32>::new(&Allocator::default(), [1_usize, 10]).expect("the output");
    let selector = OutputSelector::no_default().with("logits").preallocate("logits", output);
    let options = RunOptions::new().expect("options").with_outputs(selector);
    criterion.bench_function("onnxruntime/mlp/bare_session", |bench| {
        bench.iter(|| {
            drop(session.run_with_options([(&input).into()], &options).expect("a run"));
        });
    });
}
