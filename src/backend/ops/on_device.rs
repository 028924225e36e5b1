//! A chain as launches on a device: each stage is one of the kernels, and what lies between stages
//! stays on the device.
//!
//! Stages that look into the content of requests to know what to do, or into files, do not run there.

use std::sync::Arc;

use bytemuck::bytes_of;
use bytes::Bytes;

use super::{
    Loaded,
    images::picture_dims,
    plan::{Slot, Stage, Work},
    run::columns,
};
use crate::{
    backend::{BackendError, Batch, DeviceBatch, DeviceModel, DeviceOutput},
    device::{
        Argument, Device, DeviceError, DeviceSlice, Kernel, Launch, Scalar, Stream,
        kernels::{
            self, Grid, PLACES_MAX, cast,
            image::{self, Picture},
            softmax, top_k,
        },
        streams::{Compute, PlacedBatch},
    },
    inference::{DataType, Shape},
};

/// The kernel that a stage is; `None` if it cannot run on a device.
fn kernel(stage: &Stage, from: DataType) -> Option<String> {
    Some(match &stage.work {
        Work::Image { encoded: None, datatype, .. } => format!("image_{}", suffix(*datatype)),
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
        Some(Self { places: places.collect::<Option<_>>()?, kernels, chain: chain.clone() })
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

/// What a stage makes of a batch.
struct Made {
    dims: Vec<Shape>,
    /// What its launch depends on.
    numbers: Vec<u64>,
    /// What it reads beside its tensors.
    tables: Vec<Bytes>,
}

impl DeviceModel for Launches {
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
            let first = stage.inputs.first().and_then(|&slot| dims.get(slot)).cloned();
            let made = make(&stage.work, &first.unwrap_or_default(), rows).map_err(fault)?;
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

fn bytes(dims: &Shape, datatype: DataType, rows: usize) -> Option<usize> {
    let count = usize::try_from(dims.element_count()?).ok()?;
    count.checked_mul(rows)?.checked_mul(datatype.size()?)
}

/// What a stage makes of rows whose first tensor has these dimensions.
fn make(work: &Work, given: &Shape, rows: usize) -> Result<Made, String> {
    let plain = |dims, numbers| Made { dims, numbers, tables: Vec::new() };
    Ok(match work {
        Work::Cast { .. } => plain(vec![given.clone()], Vec::new()),
        Work::Softmax | Work::LogSoftmax => {
            plain(vec![given.clone()], vec![columns(given)? as u64])
        }
        Work::TopK { k } => {
            let columns = columns(given)?;
            if *k > columns {
                return Err(format!("expected {k} elements or more, got {columns}"));
            }
            let mut dims = given.clone();
            if let Some(last) = dims.last_mut() {
                *last = *k as i64;
            }
            plain(vec![dims.clone(), dims], vec![columns as u64])
        }
        Work::Argmax => {
            let columns = columns(given)?;
            let mut dims: Shape = given.iter().rev().skip(1).rev().copied().collect();
            if dims.is_empty() {
                dims = Shape::from([1]);
            }
            plain(vec![dims], vec![columns as u64])
        }
        Work::Image { geometry, look, .. } => {
            let &[height, width, _] = &**given else {
                return Err(format!("expected pixels, got {given}"));
            };
            let side = |side: i64| i32::try_from(side).unwrap_or(i32::MAX);
            let (picture, size) = geometry
                .apply(side(width), side(height), look.channels as i32)
                .map_err(|error| error.to_string())?;
            let target = look.target(size);
            let pictures = vec![picture; rows];
            Made {
                dims: vec![picture_dims(look, size)],
                numbers: size.map(|side| u64::from(side.unsigned_abs())).to_vec(),
                tables: vec![
                    Bytes::copy_from_slice(bytemuck::cast_slice(&pictures)),
                    Bytes::copy_from_slice(bytes_of(&target)),
                ],
            }
        }
        Work::Pad { .. } | Work::Gather | Work::Nms { .. } => {
            return Err("does not run on a device".to_owned());
        }
    })
}

/// A chain on one device.
struct OnDevice {
    launches: Arc<Launches>,
    kernels: Vec<Kernel>,
}

/// A batch during its launches.
struct Running<'a> {
    launches: &'a Launches,
    batch: &'a PlacedBatch<'a>,
    numbers: std::slice::Iter<'a, u64>,
    /// What stages read beside their tensors.
    tables: std::slice::Iter<'a, DeviceSlice>,
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let chain = &self.launches.chain;
        let of_requests =
            self.launches.places.iter().filter(|place| matches!(place, Place::Input(_))).count();
        let mut running = Running {
            launches: &self.launches,
            batch,
            numbers: batch.numbers.iter(),
            tables: batch.inputs.get(of_requests..).unwrap_or_default().iter(),
        };
        for (stage, kernel) in chain.plan.stages.iter().zip(&self.kernels) {
            running.stage(stage, kernel, stream)?;
        }
        Ok(())
    }
}

impl<'a> Running<'a> {
    fn stage(
        &mut self,
        stage: &Stage,
        kernel: &Kernel,
        stream: &mut dyn Stream,
    ) -> Result<(), DeviceError> {
        let device = kernel.device();
        let missing = || DeviceError::Launch {
            device,
            kernel: kernel.name().to_owned(),
            reason: "a tensor or a number of it is missing".to_owned(),
        };
        let from = stage.inputs.first().and_then(|&slot| self.slice(slot)).ok_or_else(missing)?;
        let mut made = stage.outputs.iter().map(|&slot| self.slice(slot));
        let to = made.next().flatten().ok_or_else(missing)?;
        let also = made.next().flatten();
        drop(made);
        let mut number = || {
            let number = self.numbers.next().and_then(|&number| u32::try_from(number).ok());
            number.ok_or_else(missing)
        };
        if let Work::Image { look, .. } = &stage.work {
            let target = look.target([number()?, number()?].map(u32::cast_signed));
            let tables = self.tables.next().zip(self.tables.next()).ok_or_else(missing)?;
            return pictures(kernel, stream, (from, to), tables, &target);
        }
        let launch = |grid: Grid| {
            let mut launch = kernel.launch(grid.blocks, grid.threads);
            launch.shared_bytes = grid.shared_bytes;
            launch.with(Argument::Read(from.clone())).with(Argument::Write(to.clone()))
        };
        let u32 = |number| Argument::Scalar(Scalar::U32(number));
        let rows_of = |columns: u32| {
            let rows = from.len() / size_of::<f32>() / (columns as usize).max(1);
            u32::try_from(rows).map_err(|_| missing())
        };
        let launch: Launch = match stage.work {
            Work::Cast { scale, zero_point, .. } => {
                // Of the two types the wider is float32.
                let count = (from.len().max(to.len()) / size_of::<f32>()) as u64;
                launch(cast::grid(count))
                    .with(Argument::Scalar(Scalar::U64(count)))
                    .with(Argument::Scalar(Scalar::F32(scale)))
                    .with(Argument::Scalar(Scalar::F32(zero_point)))
            }
            Work::TopK { k } => {
                let (columns, k) = (number()?, u32::try_from(k).map_err(|_| missing())?);
                launch(top_k::grid(rows_of(columns)?, columns, k))
                    .with(Argument::Write(also.ok_or_else(missing)?.clone()))
                    .with(u32(columns))
                    .with(u32(k))
                    .with(u32(top_k::capacity(k)))
            }
            Work::Argmax => {
                let columns = number()?;
                launch(top_k::argmax_grid(rows_of(columns)?, columns)).with(u32(columns))
            }
            _ => {
                let columns = number()?;
                launch(softmax::grid(rows_of(columns)?, columns)).with(u32(columns))
            }
        };
        // Nothing is to be done for rows of no elements.
        if from.is_empty() { Ok(()) } else { stream.launch(launch) }
    }

    fn slice(&self, slot: Slot) -> Option<&'a DeviceSlice> {
        match *self.launches.places.get(slot)? {
            Place::Input(index) => self.batch.inputs.get(index),
            Place::Output(index) => self.batch.outputs.get(index),
            Place::Scratch(index) => self.batch.scratch.get(index),
        }
    }
}

/// Launches for all pictures of a batch, as many in each as a table has places.
fn pictures(
    kernel: &Kernel,
    stream: &mut dyn Stream,
    (from, to): (&DeviceSlice, &DeviceSlice),
    (pictures, target): (&DeviceSlice, &DeviceSlice),
    shape: &image::Target,
) -> Result<(), DeviceError> {
    let rows = pictures.len() / size_of::<Picture>();
    let part = |of: &DeviceSlice, row: usize, count: usize| {
        let each = of.len() / rows.max(1);
        of.slice(row * each..(row + count) * each)
    };
    for first in (0..rows).step_by(PLACES_MAX) {
        let count = PLACES_MAX.min(rows - first);
        let pixels = (first..first + count).map(|row| part(from, row, 1));
        // It is at most the length of a table.
        let grid = image::grid(shape, count as u32);
        let launch = kernel
            .launch(grid.blocks, grid.threads)
            .with(Argument::ReadTable(pixels.collect::<Result<_, _>>()?))
            .with(Argument::Read(part(pictures, first, count)?))
            .with(Argument::Read(target.clone()))
            .with(Argument::Write(part(to, first, count)?));
        stream.launch(launch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        backend::{
            Batch, BatchTensor, Direct, Instance as _, Placement, PlacementDevice,
            ops::{
                Backend as _, Ops,
                tests::{pool, run, source},
            },
        },
        device::{
            Devices,
            host::{HostDevice, HostSettings},
        },
    };

    type Spec<'a> = (&'a str, DataType, &'a [i64]);

    /// What a chain makes of a batch of `rows` rows, on a device and on the processors.
    fn on_both(chain: &str, input: Spec<'_>, outputs: &[Spec<'_>], rows: u32, row: &[u8]) {
        let devices = Devices::new(|| {
            Ok(vec![Arc::new(HostDevice::start(HostSettings::default()).unwrap())])
        });
        let source = source(chain, 8, &[input], outputs);
        let chain = Ops::new(Arc::new(devices)).load(&source).map_err(|error| error.0).unwrap();
        let at = |device| Placement { name: "m_0".into(), device, host_policy: String::new() };
        let instance = chain.on_device(&at(PlacementDevice::Gpu(0))).unwrap();
        let mut device = Direct::of(instance.expect("the chain can run on devices")).unwrap();
        let data: Vec<u8> = row.iter().copied().cycle().take(row.len() * rows as usize).collect();
        let (shape, data) = (Shape::from(input.2).with_batch(rows.into()), Bytes::from(data));
        let expected = run(&source, vec![(shape.clone(), data.clone())]).unwrap();
        let inputs = [Some(BatchTensor { shape, data })];
        let pool = pool();
        // Without the last, which then stays on the device, and with all.
        for wanted_count in [outputs.len() - 1, outputs.len()] {
            let wanted: Vec<bool> = (0..outputs.len()).map(|index| index < wanted_count).collect();
            let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool: &pool, places: None };
            let made = device.execute(&batch).unwrap();
            for ((made, (shape, data)), wanted) in made.iter().zip(&expected).zip(wanted) {
                let made = made.as_ref().map(|made| (&made.shape, &made.data));
                assert_eq!(made, wanted.then_some((shape, data)));
            }
        }
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_chain_gives_the_same_on_a_device(
            rows in 1u32..8,
            values in proptest::collection::vec(-9.0f32..9.0, 1..200),
        ) {
            let (columns, row) = (values.len() as i64, floats(&values));
            let input: Spec<'_> = ("X", DataType::Fp32, &[columns]);
            let whole: &[i64] = &[columns];
            on_both(r#"[{"op": "softmax"}]"#, input, &[("Y", DataType::Fp32, whole)], rows, &row);
            on_both(
                r#"[{"op": "log_softmax", "output": "P"}, {"op": "top_k", "k": 1, "output": ["V", "I"]}]"#,
                input,
                &[("V", DataType::Fp32, &[1]), ("I", DataType::Int64, &[1])],
                rows,
                &row,
            );
            on_both(
                r#"[{"op": "cast", "to": "INT8", "scale": 0.1, "output": "Q"},
                    {"op": "cast", "to": "FP32", "scale": 0.1, "output": "D"},
                    {"op": "argmax", "output": "A"}]"#,
                input,
                &[("A", DataType::Int64, &[1]), ("D", DataType::Fp32, whole)],
                rows,
                &row,
            );
        }
    }

    #[test]
    fn pictures_are_made_ready_on_a_device() {
        let chain = r#"[{"op": "resize", "size": [2, 2]}, {"op": "normalize", "scale": 0.5},
            {"op": "layout", "to": "CHW"}]"#;
        let pixels: Vec<u8> = (0..4 * 6 * 3).collect();
        let output: Spec<'_> = ("Y", DataType::Fp32, &[3, 2, 2]);
        on_both(chain, ("P", DataType::Uint8, &[4, 6, 3]), &[output], 3, &pixels);
    }

    #[test]
    fn what_looks_into_requests_stays_on_the_processors() {
        let chain = r#"[{"op": "decode"}, {"op": "resize", "size": [2, 2]}]"#;
        let files: Spec<'_> = ("F", DataType::Bytes, &[1]);
        let source = source(chain, 8, &[files], &[("Y", DataType::Uint8, &[2, 2, 3])]);
        let chain = Ops::new(Arc::new(Devices::none("not needed"))).load(&source).unwrap();
        let device = PlacementDevice::Gpu(0);
        let placement = Placement { name: "m_0".into(), device, host_policy: String::new() };
        assert!(chain.on_device(&placement).unwrap().is_none());
    }
}
