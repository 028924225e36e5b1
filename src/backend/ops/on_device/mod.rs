//! A chain as launches on a device: each stage is one of the kernels, and what lies between stages
//! stays on the device.
//!
//! Files are decoded on the processors, each by itself before its batch is laid out (`ready`); what follows of the
//! chain runs on the device. `layout` says what each stage makes of a batch, `launch` puts the stages onto a
//! stream. The indices of entries are looked at where they are: what is wrong with them comes back as a note, and
//! fails the request whose they are.

mod launch;
mod layout;
mod ready;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use bytemuck::pod_read_unaligned;
use bytes::Bytes;

use self::{
    launch::OnDevice,
    layout::{bytes, make},
};
use super::{
    Loaded,
    plan::{Form, Plan, Slot, Stage, Work},
    run::{Fault, RunError, indices},
    shapes::{Gathering, Unpadding, too_many},
};
use crate::{
    backend::{Batch, DeviceBatch, DeviceModel, DeviceOutput, Expected, Prepared, ResponseError},
    device::{Device, DeviceError, kernels, streams::Compute},
    inference::{Code, DataType, Shape},
    memory::BufferPool,
};

/// The kernels of a stage, in the order in which they run.
fn kernels_of(stage: &Stage, forms: &[Form]) -> Option<Vec<String>> {
    let from = forms.get(*stage.inputs.first()?)?.datatype;
    let of_size = |name: &str| Some(format!("{name}_{}", from.size()?));
    Some(match &stage.work {
        Work::Image { datatype, .. } => vec![format!("image_{}", suffix(*datatype))],
        Work::Cast { to, .. } if from == DataType::Fp32 => vec![format!("narrow_{}", suffix(*to))],
        Work::Cast { .. } => vec![format!("widen_{}", suffix(from))],
        Work::Softmax => vec!["softmax".to_owned()],
        Work::LogSoftmax => vec!["log_softmax".to_owned()],
        Work::TopK { .. } => vec!["top_k".to_owned()],
        Work::Argmax => vec!["argmax".to_owned()],
        Work::Pad { .. } if stage.outputs.len() > 1 => {
            vec![of_size("pad")?, "pad_mask".to_owned()]
        }
        Work::Pad { .. } => vec![of_size("pad")?],
        Work::Unpad => vec![of_size("unpad")?],
        Work::Gather => vec!["check_indices".to_owned(), of_size("take")?],
        Work::Nms { .. } => ["top_k", "nms", "nms_results"].map(str::to_owned).to_vec(),
    })
}

/// The input of a stage whose content decides what its rows become.
fn decisive_input(stage: &Stage) -> Option<Slot> {
    match stage.work {
        Work::Unpad => stage.inputs.get(1).copied(),
        _ => stage.inputs.first().copied().filter(|_| stage.work.decodes()),
    }
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
    /// Those of each stage.
    kernels: Vec<Vec<String>>,
    /// The inputs whose content decides what their rows become.
    decisive: Vec<usize>,
}

/// Of how many entries each row has its choice, for each stage that gathers.
struct Entries(Vec<usize>);

/// What `check_indices` notes down of a row: a place, negative if there is no fault, and an index.
const NOTE_BYTES: usize = 2 * size_of::<i64>();

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
        let kernels = plan.stages.iter().map(|stage| kernels_of(stage, &plan.forms));
        let kernels = kernels.collect::<Option<_>>()?;
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
        let mut decisive: Vec<Slot> = plan.stages.iter().filter_map(decisive_input).collect();
        decisive.sort_unstable();
        decisive.dedup();
        // What one step decodes, another would have to decode in another way.
        let is_shared = |slot: &Slot| {
            let is_file = plan.forms.get(*slot).is_some_and(|it| it.datatype == DataType::Bytes);
            is_file && plan.stages.iter().filter(|it| it.inputs.contains(slot)).count() > 1
        };
        // What is only known on the device cannot decide of shapes.
        if decisive.iter().any(|slot| is_shared(slot) || made.contains(slot)) {
            return None;
        }
        let places = places.collect::<Option<_>>()?;
        Some(Self { places, kernels, decisive, chain: chain.clone() })
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
        let of_stage = |names: &Vec<String>| names.iter().map(load).collect();
        let kernels = this.kernels.iter().map(of_stage).collect::<Result<_, _>>()?;
        Ok(Box::new(OnDevice { launches: this.clone(), kernels }))
    }
}

impl DeviceModel for Launches {
    fn prepared(&self) -> &[usize] {
        &self.decisive
    }

    fn takes_resident(&self) -> bool {
        self.chain.plan.stages.iter().all(|stage| stage.work != Work::Unpad)
    }

