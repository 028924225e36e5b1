//! A model whose outputs are its inputs: for trying the server out, and for measuring all that is
//! not the model.

use std::sync::Arc;

use super::{
    Backend, BackendError, Batch, BatchOutputs, InlineFitness, Instance, Model, ModelIo,
    ModelSource, Placement,
};

/// Output `i` is input `i`, by reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl Backend for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        None
    }

    fn inspect(&self, _: &ModelSource) -> Result<Option<ModelIo>, BackendError> {
        Ok(None)
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let signature = &source.signature;
        if signature.inputs.len() != signature.outputs.len() {
            return Err(BackendError(format!(
                "model '{}' of back end 'identity' must have as many outputs as inputs: \
                 expected {}, got {}",
                source.name,
                signature.inputs.len(),
                signature.outputs.len()
            )));
        }
        for (input, output) in signature.inputs.iter().zip(&signature.outputs) {
            if input.datatype != output.datatype {
                return Err(BackendError(format!(
                    "output '{}' of model '{}' must have the type of input '{}': \
                     expected {}, got {}",
                    output.name, source.name, input.name, input.datatype, output.datatype
                )));
            }
        }
        Ok(Arc::new(Identity))
    }
}

impl Model for Identity {
    fn instance(&self, _: &Placement) -> Result<Box<dyn Instance>, BackendError> {
        Ok(Box::new(Identity))
    }

    fn inline_fitness(&self) -> InlineFitness {
        InlineFitness::Always
    }
}

impl Instance for Identity {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        Ok(batch.inputs.iter().cloned().collect())
    }
}
