//! Tests against the real library; each says so when it is not there.

mod execution;
mod loading;
mod model;
mod settings;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use tempfile::TempDir;

use super::OnnxRuntime;
use crate::{
    backend::{
        Backend as _, BackendError, Batch, BatchOutputs, BatchTensor, Host, Instance, Model,
        ModelSource, Placement, PlacementDevice, directory,
    },
    device::{
        Devices,
        host::{HostDevice, HostSettings},
    },
    inference::{DataType, Shape, Signature, TensorSpec},
    memory::{BufferPool, OutputPlaces, SharedView},
    proto::{ModelConfig, ModelParameter},
};

/// The back end, if its library is installed. Without it a test is skipped, and says so, unless
/// `NEREID_REQUIRE_BACKENDS=1`, which makes that a failure.
fn runtime() -> Option<OnnxRuntime> {
    let directory = directory::default().expect("a backend directory or a home");
    match OnnxRuntime::open(&directory) {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            let required = std::env::var_os("NEREID_REQUIRE_BACKENDS").is_some_and(|it| it == "1");
            assert!(!required, "{error}");
            // Past the test harness, which hides the output of tests that pass.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            None
        }
    }
}

/// A model on disk with its configuration and signature.
struct Case {
    folder: TempDir,
    config: ModelConfig,
    signature: Signature,
    settings: BTreeMap<String, String>,
}

type Spec<'a> = (&'a str, DataType, &'a [i64]);

impl Case {
    fn new(file: &[u8], inputs: &[Spec<'_>], outputs: &[Spec<'_>]) -> Self {
        fn specs(specs: &[Spec<'_>]) -> Vec<TensorSpec> {
            let spec = |&(name, datatype, dims): &Spec<'_>| {
                TensorSpec::new(name, datatype, Shape::from(dims))
            };
            specs.iter().map(spec).collect()
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.onnx"), file).unwrap();
        Self {
            folder,
            config: ModelConfig::default(),
            signature: Signature {
                model: "m".into(),
                max_batch_size: 0,
                inputs: specs(inputs),
                outputs: specs(outputs),
            },
            settings: BTreeMap::new(),
        }
    }

    fn batching(mut self, max_batch_size: u32) -> Self {
        self.signature.max_batch_size = max_batch_size;
        self
    }

    fn parameter(mut self, name: &str, value: &str) -> Self {
        let value = ModelParameter { string_value: value.to_owned() };
        self.config.parameters.insert(name.to_owned(), value);
        self
    }

    fn source(&self) -> ModelSource {
        let folder: &Path = self.folder.path();
        ModelSource {
            name: "m".into(),
            version: 1,
            model_dir: folder.to_owned(),
            version_dir: folder.to_owned(),
            model_path: folder.join("model.onnx"),
            config: Arc::new(self.config.clone()),
            signature: Arc::new(self.signature.clone()),
            settings: Arc::new(self.settings.clone()),
        }
    }

    fn load(&self, runtime: &OnnxRuntime) -> Result<Arc<dyn Model>, BackendError> {
        runtime.load(&self.source())
    }

    fn instance(&self, runtime: &OnnxRuntime) -> Box<dyn Instance> {
        instance_on(&*self.load(runtime).unwrap(), PlacementDevice::Cpu).unwrap()
    }

    /// Runs one batch of inputs, all given, and asks for all outputs; on a device they are the same.
    fn run(
        &self,
        runtime: &OnnxRuntime,
        rows: u32,
        inputs: &[BatchTensor],
    ) -> Result<Vec<BatchTensor>, BackendError> {
        let pool = pool();
        let outputs = execute(&mut *self.instance(runtime), rows, inputs, &pool)?;
        let outputs: Vec<BatchTensor> = outputs.into_iter().map(|output| output.unwrap()).collect();
        let devices = Devices::new(|| {
            Ok(vec![Arc::new(HostDevice::start(HostSettings::default()).unwrap())])
        });
        let there = OnnxRuntime { runtime: runtime.runtime, devices: Arc::new(devices) };
        let loaded = self.load(&there).unwrap();
        let mut placed = instance_on(&*loaded, PlacementDevice::Gpu(0)).unwrap();
        // The second time it knows which sizes the file foretells wrongly.
        for _ in 0..2 {
            let there = execute(&mut *placed, rows, inputs, &pool)?;
            for (there, here) in there.into_iter().map(Option::unwrap).zip(&outputs) {
                assert_eq!((&there.shape, &there.data), (&here.shape, &here.data));
            }
        }
        Ok(outputs)
    }
}

fn execute(
    instance: &mut dyn Instance,
    rows: u32,
    inputs: &[BatchTensor],
    pool: &BufferPool,
) -> Result<BatchOutputs, BackendError> {
    let inputs: Vec<Option<BatchTensor>> = inputs.iter().cloned().map(Some).collect();
    instance.execute(&Batch { rows, inputs: &inputs, wanted: &[true; 4], pool, places: None })
}

fn instance_on(
    model: &dyn Model,
    device: PlacementDevice,
) -> Result<Box<dyn Instance>, BackendError> {
    let host = Arc::new(Host::without_models(pool()));
    Ok(model.instance(&on(device), &host)?.into_batches().expect("it takes batches"))
}

fn on(device: PlacementDevice) -> Placement {
    Placement { name: "m_0".to_owned(), device, host_policy: "cpu".to_owned() }
}

fn pool() -> BufferPool {
    BufferPool::new(1 << 20, 16 << 20).unwrap()
}

fn tensor(shape: &[i64], data: impl Into<Bytes>) -> BatchTensor {
    BatchTensor { shape: Shape::from(shape), data: data.into() }
}

/// Numbers as a tensor's bytes, aligned for their type.
fn numbers<T: bytemuck::NoUninit + Send>(shape: &[i64], values: Vec<T>) -> BatchTensor {
    struct Owner<T>(Vec<T>);
    impl<T: bytemuck::NoUninit> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    tensor(shape, Bytes::from_owner(Owner(values)))
}

fn floats(tensor: &BatchTensor) -> Vec<f32> {
    let (chunks, rest) = tensor.data.as_chunks();
    assert!(rest.is_empty());
    chunks.iter().copied().map(f32::from_le_bytes).collect()
}

/// Strings in the wire's form.
fn strings(shape: &[i64], strings: &[&[u8]]) -> BatchTensor {
    let wire: Vec<u8> = strings
        .iter()
        .flat_map(|string| {
            (string.len() as u32).to_le_bytes().into_iter().chain(string.iter().copied())
        })
        .collect();
    tensor(shape, wire)
}
