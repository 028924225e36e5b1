//! The compiler is NVIDIA's own, where `make cuda` has fetched it; no GPU is needed for that. Running
//! is tested on the host's twin of a GPU, with a kernel in Rust.

use std::{collections::BTreeMap, path::Path};

use tempfile::TempDir;

use super::*;
use crate::{
    backend::{Batch, BatchTensor, Instance as _},
    device::host::{HostDevice, HostSettings},
    inference::{Shape, TensorSpec},
    memory::BufferPool,
    proto::{ModelConfig, ModelParameter},
};

const SCALE: &str = r#"
extern "C" __global__ void scale(const float* from, float* to, unsigned long long count, float by) {
    const unsigned long long i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
    if (i < count) to[i] = from[i] * by;
}
"#;

/// A folder whose `cuda` holds NVRTC, if there is one. Without it a test is skipped, and says so.
fn compiler() -> Option<TempDir> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/cuda/nvidia/cu13/lib");
    if !fetched.is_dir() {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "skipped: there is no NVRTC (make cuda fetches it)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(fetched, folder.path().join("cuda")).unwrap();
    Some(folder)
}

fn no_devices() -> Arc<Devices> {
    Arc::new(Devices::none("no CUDA driver was found (libcuda.so)"))
}

fn on_host() -> Arc<Devices> {
    Arc::new(Devices::new(|| {
        Ok(vec![Arc::new(HostDevice::start(HostSettings::default()).unwrap())])
    }))
}

fn source(folder: &Path, file: &str, content: &[u8]) -> ModelSource {
    let path = folder.join(file);
    fs::write(&path, content).unwrap();
    let spec = |name| TensorSpec::new(name, DataType::Fp32, Shape::from([-1]));
    let parameters = [("kernel", "scale"), ("arguments", "X, Y, count(Y), 2.5")];
    let parameters = parameters
        .map(|(name, value)| (name.to_owned(), ModelParameter { string_value: value.to_owned() }));
    let config = ModelConfig {
        name: "m".to_owned(),
        parameters: parameters.into_iter().collect(),
        ..ModelConfig::default()
    };
    ModelSource {
        name: "m".into(),
        version: 1,
        model_dir: folder.into(),
        version_dir: folder.into(),
        model_path: path,
        config: Arc::new(config),
        signature: Arc::new(Signature {
            model: "m".into(),
            max_batch_size: 4,
            inputs: vec![spec("X")],
            outputs: vec![spec("Y")],
        }),
        settings: Arc::new(BTreeMap::new()),
    }
}

#[test]
fn a_source_compiles_and_one_that_does_not_says_why() {
    let Some(directory) = compiler() else { return };
    let nvrtc = Nvrtc::open(Some(directory.path())).map_err(|error| error.0).unwrap();
    assert!(nvrtc.version().starts_with("13."));
    let ptx = nvrtc.compile("model.cu", SCALE, (9, 0), &[]).unwrap();
    let ptx = String::from_utf8(ptx).unwrap();
    assert!(ptx.contains(".target sm_90") && ptx.contains(".entry scale"), "{ptx}");
    assert!(ptx.ends_with('\0'));

    let error = nvrtc.compile("model.cu", &SCALE.replace("by;", "bye;"), (8, 0), &[]).unwrap_err();
    let expected =
        "'model.cu' does not compile:\nmodel.cu(4): error: identifier \"bye\" is undefined";
    assert!(error.0.starts_with(expected), "{error}");
    let options = ["--no-such-option".to_owned()];
    let error = nvrtc.compile("model.cu", SCALE, (8, 0), &options).unwrap_err();
    assert!(error.0.contains("no-such-option"), "{error}");
}

