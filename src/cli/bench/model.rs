use serde::Deserialize;

use super::{BenchError, values::InputShape};
use crate::{
    inference::DataType,
    proto::{ModelConfig, ModelMetadataResponse},
};

/// What the client has to know of a model to send it requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Empty when the server is to choose.
    pub version: String,
    pub inputs: Vec<Input>,
    /// The names of the outputs.
    pub outputs: Vec<String>,
    /// Zero when the model does not batch.
    pub max_batch_size: usize,
    /// Whether a request has any number of responses.
    pub decoupled: bool,
}

/// An input that every request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    pub name: String,
    pub datatype: DataType,
    /// Without the batch; negative where they vary.
    pub dims: Vec<i64>,
}

/// The answer to a request for a model's metadata.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    inputs: Vec<TensorMetadata>,
    #[serde(default)]
    outputs: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
struct TensorMetadata {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

/// The parts of a model's configuration that shape requests.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Configuration {
    max_batch_size: usize,
    input: Vec<ConfiguredInput>,
    model_transaction_policy: TransactionPolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfiguredInput {
    name: String,
    optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TransactionPolicy {
    decoupled: bool,
}

impl From<ModelMetadataResponse> for Metadata {
    fn from(message: ModelMetadataResponse) -> Self {
        let inputs = message.inputs.into_iter();
        let inputs = inputs.map(|input| TensorMetadata {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape,
        });
        let outputs = message.outputs.into_iter().map(|output| Named { name: output.name });
        Self { inputs: inputs.collect(), outputs: outputs.collect() }
    }
}

impl From<ModelConfig> for Configuration {
    fn from(message: ModelConfig) -> Self {
        let input = message.input.into_iter();
        let input =
            input.map(|input| ConfiguredInput { name: input.name, optional: input.optional });
        let decoupled = message.model_transaction_policy.is_some_and(|policy| policy.decoupled);
        Self {
            max_batch_size: usize::try_from(message.max_batch_size).unwrap_or(0),
            input: input.collect(),
            model_transaction_policy: TransactionPolicy { decoupled },
        }
    }
}

impl Model {
    /// Puts together what a server says of a model; optional inputs are left out.
    ///
    /// # Errors
    /// When an input has a type that is not one of the protocol's.
    pub fn new(
        name: &str,
        version: &str,
        metadata: Metadata,
        configuration: &Configuration,
    ) -> Result<Self, BenchError> {
        let is_optional = |name: &str| {
            configuration.input.iter().any(|input| input.optional && input.name == name)
        };
        let batches = configuration.max_batch_size > 0;
        let mut inputs = Vec::new();
        for input in metadata.inputs.into_iter().filter(|input| !is_optional(&input.name)) {
            let detail = |error| format!("input '{}': {error}", input.name);
            let datatype = input.datatype.parse().map_err(|error: crate::inference::Error| {
                BenchError::Model { model: name.to_owned(), detail: detail(error) }
            })?;
            // The metadata of a model that batches has the batch as first dimension.
            let dims = input.shape.get(usize::from(batches)..).unwrap_or_default().to_vec();
            inputs.push(Input { name: input.name, datatype, dims });
        }
        Ok(Self {
            name: name.to_owned(),
            version: version.to_owned(),
            inputs,
            outputs: metadata.outputs.into_iter().map(|output| output.name).collect(),
            max_batch_size: configuration.max_batch_size,
            decoupled: configuration.model_transaction_policy.decoupled,
        })
    }

    /// The shape that a request of `batch_size` inferences gives each input, in their order.
    ///
    /// # Errors
    /// When the model does not take such a batch, `given` does not fit its inputs, or an input of
    /// variable shape is not among `given`.
    pub fn shapes(
        &self,
        given: &[InputShape],
        batch_size: usize,
    ) -> Result<Vec<Vec<i64>>, BenchError> {
        let wrong = |detail| BenchError::Model { model: self.name.clone(), detail };
        if batch_size > self.max_batch_size.max(1) {
            let most = match self.max_batch_size {
                0 => "it does not batch (max_batch_size is 0)".to_owned(),
                most => format!("its max_batch_size is {most}"),
            };
            return Err(wrong(format!("cannot send batches of {batch_size}: {most}")));
        }
        if let Some(stray) = given.iter().find(|given| self.input(&given.name).is_none()) {
            let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            let names = names.join(", ");
            return Err(wrong(format!(
                "--shape names an input '{}' that it does not require; it has {names}",
                stray.name
            )));
        }
        let batch = (self.max_batch_size > 0).then_some(batch_size as i64);
        self.inputs
            .iter()
            .map(|input| {
                let dims = match given.iter().rev().find(|given| given.name == input.name) {
                    Some(given) if input.admits(&given.dims) => &given.dims,
                    Some(given) => {
                        return Err(wrong(format!(
                            "--shape gives input '{}' the dimensions {:?}, expected {:?}",
                            input.name, given.dims, input.dims
                        )));
                    }
                    None if input.dims.iter().all(|&dim| dim >= 0) => &input.dims,
                    None => {
                        return Err(wrong(format!(
                            "input '{}' has the variable shape {:?}: say with --shape {}:D1,D2,… \
                             what to send",
                            input.name, input.dims, input.name
                        )));
                    }
                };
                Ok(batch.into_iter().chain(dims.iter().copied()).collect())
            })
            .collect()
    }

    fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

impl Input {
    fn admits(&self, dims: &[i64]) -> bool {
        self.dims.len() == dims.len()
            && self.dims.iter().zip(dims).all(|(&own, &given)| own < 0 || own == given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(config: &str) -> Model {
        let metadata = r#"{"name": "m", "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "b", "datatype": "BYTES", "shape": [-1, -1, 2]}]}"#;
        let configuration = serde_json::from_str(config).unwrap();
        Model::new("m", "", serde_json::from_str(metadata).unwrap(), &configuration).unwrap()
    }

    fn shape(text: &str) -> InputShape {
        text.parse().unwrap()
    }

    #[test]
    fn shapes_are_those_of_the_model_and_of_the_options() {
        let batching = model(r#"{"max_batch_size": 8}"#);
        let shapes = batching.shapes(&[shape("b:5,2")], 4).unwrap();
        assert_eq!(shapes, [vec![4, 3], vec![4, 5, 2]]);
        let plain = model("{}");
        let shapes = plain.shapes(&[shape("b:1,5,2"), shape("a:9,3")], 1).unwrap();
        assert_eq!(shapes, [vec![9, 3], vec![1, 5, 2]]);
    }

    #[test]
    fn options_that_do_not_fit_are_told_by_name() {
        let batching = model(r#"{"max_batch_size": 8}"#);
        for (given, batch_size, words) in [
            (vec![], 1, "input 'b' has the variable shape [-1, 2]"),
            (vec![shape("b:5,3")], 1, "dimensions [5, 3], expected [-1, 2]"),
            (vec![shape("b:2")], 1, "dimensions [2], expected [-1, 2]"),
            (vec![shape("c:2")], 1, "an input 'c' that it does not require; it has a, b"),
            (vec![], 9, "batches of 9: its max_batch_size is 8"),
        ] {
            let error = batching.shapes(&given, batch_size).unwrap_err().to_string();
            assert!(error.starts_with("model 'm': ") && error.contains(words), "{error}");
        }
        let error = model("{}").shapes(&[], 2).unwrap_err().to_string();
        assert!(error.contains("batches of 2: it does not batch"), "{error}");
    }

    #[test]
    fn what_the_configuration_says_counts() {
        let config = r#"{"model_transaction_policy": {"decoupled": true},
            "input": [{"name": "b", "optional": true, "dims": [2]}]}"#;
        let model = model(config);
        assert!(model.decoupled);
        assert_eq!(model.inputs.len(), 1);
        let bad = r#"{"inputs": [{"name": "a", "datatype": "FP8", "shape": []}]}"#;
        let bad = serde_json::from_str(bad).unwrap();
        let error = Model::new("m", "", bad, &Configuration::default()).unwrap_err().to_string();
        assert!(error.contains("input 'a'") && error.contains("FP8"), "{error}");
    }
}
