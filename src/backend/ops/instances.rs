//! Chains at work for those who hand them batches or requests one by one, on the processors or on a device.

use std::sync::Arc;

use bytes::Bytes;

use super::Loaded;
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, BatchTensor, Direct, Host, Instance, ModelRequest,
        ModelResponse, RequestInstance, ResponseError, ResponseTensor,
    },
    device::{Device, streams::Runner},
    inference::Shape,
    memory::BufferPool,
};

/// An instance that takes whole batches.
pub(super) struct OnTensors(pub Arc<Loaded>);

impl Instance for OnTensors {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let inputs = batch.inputs.iter().flatten();
        let inputs = inputs.map(|tensor| (tensor.shape.clone(), tensor.data.clone()));
        let outputs = self.0.run(batch.rows as usize, inputs, batch.pool);
        outputs.map_err(|error| BackendError(error.to_string()))
    }
}

/// An instance that takes requests one by one, on a device or on the processors.
pub(super) struct OnRequests {
    pub chain: Arc<Loaded>,
    pub device: Option<Direct<Runner>>,
}

impl OnRequests {
    fn answer(
        &mut self,
        rows: u32,
        inputs: impl Iterator<Item = (Shape, Bytes)>,
        pool: &BufferPool,
    ) -> Result<ModelResponse, ResponseError> {
        let outputs = match &mut self.device {
            None => self.chain.run(rows as usize, inputs, pool)?,
            Some(device) => {
                let inputs: Vec<_> =
                    inputs.map(|(shape, data)| Some(BatchTensor { shape, data })).collect();
                let wanted = vec![true; self.chain.results.len()];
                let (inputs, wanted) = (&inputs, &wanted);
                device.answer(&Batch { rows, inputs, wanted, pool, places: None })?
            }
        };
        Ok(self.chain.response(outputs))
    }
}

impl RequestInstance for OnRequests {
    fn execute(&mut self, requests: Vec<ModelRequest>, host: &Host) {
        for ModelRequest { tensors, responder, .. } in requests {
            if responder.is_cancelled() {
                responder.close();
                continue;
            }
            let inputs = tensors.inputs.into_iter().flatten();
            let inputs = inputs.map(|input| (input.shape, input.data.into_bytes()));
            responder.finish(self.answer(tensors.batch_size, inputs, &host.pool));
        }
    }

    fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref()?.device()
    }
}

impl Loaded {
    fn response(&self, outputs: BatchOutputs) -> ModelResponse {
        let outputs =
            (0..).zip(outputs).zip(&self.results).filter_map(|((output, made), &slot)| {
                let BatchTensor { shape, data } = made?;
                let datatype = self.plan.forms.get(slot)?.datatype;
                Some(ResponseTensor { output, datatype, shape, data })
            });
        ModelResponse { outputs: outputs.collect(), ..ModelResponse::default() }
    }
}