#[test]
fn a_model_that_cannot_run_says_what_is_missing() {
    let Some(directory) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let backend = Cuda::new(Some(directory.path().into()), no_devices());
    let load = |file: &str, content: &str| {
        let source = source(folder.path(), file, content.as_bytes());
        backend.load(&source).err().map(|error| error.0).unwrap()
    };
    let needs_gpu = "model 'm' of back end 'cuda' needs a GPU to run on: no CUDA driver was found";
    assert!(load("model.cu", SCALE).starts_with(needs_gpu));
    assert!(load("model.ptx", "").starts_with(needs_gpu));
    // A source is compiled all the same.
    assert!(load("broken.cu", "__global__ void scale(").contains("'broken.cu' does not compile:"));
    assert!(load("model.txt", "").contains("must end in .cu, .ptx, .cubin or .fatbin"));
}

#[test]
fn without_a_compiler_the_command_that_brings_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing else is looked at where a file of its name cannot be opened.
    fs::create_dir(folder.path().join("cuda")).unwrap();
    fs::write(folder.path().join("cuda/libnvrtc.so.13"), "no library").unwrap();
    let error = Nvrtc::open(Some(folder.path())).err().unwrap().0;
    assert!(error.contains("libnvrtc.so.13' cannot be opened"), "{error}");
}

#[test]
fn shapes_must_be_known_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = source(folder.path(), "model.ptx", b"");
    let backend = Cuda::new(None, no_devices());
    let signature = Arc::make_mut(&mut source.signature);
    signature.outputs[0].dims = Shape::from([-1, 2]);
    let error = backend.load(&source).err().unwrap().0;
    assert!(
        error.starts_with("output 'Y' of model 'm' has the shape [-1,2]: expected fixed"),
        "{error}"
    );
    let signature = Arc::make_mut(&mut source.signature);
    signature.inputs[0].datatype = DataType::Bytes;
    let error = backend.load(&source).err().unwrap().0;
    assert!(error.starts_with("tensor 'X' of model 'm' is of TYPE_STRING"), "{error}");
}

#[test]
fn a_source_runs_on_a_device_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path(), "model.cu", SCALE.as_bytes());
    let model = Cuda::new(None, on_host()).load(&source).map_err(|error| error.0).unwrap();
    let placement = Placement {
        name: "m_0".to_owned(),
        device: PlacementDevice::Gpu(0),
        host_policy: "gpu_0".to_owned(),
    };
    let instance = model.on_device(&placement).unwrap().unwrap();
    let mut instance = Direct::of(instance).unwrap();
    let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
    let floats = |values: &[f32]| -> Bytes {
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    };
    for _ in 0..3 {
        let data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let inputs = [Some(BatchTensor { shape: Shape::from([2, 3]), data })];
        let batch = Batch { rows: 2, inputs: &inputs, wanted: &[true], pool: &pool, places: None };
        let made = instance.execute(&batch).unwrap();
        let made = made[0].as_ref().unwrap();
        assert_eq!(made.shape, Shape::from([2, 3]));
        assert_eq!(made.data, floats(&[2.5, 5.0, 7.5, 10.0, 12.5, 15.0]));
    }
    let elsewhere = Placement { device: PlacementDevice::Gpu(3), ..placement };
    let error = model.on_device(&elsewhere).err().unwrap().0;
    assert_eq!(
        error,
        "instance 'm_0' of model 'm' cannot run on Gpu(3): there is no device 3, only 0"
    );
}

#[test]
fn what_cannot_be_compiled_for_the_host_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Cuda::new(None, on_host());
    let load = |file: &str, text: &str| {
        let source = source(folder.path(), file, text.as_bytes());
        backend.load(&source).err().map(|error| error.0).unwrap()
    };
    let error = load("broken.cu", &SCALE.replace("by;", "bye;"));
    assert!(error.contains("does not compile for the host") && error.contains("bye"), "{error}");
    let error = load("fewer.cu", &SCALE.replace(", float by", "").replace("* by", ""));
    assert!(error.contains("'arguments' gives scale 4 arguments"), "{error}");
    let error = load("model.ptx", "");
    assert!(error.contains("takes sources: expected a file that ends in .cu"), "{error}");
}
