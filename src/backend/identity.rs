//! A model whose outputs are its inputs: for trying the server out, and for measuring all that is
//! not the model.

use std::{sync::Arc, thread, time::Duration};

use super::{
    Backend, BackendError, Batch, BatchOutputs, Host, InlineFitness, Instance, Model,
    ModelInstance, ModelSource, Placement,
};
use crate::inference::{Signature, TensorSpec};

/// Output `OUTPUTx` is input `INPUTx`, and one of another name the input in its place, by reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

/// The parameter in a model's configuration that says how many milliseconds a run takes, as for Triton's
/// back end of that name.
const DELAY: &str = "execute_delay_ms";

/// A model, and each of its instances.
#[derive(Clone, Debug)]
struct Pairs {
    /// For every output its input's place and name.
    pairs: Vec<(usize, Arc<str>)>,
    /// How long a run takes.
    delay: Duration,
}

impl Backend for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let Signature { inputs, outputs, .. } = &*source.signature;
        let mut pairs = Vec::new();
        for (index, output) in outputs.iter().enumerate() {
            let Some(place) = input_of(inputs, index, &output.name) else {
                return Err(BackendError(format!(
                    "output '{}' of model '{}' of back end 'identity' has no input: expected one \
                     for each of {} outputs, got {}",
                    output.name,
                    source.name,
                    outputs.len(),
                    inputs.len()
                )));
            };
            let input = &inputs[place];
            if input.datatype != output.datatype {
                return Err(BackendError(format!(
                    "output '{}' of model '{}' must have the type of input '{}': \
                     expected {}, got {}",
                    output.name, source.name, input.name, input.datatype, output.datatype
                )));
            }
            pairs.push((place, input.name.clone()));
        }
        Ok(Arc::new(Pairs { pairs, delay: delay(source)? }))
    }
}

fn delay(source: &ModelSource) -> Result<Duration, BackendError> {
    let Some(parameter) = source.config.parameters.get(DELAY) else { return Ok(Duration::ZERO) };
    let text = &parameter.string_value;
    let millis = text.parse().map_err(|_| {
        BackendError(format!(
            "parameter '{DELAY}' of model '{}' must be a number of milliseconds, got '{text}'",
            source.name
        ))
    })?;
    Ok(Duration::from_millis(millis))
}

fn input_of(inputs: &[TensorSpec], index: usize, output: &str) -> Option<usize> {
    let of_its_name = output.strip_prefix("OUTPUT").and_then(|rest| {
        inputs.iter().position(|input| input.name.strip_prefix("INPUT") == Some(rest))
    });
    of_its_name.or_else(|| (index < inputs.len()).then_some(index))
}

impl Model for Pairs {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Batches(Box::new(self.clone())))
    }

    fn inline_fitness(&self) -> InlineFitness {
        if self.delay.is_zero() { InlineFitness::Always } else { InlineFitness::Never }
    }
}

impl Instance for Pairs {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        let outputs = self.pairs.iter().zip(batch.wanted);
        outputs
            .map(|((place, name), &wanted)| match batch.inputs.get(*place) {
                Some(Some(tensor)) => Ok(Some(tensor.clone())),
                _ if wanted => Err(BackendError(format!("unknown request input name {name}"))),
                _ => Ok(None),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{DataType, Shape};

    #[test]
    fn an_output_is_the_input_of_its_name_or_else_of_its_place() {
        let input = |name| TensorSpec::new(name, DataType::Fp32, Shape::from([1]));
        let inputs = [input("INPUT1"), input("INPUT0"), input("X")];
        for (index, output, expected) in [
            (0, "OUTPUT0", Some(1)),
            (1, "OUTPUT1", Some(0)),
            (2, "OUTPUT9", Some(2)),
            (0, "Y", Some(0)),
            (3, "Y", None),
        ] {
            assert_eq!(input_of(&inputs, index, output), expected, "{output} at {index}");
        }
    }
}
