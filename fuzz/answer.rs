//! What the targets have in common: the answer of a model that gives back what it was given, and models
//! that are chains of operations.

use std::sync::Arc;

use nereid::{
    backend::{
        Backend as _, BackendError, Model, ModelResponse, ModelSource, Ops, Respond, ResponseError,
    },
    device::Devices,
    inference::{DataType, InferOutput, InferRequest, InferResponse, Shape, Signature, TensorSpec},
    proto::{ModelConfig, ModelInput, ModelParameter},
};

/// An answer to `request` with these outputs.
pub fn answer(
    request: InferRequest,
    outputs: impl IntoIterator<Item = InferOutput>,
) -> InferResponse {
    InferResponse {
        model_name: request.model_name.as_str().into(),
        model_version: 1,
        id: request.id,
        parameters: request.parameters,
        outputs: outputs.into_iter().collect(),
    }
}

/// A model of the back end `ops` with one input and this chain, as it is asked about and, where that
/// completes it, as it is loaded.
pub fn chain_model(
    chain: &str,
    datatype: DataType,
    dims: &[i64],
) -> Result<Arc<dyn Model>, BackendError> {
    let input = ModelInput {
        name: "X".to_owned(),
        data_type: datatype.to_config() as i32,
        dims: dims.to_vec(),
        ..ModelInput::default()
    };
    let parameter = ModelParameter { string_value: chain.to_owned() };
    let config = ModelConfig {
        name: "m".to_owned(),
        max_batch_size: 8,
        input: vec![input],
        parameters: [("chain".to_owned(), parameter)].into_iter().collect(),
        ..ModelConfig::default()
    };
    let mut source = ModelSource {
        name: "m".into(),
        version: 1,
        model_dir: "/".into(),
        version_dir: "/".into(),
        model_path: "/".into(),
        config: Arc::new(config),
        signature: Arc::new(Signature {
            model: "m".into(),
            max_batch_size: 8,
            inputs: vec![TensorSpec::new("X", datatype, Shape::from(dims))],
            outputs: Vec::new(),
        }),
        settings: Arc::default(),
    };
    let ops = Ops::new(Arc::new(Devices::none("chains are fuzzed on the host")));
    let told = ops.inspect(&source)?.unwrap_or_default();
    let outputs = told.outputs.iter().map(|output| {
        let dims = output.dims.iter().skip(1).copied().collect();
        TensorSpec::new(&output.name, output.datatype, dims)
    });
    Arc::make_mut(&mut source.signature).outputs = outputs.collect();
    ops.load(&source)
}

/// Takes an answer that nobody waits for.
pub struct Unheard;

impl Respond for Unheard {
    fn send(&mut self, _: Result<ModelResponse, ResponseError>) {}

    fn finish(self: Box<Self>, _: Option<Result<ModelResponse, ResponseError>>) {}

    fn drop_unfinished(self: Box<Self>) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}
