//! The launches of a batch, put onto a stream.

use std::sync::Arc;

use super::{
    super::plan::{Slot, Stage, Work},
    Launches, Place,
};
use crate::device::{
    Argument, DeviceError, DeviceSlice, Kernel, Launch, Scalar, Stream,
    kernels::{
        Grid, PLACES_MAX, cast,
        image::{self, Picture},
        softmax, top_k,
    },
    streams::{Compute, PlacedBatch},
};

/// A chain on one device.
pub(super) struct OnDevice {
    pub launches: Arc<Launches>,
    pub kernels: Vec<Kernel>,
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
            let rows = tables.0.len() / size_of::<Picture>();
            let pixels = match stage.work.decodes() {
                false => (0..rows).map(|row| part(from, rows, row, 1)).collect::<Result<_, _>>()?,
                true => {
                    let mut place = || {
                        let place = self.numbers.next().and_then(|&it| usize::try_from(it).ok());
                        place.ok_or_else(missing)
                    };
                    (0..rows)
                        .map(|_| from.slice(place()?..place()?))
                        .collect::<Result<Vec<_>, _>>()?
                }
            };
            return pictures(kernel, stream, (&pixels, to), tables, &target);
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

/// Some of the rows of a tensor.
fn part(
    of: &DeviceSlice,
    rows: usize,
    first: usize,
    count: usize,
) -> Result<DeviceSlice, DeviceError> {
    let each = of.len() / rows.max(1);
    of.slice(first * each..(first + count) * each)
}

/// Launches for all pictures of a batch, as many in each as a table has places.
fn pictures(
    kernel: &Kernel,
    stream: &mut dyn Stream,
    (pixels, to): (&[DeviceSlice], &DeviceSlice),
    (pictures, target): (&DeviceSlice, &DeviceSlice),
    shape: &image::Target,
) -> Result<(), DeviceError> {
    let rows = pixels.len();
    for (number, pixels) in pixels.chunks(PLACES_MAX).enumerate() {
        let (first, count) = (number * PLACES_MAX, pixels.len());
        // It is at most the length of a table.
        let grid = image::grid(shape, count as u32);
        let launch = kernel
            .launch(grid.blocks, grid.threads)
            .with(Argument::ReadTable(pixels.to_vec()))
            .with(Argument::Read(part(pictures, rows, first, count)?))
            .with(Argument::Read(target.clone()))
            .with(Argument::Write(part(to, rows, first, count)?));
        stream.launch(launch)?;
    }
    Ok(())
}