    fn prepare(
        &self,
        input: usize,
        rows: u32,
        data: Bytes,
        pool: &BufferPool,
    ) -> Result<Prepared, ResponseError> {
        let Plan { stages, forms, .. } = &self.chain.plan;
        let stage = stages.iter().find(|stage| decisive_input(stage) == Some(input));
        let Some((stage, form)) = stage.zip(forms.get(input)) else {
            return Ok(Prepared { data, becomes: Shape::default() });
        };
        let rows = if self.chain.has_batch { rows as usize } else { 1 };
        let ready = match stage.work {
            Work::Unpad => Unpadding::common(&indices(&data, form.datatype))
                .map(|length| Prepared { data, becomes: Shape::from([length]) })
                .map_err(|(row, told)| Fault::Row(row, told)),
            _ => ready::pictures(stage, rows, &data, pool),
        };
        ready.map_err(|fault| RunError::of(fault, &stage.label).into())
    }

    fn fault(
        &self,
        batch: &Expected,
        rows: Range<u32>,
        returned: &[Option<Bytes>],
    ) -> Option<ResponseError> {
        let Loaded { plan, results, has_batch } = &*self.chain;
        let entries = batch.own.as_ref()?.downcast_ref::<Entries>()?;
        let notes = returned.get(results.len()..)?.iter().zip(&entries.0);
        let gathers = plan.stages.iter().filter(|stage| matches!(stage.work, Work::Gather));
        let rows = if *has_batch { rows.start as usize..rows.end as usize } else { 0..1 };
        gathers.zip(notes).find_map(|(stage, (note, &count))| {
            let of_rows = rows.start * NOTE_BYTES..rows.end * NOTE_BYTES;
            let faults = note.as_ref()?.get(of_rows)?.chunks_exact(NOTE_BYTES).enumerate();
            let mut faults = faults.map(|(row, note)| (row, pod_read_unaligned::<[i64; 2]>(note)));
            let (row, [_, index]) = faults.find(|(_, [place, _])| *place >= 0)?;
            let fault = Fault::Row(row, Gathering::fault(count, index));
            Some(RunError::of(fault, &stage.label).into())
        })
    }

    fn lay_out(&self, given: &Batch<'_>) -> Result<DeviceBatch, ResponseError> {
        self.lay(given).map_err(|fault| ResponseError {
            // A chain that can only fail as a whole takes batches on the processors, and fails so there.
            code: if self.chain.can_fail() { Code::InvalidArgument } else { Code::Internal },
            message: fault,
        })
    }
}

impl Launches {
    fn lay(&self, given: &Batch<'_>) -> Result<DeviceBatch, String> {
        let Loaded { plan, results, has_batch } = &*self.chain;
        let rows = if *has_batch { given.rows as usize } else { 1 };
        let mut dims: Vec<Shape> = vec![Shape::default(); plan.forms.len()];
        let mut batch = DeviceBatch::default();
        for (tensor, place) in given.inputs.iter().flatten().zip(&mut dims) {
            *place = tensor.shape.iter().skip(usize::from(*has_batch)).copied().collect();
            batch.inputs.push(tensor.data.clone());
        }
        let (mut between, mut entries) = (Vec::new(), Vec::new());
        for stage in &plan.stages {
            let decisive = decisive_input(stage);
            let ready = decisive
                .and_then(|slot| Some((batch.inputs.get(slot)?, plan.forms.get(slot)?.datatype)));
            let given: Vec<&Shape> =
                stage.inputs.iter().filter_map(|&slot| dims.get(slot)).collect();
            let made = make(stage, &given, rows, ready);
            let made = made.map_err(|reason| format!("{}: {reason}", stage.label))?;
            batch.numbers.extend(made.numbers);
            batch.inputs.extend(made.tables);
            between.extend(made.scratch);
            entries.extend(made.entries);
            for (&slot, made) in stage.outputs.iter().zip(made.dims) {
                if let Some(place) = dims.get_mut(slot) {
                    *place = made;
                }
            }
        }
        let sized = |slot: Slot| {
            let form = plan.forms.get(slot).zip(dims.get(slot));
            let (form, dims) = form.ok_or("a tensor is missing")?;
            let bytes = bytes(dims, form.datatype, rows);
            bytes.map(|bytes| (dims, bytes)).ok_or_else(|| too_many(dims))
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
        batch.scratch.extend(between);
        batch.notes = vec![rows * NOTE_BYTES; entries.len()];
        batch.own = (!entries.is_empty()).then(|| Arc::new(Entries(entries)) as _);
        Ok(batch)
    }
}
