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
        BackendError, Batch, BatchOutputs, DeviceBatch, DeviceModel, Expected, ResponseError,
        voyage::{Aboard, Awaited, Voyage},
    },
    device::{
        Destination, DeviceError, DeviceSlice, Stream, VisitError, Visited,
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
    fn writes_inputs(&self) -> bool {
        true
    }

    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, ResponseError> {
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

    fn outputs(
        &self,
        batch: Expected,
        returned: Vec<Option<Bytes>>,
    ) -> Result<BatchOutputs, BackendError> {
        Voyage::disembark(batch, returned)
    }
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let aboard = Aboard::of(batch, &self.model)?;
        let run = Run { module: self.module.clone(), plan: self.plan.clone() };
        // A module may write into what it is given.
        aboard.visit(stream, true, move |aboard, visited| run.go(aboard, visited))
    }

    fn is_library(&self) -> bool {
        true
    }
}

/// One run in a lane's memory.
struct Run {
    module: Arc<Module>,
    plan: Arc<Plan>,
}

impl Run {
    fn go(&self, aboard: &Aboard, visited: &mut dyn Visited) -> Result<(), VisitError> {
        let outputs = self.module.forward(self.arguments(aboard)).map_err(|error| {
            let is_memory = error.is_out_of_memory();
            let text = RunError::from(error).to_string();
            if is_memory { VisitError::OutOfMemory(text) } else { VisitError::Failed(text) }
        })?;
        let places = aboard.voyage.outputs.iter().zip(&aboard.outputs);
        for (index, (awaited, slice)) in places.enumerate() {
            let place = match awaited {
                Awaited::Unwanted | Awaited::Echo(_) => continue,
                Awaited::Placed(shape, _) => Some((shape, slice)),
                Awaited::Unknown => None,
            };
            self.bring(&aboard.voyage, visited, &outputs, index, place)?;
        }
        Ok(())
    }

    fn arguments<'a>(&'a self, aboard: &'a Aboard) -> Vec<Input<'a>> {
        let mut arguments = Vec::with_capacity(aboard.inputs.len());
        for ((index, shape), slice) in aboard.voyage.inputs.iter().zip(&aboard.inputs) {
            if let Some(plan) = self.plan.inputs.get(*index) {
                arguments.push(Input::on_device(&plan.name, plan.datatype, shape, slice));
            }
        }
        arguments
    }

    /// Brings a result to its place in the lane, or to the host where it has none of its shape.
    fn bring(
        &self,
        voyage: &Voyage,
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
        Ok(voyage.bring(visited, index, shape, memory)?)
    }
}
