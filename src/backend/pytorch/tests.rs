//! Tests against the real libraries, for what cannot be seen from outside; each says so when they are
//! not there.

use std::{path::Path, process::Command, sync::Arc};

use bytes::Bytes;
use tempfile::TempDir;

use super::{BRIDGE, PyTorch};
use crate::{
    backend::{
        Backend as _, BackendError, Batch, BatchOutputs, BatchTensor, Host, Instance, ModelSource,
        Placement, PlacementDevice, directory,
    },
    inference::{DataType, Shape, Signature, TensorSpec},
    memory::BufferPool,
    proto::ModelConfig,
};

const ELEMENTS: usize = 1000;

/// The back end, if its libraries are there; otherwise a test is skipped, and says so.
fn runtime() -> Option<PyTorch> {
    let directory = directory::default().expect("a backend directory or a home");
    if directory.join("pytorch").join(BRIDGE).is_file() {
        return Some(PyTorch::open(&directory).unwrap());
    }
    // Past the test harness, which hides the output of tests that pass.
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "skipped: there is no {BRIDGE} in {directory:?}");
    None
}

/// Writes a file whose `forward` takes the tensor `x`.
fn write_module(path: &Path, returns: &str, body: &str) {
    const SCRIPT: &str = "import sys\n\
        sys.path.insert(0, sys.argv[1])\n\
        import torchscript_file as file\n\
        code = 'class M(Module):\\n  __parameters__ = []\\n  __buffers__ = []\\n  training : bool\\n' \
        f'  def forward(self: __torch__.M, x: Tensor) -> {sys.argv[3]}:\\n    {sys.argv[4]}\\n'\n\
        module = file.Module('__torch__.M', {'training': False})\n\
        open(sys.argv[2], 'wb').write(file.write(code, module))\n";
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let done = Command::new("python3")
        .args(["-B", "-c", SCRIPT, examples])
        .arg(path)
        .args([returns, body])
        .output()
        .expect("python3 writes the file");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// An instance of a module, and its folder.
struct Bed {
    instance: Box<dyn Instance>,
    _folder: TempDir,
}

impl Bed {
    fn new(runtime: &PyTorch, returns: &str, body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model_path = folder.path().join("model.pt");
        write_module(&model_path, returns, body);
        let spec = |name| TensorSpec::new(name, DataType::Fp32, Shape::from(&[-1][..]));
        let signature = Signature {
            model: "m".into(),
            max_batch_size: 0,
            inputs: vec![spec("x")],
            outputs: vec![spec("y")],
        };
        let source = ModelSource {
            name: "m".into(),
            version: 1,
            model_dir: folder.path().to_owned(),
            version_dir: folder.path().to_owned(),
            model_path,
            config: Arc::new(ModelConfig::default()),
            signature: Arc::new(signature),
            settings: Arc::default(),
        };
        let placement = Placement {
            name: "m_0".to_owned(),
            device: PlacementDevice::Cpu,
            host_policy: "cpu".to_owned(),
        };
        let host = Arc::new(Host::without_models(pool()));
        let instance = runtime.load(&source).unwrap().instance(&placement, &host).unwrap();
        let instance = instance.into_batches().expect("it takes batches");
        Self { instance, _folder: folder }
    }

    fn run(&mut self, data: Bytes) -> Result<BatchOutputs, BackendError> {
        let shape = Shape::from(&[ELEMENTS as i64][..]);
        let inputs = [Some(BatchTensor { shape, data })];
        let pool = pool();
        self.instance.execute(&Batch {
            rows: 1,
            inputs: &inputs,
            wanted: &[true],
            pool: &pool,
            places: None,
        })
    }
}

fn pool() -> BufferPool {
    BufferPool::new(1 << 20, 16 << 20).unwrap()
}

/// Memory whose keepers can be counted.
fn counted() -> (Bytes, Arc<Vec<f32>>) {
    struct Owner(Arc<Vec<f32>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    let values: Arc<Vec<f32>> = Arc::new((0..ELEMENTS).map(|index| index as f32).collect());
    (Bytes::from_owner(Owner(values.clone())), values)
}

#[test]
fn neither_input_nor_output_is_copied() {
    let Some(runtime) = runtime() else { return };
    let mut bed = Bed::new(&runtime, "Tensor", "return x");
    for _ in 0..4 {
        let (data, values) = counted();
        let there = data.as_ptr();
        let mut outputs = bed.run(data).unwrap();
        let output = outputs.pop().flatten().unwrap().data;
        // What came out is what went in, at the very same place, kept by the output alone.
        assert_eq!(output.as_ptr(), there);
        assert_eq!(output, bytemuck::cast_slice::<f32, u8>(&values));
        assert_eq!(Arc::strong_count(&values), 2);
        drop((output, outputs));
        assert_eq!(Arc::strong_count(&values), 1);
    }
}

#[test]
fn what_fails_keeps_nothing_of_its_input() {
    let Some(runtime) = runtime() else { return };
    for (returns, body, expected) in [
        ("Tensor", "return torch.reshape(x, [7, 11])", "shape '[7, 11]' is invalid"),
        ("Tuple[Device, Tensor]", "return (ops.prim.device(x), x)", "got Device"),
        ("int", "return torch.len(x)", "got int"),
        ("Tuple[Optional[Tensor], Tensor]", "return (None, x)", "got None"),
    ] {
        let mut bed = Bed::new(&runtime, returns, body);
        for _ in 0..3 {
            let (data, values) = counted();
            let error = bed.run(data).err().unwrap().0;
            assert!(error.contains(expected), "{error}");
            assert_eq!(Arc::strong_count(&values), 1, "{body}");
        }
    }
}
