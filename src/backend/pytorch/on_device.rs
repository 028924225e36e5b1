//! Batches on devices: arguments are wrapped where a lane has them, and results brought to their places
//! there. A result whose shape the configuration leaves open comes back apart from the lane.
//!
//! On a GPU `forward` puts its work onto the module's stream and does not wait for it; on a device of
//! the host all is the same but where the module is.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    execution::{RunError, given, locate},
    module::{Input, Module, Outputs, memory},
    plan::Plan,
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, DeviceBatch, DeviceModel, Expected,
        voyage::{Awaited, NotBrought, Voyage},
    },
    device::{
        Destination, DeviceError, DeviceSlice, Stream, Visit, VisitError, Visited,
        streams::{Compute, PlacedBatch},
    },
    inference::Shape,
};

/// How a model's batches look on devices.
pub(super) struct Batches {
    pub plan: Arc<Plan>,
    /// Whether the model sees a batch dimension.
    pub batches: bool,
}

/// A module as the compute step of lanes.
pub(super) struct OnDevice {
    pub model: Arc<str>,
    pub module: Arc<Module>,
    pub plan: Arc<Plan>,
}

impl DeviceModel for Batches {
    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, BackendError> {
        let mut voyage = Voyage::new(batch.pool);
        let mut inputs = Vec::with_capacity(self.plan.inputs.len());
        let all =
            given(&self.plan, batch.inputs).map_err(|error| BackendError(error.to_string()))?;
        for (index, tensor) in all {
            voyage.inputs.push((index, tensor.shape.clone()));
            inputs.push(tensor.data.clone());
        }
        for (output, &wanted) in self.plan.outputs.iter().zip(batch.wanted) {
            let shape = output.dims.as_ref().map(|dims| match self.batches {
                true => dims.with_batch(batch.rows.into()),
                false => dims.clone(),
            });
            let sized = shape.and_then(|shape| Some((output.bytes(&shape)?, shape)));
            voyage.outputs.push(match (wanted, sized) {
                (false, _) => Awaited::Unwanted,
                (true, Some((bytes, shape))) => Awaited::Placed(shape, bytes),
                (true, None) => Awaited::Unknown,
            });
        }
        Ok(voyage.embark(inputs))
    }

    fn outputs(&self, batch: Expected, returned: Vec<Bytes>) -> Result<BatchOutputs, BackendError> {
        Voyage::disembark(batch, returned)
    }
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let who: Arc<str> = format!("model '{}'", self.model).into();
        let voyage = Voyage::of(batch.own, &who)?;
        let (reads, writes) = (Vec::new(), [batch.inputs, batch.outputs].concat());
        let run = Run {
            module: self.module.clone(),
            plan: self.plan.clone(),
            inputs: batch.inputs.to_vec(),
            outputs: batch.outputs.to_vec(),
            voyage,
        };
        stream.visit(Visit { who, reads, writes, work: Box::new(move |visited| run.go(visited)) })
    }

    fn is_library(&self) -> bool {
        true
    }
}

/// One run in a lane's memory.
struct Run {
    module: Arc<Module>,
    plan: Arc<Plan>,
    inputs: Vec<DeviceSlice>,
    outputs: Vec<DeviceSlice>,
    voyage: Arc<Voyage>,
}

impl Run {
    fn go(self, visited: &mut dyn Visited) -> Result<(), VisitError> {
        let outputs = self.module.forward(self.arguments()).map_err(|error| {
            let is_memory = error.is_out_of_memory();
            let text = RunError::from(error).to_string();
            if is_memory { VisitError::OutOfMemory(text) } else { VisitError::Failed(text) }
        })?;
        for (index, (awaited, slice)) in self.voyage.outputs.iter().zip(&self.outputs).enumerate() {
            let place = match awaited {
                Awaited::Unwanted | Awaited::Echo(_) => continue,
                Awaited::Placed(shape, _) => Some((shape, slice)),
                Awaited::Unknown => None,
            };
            self.bring(visited, &outputs, index, place)?;
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<Input<'_>> {
        let mut arguments = Vec::with_capacity(self.inputs.len());
        for ((index, shape), slice) in self.voyage.inputs.iter().zip(&self.inputs) {
            if let Some(plan) = self.plan.inputs.get(*index) {
                arguments.push(Input::on_device(&plan.name, plan.datatype, shape, slice));
            }
        }
        arguments
    }

    /// Brings a result to its place in the lane, or to the host where it has none of its shape.
    fn bring(
        &self,
        visited: &mut dyn Visited,
        outputs: &Arc<Outputs>,
        index: usize,
        place: Option<(&Shape, &DeviceSlice)>,
    ) -> Result<(), VisitError> {
        let failed = |error: RunError| VisitError::Failed(error.to_string());
        let Some(plan) = self.plan.outputs.get(index) else { return Ok(()) };
        let at = locate(plan, outputs).map_err(failed)?;
        let Some((shape, memory)) = memory(outputs, at) else { return Ok(()) };
        if let Some((_, slice)) =
            place.filter(|(known, slice)| **known == shape && slice.len() == memory.len())
        {
            return visited.bring(memory, Destination::Device(slice));
        }
        self.voyage.bring(visited, index, shape, memory).map_err(|error| match error {
            NotBrought::Device(error) => error,
            NotBrought::Exhausted(error) => VisitError::Failed(error.to_string()),
        })
    }
}
