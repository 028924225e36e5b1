use crate::{
    inference::{DataType, Shape, Signature, TensorSpec},
    proto::{ModelConfig, batch_input::Kind},
};

/// How requests of different shapes share a batch; empty for most models.
#[derive(Clone, Debug, Default)]
pub struct Ragged {
    /// What the server tells the model of each batch, in the configuration's order.
    pub batch_inputs: Vec<BatchInput>,
    inputs: Vec<bool>,
    outputs: Vec<Option<usize>>,
}

/// A tensor that the server makes of the shapes in a batch.
#[derive(Clone, Debug)]
pub struct BatchInput {
    /// Its name, type and dimensions, all of them variable.
    pub spec: TensorSpec,
    /// What it tells.
    pub kind: Kind,
    /// The input that it tells of, by its place in the signature.
    pub source: usize,
}

impl Ragged {
    /// What a validated configuration says of it.
    pub fn new(config: &ModelConfig, signature: &Signature) -> Self {
        let input = |name: &String| signature.input(name);
        let source = |sources: &[String]| sources.first().and_then(input);
        let mut batch_inputs = Vec::new();
        for tensor in &config.batch_input {
            let datatype = DataType::from_config(tensor.data_type());
            let (Some(datatype), Some(source)) = (datatype, source(&tensor.source_input)) else {
                continue;
            };
            let dims = match tensor.kind() {
                Kind::BatchItemShape => Shape::from([-1, -1]),
                _ => Shape::from([-1]),
            };
            batch_inputs.extend(tensor.target_name.iter().map(|name| BatchInput {
                spec: TensorSpec::new(name.as_str(), datatype, dims.clone()),
                kind: tensor.kind(),
                source,
            }));
        }
        let is_ragged = |spec: &TensorSpec| {
            config.input.iter().any(|input| input.allow_ragged_batch && input.name == *spec.name)
        };
        let scattered = |spec: &TensorSpec| {
            let names_it = |names: &[String]| names.iter().any(|name| **name == *spec.name);
            let output = config.batch_output.iter().find(|it| names_it(&it.target_name))?;
            source(&output.source_input)
        };
        Self {
            batch_inputs,
            inputs: signature.inputs.iter().map(is_ragged).collect(),
            outputs: signature.outputs.iter().map(scattered).collect(),
        }
    }

    /// Whether there is nothing of that: rows go in and come out in order.
    pub fn is_empty(&self) -> bool {
        self.batch_inputs.is_empty()
            && !self.inputs.contains(&true)
            && self.outputs.iter().all(Option::is_none)
    }

    /// Whether the tensors of this input are put one behind the other in one dimension.
    pub fn input(&self, index: usize) -> bool {
        self.inputs.get(index) == Some(&true)
    }

    /// The input whose shapes the parts of this output have, if it is to be taken apart by them.
    pub fn output(&self, index: usize) -> Option<usize> {
        self.outputs.get(index).copied().flatten()
    }
}
