mod completion;
mod files;
mod printing;
mod whole;

use std::{fs, path::Path, sync::Arc};

use super::*;
use crate::inference::{DataType, Shape};

/// A repository of one test, deleted at its end.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file, making its folders; a path that ends in `/` is a folder.
    fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let full = self.root().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).unwrap();
        } else {
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, content).unwrap();
        }
        self
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn draft(&self, name: &str, options: &Options) -> Result<Draft, Error> {
        Draft::read(name, &self.root().join(name), &Arc::new(options.clone()))
    }
}

/// A model `m` of the ONNX back end with this configuration.
fn onnx(config: &str) -> Fixture {
    Fixture::new().with("m/config.pbtxt", config).with("m/1/model.onnx", "")
}

fn tensor(name: &str, datatype: DataType, dims: &[i64]) -> ModelIoTensor {
    ModelIoTensor { name: name.to_owned(), datatype, dims: Shape::from(dims) }
}

fn io(inputs: &[(&str, &[i64])], outputs: &[(&str, &[i64])]) -> ModelIo {
    let of = |list: &[(&str, &[i64])]| {
        list.iter().map(|(name, dims)| tensor(name, DataType::Fp32, dims)).collect()
    };
    ModelIo { inputs: of(inputs), outputs: of(outputs) }
}
