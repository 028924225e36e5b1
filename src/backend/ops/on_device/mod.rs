//! A chain as launches on a device: each stage is one of the kernels, and what lies between stages
//! stays on the device.
//!
//! Files are decoded on the processors, each by itself before its batch is laid out (`ready`); what follows of the
//! chain runs on the device. `layout` says what each stage makes of a batch, `launch` puts the stages onto a
//! stream. Other stages that look into the content of requests to know what to do, gathering among them, do not
//! run on a device, nor do those that no kernel of ours does as a whole.

mod launch;
mod layout;
mod ready;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

use self::{
    launch::OnDevice,
    layout::{bytes, make},
};
use super::{
    Loaded,
    plan::{Slot, Stage, Work},
    run::RunError,
};
use crate::{
    backend::{BackendError, Batch, DeviceBatch, DeviceModel, DeviceOutput, ResponseError},
    device::{Device, DeviceError, kernels, streams::Compute},
    inference::{DataType, Shape},
    memory::BufferPool,
};

/// The kernel that a stage is; `None` if it cannot run on a device.
fn kernel(stage: &Stage, from: DataType) -> Option<String> {
    Some(match &stage.work {
        Work::Image { encoded: None, datatype, .. } => format!("image_{}", suffix(*datatype)),
        // Pictures of several sizes could not share a batch.
        Work::Image { geometry, datatype, .. } if geometry.fixed_size().is_some() => {
            format!("image_{}", suffix(*datatype))
        }
        Work::Cast { to, .. } if from == DataType::Fp32 => format!("narrow_{}", suffix(*to)),
        Work::Cast { .. } => format!("widen_{}", suffix(from)),
        Work::Softmax => "softmax".to_owned(),
        Work::LogSoftmax => "log_softmax".to_owned(),
        Work::TopK { .. } => "top_k".to_owned(),
        Work::Argmax => "argmax".to_owned(),
        Work::Image { .. } | Work::Pad { .. } | Work::Gather | Work::Nms { .. } => return None,
    })
}

fn suffix(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Uint8 => "u8",
        DataType::Int8 => "i8",
        DataType::Fp16 => "f16",
        DataType::Bf16 => "bf16",
        _ => "f32",
    }
}

/// Where a chain's tensors are on a device.
pub(super) struct Launches {
    chain: Arc<Loaded>,
    /// By slot.
    places: Vec<Place>,
    /// One for each stage.
    kernels: Vec<String>,
    /// The inputs that are files.
    files: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Place {
    Input(usize),
    Output(usize),
    Scratch(usize),
}

impl Launches {
    /// Of a chain that can run on devices; `None` if a stage of it cannot.
    pub fn of(chain: &Arc<Loaded>) -> Option<Self> {
        let plan = &chain.plan;
        let kernels = plan.stages.iter().map(|stage| {
            let from = plan.forms.get(*stage.inputs.first()?)?.datatype;
            kernel(stage, from)
        });
        let kernels: Vec<String> = kernels.collect::<Option<_>>()?;
        let made: Vec<Slot> =
            plan.stages.iter().flat_map(|stage| &stage.outputs).copied().collect();
        let mut scratch = 0..;
        let places = (0..plan.forms.len()).map(|slot| {
            let result = chain.results.iter().position(|&result| result == slot);
            Some(match (made.contains(&slot), result) {
                (false, None) => Place::Input(slot),
                // A tensor that passes through is no work for a device.
                (false, Some(_)) => return None,
                (true, Some(output)) => Place::Output(output),
                (true, None) => Place::Scratch(scratch.next()?),
            })
        });
        let inputs =
            plan.stages.iter().filter(|stage| stage.work.decodes()).flat_map(|it| &it.inputs);
        let mut files: Vec<usize> = inputs.copied().collect();
        files.sort_unstable();
        // What one step decodes, another would have to decode in another way.
        let is_shared =
            |file: &usize| plan.stages.iter().filter(|it| it.inputs.contains(file)).count() > 1;
        if files.iter().any(is_shared) {
            return None;
        }
        let places = places.collect::<Option<_>>()?;
        Some(Self { places, kernels, files, chain: chain.clone() })
    }

    /// Loads the kernels on a device.
    pub fn load(this: &Arc<Self>, device: &dyn Device) -> Result<Box<dyn Compute>, DeviceError> {
        let load = |name: &String| {
            let number = device.properties().index;
            let unknown = || DeviceError::Kernel {
                device: number,
                kernel: name.clone(),
                reason: "there is none of this name".to_owned(),
            };
            device.kernel(&kernels::source(name).ok_or_else(unknown)?)
        };
        let kernels = this.kernels.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Box::new(OnDevice { launches: this.clone(), kernels }))
    }
}

impl DeviceModel for Launches {
    fn prepared(&self) -> &[usize] {
        &self.files
    }

    fn prepare(
        &self,
        input: usize,
        rows: u32,
        data: Bytes,
        pool: &BufferPool,
    ) -> Result<Bytes, ResponseError> {
        let stages = &self.chain.plan.stages;
        let Some(stage) = stages.iter().find(|stage| stage.inputs.contains(&input)) else {
            return Ok(data);
        };
        let rows = if self.chain.has_batch { rows as usize } else { 1 };
        ready::pictures(stage, rows, &data, pool).map_err(|fault| {
            let error = RunError::of(fault, &stage.label);
            ResponseError { code: error.code(), message: error.to_string() }
        })
    }

    fn lay_out(&self, given: &Batch<'_>) -> Result<DeviceBatch, BackendError> {
        let Loaded { plan, results, has_batch } = &*self.chain;
        let rows = if *has_batch { given.rows as usize } else { 1 };
        let mut dims: Vec<Shape> = vec![Shape::default(); plan.forms.len()];
        let mut batch = DeviceBatch::default();
        for (tensor, place) in given.inputs.iter().flatten().zip(&mut dims) {
            *place = tensor.shape.iter().skip(usize::from(*has_batch)).copied().collect();
            batch.inputs.push(tensor.data.clone());
        }
        for stage in &plan.stages {
            let fault = |reason: String| BackendError(format!("{}: {reason}", stage.label));
            let first = stage.inputs.first().copied().unwrap_or_default();
            let given = dims.get(first).cloned().unwrap_or_default();
            let file = stage.work.decodes().then(|| batch.inputs.get(first)).flatten();
            let made = make(&stage.work, &given, rows, file).map_err(fault)?;
            batch.numbers.extend(made.numbers);
            batch.inputs.extend(made.tables);
            for (&slot, made) in stage.outputs.iter().zip(made.dims) {
                if let Some(place) = dims.get_mut(slot) {
                    *place = made;
                }
            }
        }
        let sized = |slot: Slot| {
            let form = plan.forms.get(slot).zip(dims.get(slot));
            let (form, dims) =
                form.ok_or_else(|| BackendError("a tensor is missing".to_owned()))?;
            bytes(dims, form.datatype, rows)
                .map(|bytes| (dims, bytes))
                .ok_or_else(|| BackendError(format!("{dims} has too many elements")))
        };
        for &slot in results {
            let (dims, bytes) = sized(slot)?;
            let shape = if *has_batch { dims.with_batch(rows as i64) } else { dims.clone() };
            batch.outputs.push(DeviceOutput { shape, bytes });
        }
        for (slot, place) in self.places.iter().enumerate() {
            if let Place::Scratch(_) = place {
                batch.scratch.push(sized(slot)?.1);
            }
        }
        Ok(batch)
    }
}
