//! The launches of a batch, put onto a stream.

mod selection;

use std::sync::Arc;

use super::{
    super::{
        picture::Look,
        plan::{Form, Slot, Stage, Work},
        run::element_bytes,
    },
    Launches, Place,
};
use crate::device::{
    Argument, DeviceError, DeviceSlice, Kernel, Launch, Scalar, Stream,
    kernels::{Grid, PLACES_MAX, cast, image, pad, softmax, top_k},
    streams::{Compute, PlacedBatch},
};

/// A chain on one device.
pub(super) struct OnDevice {
    pub launches: Arc<Launches>,
    /// Those of each stage.
    pub kernels: Vec<Vec<Kernel>>,
}

/// A batch during its launches.
struct Running<'a> {
    launches: &'a Launches,
    batch: &'a PlacedBatch<'a>,
    rows: usize,
    numbers: std::slice::Iter<'a, u64>,
    /// What stages read beside their tensors.
    tables: std::slice::Iter<'a, DeviceSlice>,
    /// What lies between the launches of a stage.
    between: std::slice::Iter<'a, DeviceSlice>,
    /// What stages note down.
    notes: std::slice::Iter<'a, DeviceSlice>,
}

/// A stage during its launches: its kernels, and where its tensors are.
struct AtWork<'a> {
    kernels: &'a [Kernel],
    inputs: Vec<(&'a Form, &'a DeviceSlice)>,
    outputs: Vec<&'a DeviceSlice>,
}

/// Why a stage was not launched.
enum Trouble {
    /// A tensor or a number of it is not there.
    Missing,
    Device(DeviceError),
}

impl From<DeviceError> for Trouble {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl<'a> AtWork<'a> {
    fn kernel(&self, index: usize) -> Result<&'a Kernel, Trouble> {
        self.kernels.get(index).ok_or(Trouble::Missing)
    }

    fn input(&self, index: usize) -> Result<(&'a Form, &'a DeviceSlice), Trouble> {
        self.inputs.get(index).copied().ok_or(Trouble::Missing)
    }

    fn output(&self, index: usize) -> Result<&'a DeviceSlice, Trouble> {
        self.outputs.get(index).copied().ok_or(Trouble::Missing)
    }
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let Launches { places, chain, .. } = &*self.launches;
        let count = |of: fn(&&Place) -> bool| places.iter().filter(of).count();
        let of_requests = count(|place| matches!(place, Place::Input(_)));
        let of_slots = count(|place| matches!(place, Place::Scratch(_)));
        let mut running = Running {
            launches: &self.launches,
            batch,
            rows: if chain.has_batch { batch.rows as usize } else { 1 },
            numbers: batch.numbers.iter(),
            tables: batch.inputs.get(of_requests..).unwrap_or_default().iter(),
            between: batch.scratch.get(of_slots..).unwrap_or_default().iter(),
            notes: batch.outputs.get(chain.results.len()..).unwrap_or_default().iter(),
        };
        for (stage, kernels) in chain.plan.stages.iter().zip(&self.kernels) {
            running.stage(stage, kernels, stream)?;
        }
        Ok(())
    }
}

impl<'a> Running<'a> {
    fn stage(
        &mut self,
        stage: &Stage,
        kernels: &[Kernel],
        stream: &mut dyn Stream,
    ) -> Result<(), DeviceError> {
        let launched = self.at_work(stage, kernels).and_then(|at| match &stage.work {
            Work::Image { look, .. } => self.pictures(&at, look, stage.work.decodes(), stream),
            Work::Pad { value, .. } => self.pad(&at, *value, stream),
            Work::Unpad => self.unpad(&at, stream),
            Work::Gather => self.gather(&at, stream),
            Work::Nms { rule, .. } => self.nms(&at, rule, stream),
            work => self.row_by_row(&at, work, stream),
        });
        launched.map_err(|trouble| match trouble {
            Trouble::Device(error) => error,
            Trouble::Missing => DeviceError::Launch {
                device: kernels.first().map_or(0, Kernel::device),
                kernel: kernels.first().map(|it| it.name().to_owned()).unwrap_or_default(),
                reason: "a tensor or a number of it is missing".to_owned(),
            },
        })
    }

    fn at_work<'b>(&self, stage: &Stage, kernels: &'b [Kernel]) -> Result<AtWork<'b>, Trouble>
    where
        'a: 'b,
    {
        let forms = &self.launches.chain.plan.forms;
        let inputs = stage.inputs.iter().map(|&slot| Some((forms.get(slot)?, self.slice(slot)?)));
        let outputs = stage.outputs.iter().map(|&slot| self.slice(slot));
        let tensors = inputs.collect::<Option<_>>().zip(outputs.collect::<Option<_>>());
        let (inputs, outputs) = tensors.ok_or(Trouble::Missing)?;
        Ok(AtWork { kernels, inputs, outputs })
    }

    fn slice(&self, slot: Slot) -> Option<&'a DeviceSlice> {
        match *self.launches.places.get(slot)? {
            Place::Input(index) => self.batch.inputs.get(index),
            Place::Output(index) => self.batch.outputs.get(index),
            Place::Scratch(index) => self.batch.scratch.get(index),
        }
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Trouble> {
        let number = self.numbers.next().and_then(|&number| T::try_from(number).ok());
        number.ok_or(Trouble::Missing)
    }

    fn table(&mut self) -> Result<&'a DeviceSlice, Trouble> {
        self.tables.next().ok_or(Trouble::Missing)
    }

    /// Launches for all pictures of a batch, as many in each as a table has places.
    fn pictures(
        &mut self,
        at: &AtWork<'_>,
        look: &Look,
        decodes: bool,
        stream: &mut dyn Stream,
    ) -> Result<(), Trouble> {
        let target = look.target([self.number()?, self.number()?]);
        let (pictures, look) = (self.table()?, self.table()?);
        let (rows, (_, from), to) = (self.rows, at.input(0)?, at.output(0)?);
        let mut pixels = Vec::with_capacity(rows);
        for row in 0..rows {
            pixels.push(match decodes {
                false => part(from, rows, row, 1)?,
                true => from.slice(self.number()?..self.number()?)?,
            });
        }
        for (number, pixels) in pixels.chunks(PLACES_MAX).enumerate() {
            let (first, count) = (number * PLACES_MAX, pixels.len());
            // It is at most the length of a table.
            let launch = begin(at.kernel(0)?, image::grid(&target, count as u32))
                .with(Argument::ReadTable(pixels.to_vec()))
                .with(Argument::Read(part(pictures, rows, first, count)?))
                .with(read(look))
                .with(Argument::Write(part(to, rows, first, count)?));
            stream.launch(launch)?;
        }
        Ok(())
    }

    fn pad(&mut self, at: &AtWork<'_>, value: f64, stream: &mut dyn Stream) -> Result<(), Trouble> {
        let (form, from) = at.input(0)?;
        let bits = u64::from_le_bytes(element_bytes(form.datatype, value));
        let fill = match form.datatype.size() {
            Some(8) => Scalar::U64(bits),
            // The lower bytes are those of a narrower type.
            _ => Scalar::U32(bits as u32),
        };
        let fill = Argument::Scalar(fill);
        self.sequences(at.kernel(0)?, Some(read(from)), at.output(0)?, Some(fill), stream)?;
        match at.outputs.get(1) {
            Some(mask) => self.sequences(at.kernel(1)?, None, mask, None, stream),
            None => Ok(()),
        }
    }

    /// Launches that write a row for each sequence, as many in each as it can have.
    fn sequences(
        &mut self,
        kernel: &Kernel,
        from: Option<Argument>,
        to: &DeviceSlice,
        fill: Option<Argument>,
        stream: &mut dyn Stream,
    ) -> Result<(), Trouble> {
        let (length, offsets) = (self.number()?, self.table()?);
        for (first, count) in parts_of(self.rows).filter(|_| !to.is_empty()) {
            let mut launch = begin(kernel, pad::grid(count as u32, length));
            launch.arguments.extend(from.clone());
            launch.arguments.push(Argument::Read(bounds(offsets, first, count)?));
            launch.arguments.push(Argument::Write(part(to, self.rows, first, count)?));
            launch.arguments.push(u64(length));
            launch.arguments.extend(fill.clone());
            stream.launch(launch)?;
        }
        Ok(())
    }

    fn unpad(&mut self, at: &AtWork<'_>, stream: &mut dyn Stream) -> Result<(), Trouble> {
        let ((_, from), to) = (at.input(0)?, at.output(0)?);
        let (length, offsets) = (self.number()?, self.table()?);
        for (first, count) in parts_of(self.rows).filter(|_| !to.is_empty()) {
            let launch = begin(at.kernel(0)?, pad::grid(count as u32, length))
                .with(Argument::Read(part(from, self.rows, first, count)?))
                .with(Argument::Read(bounds(offsets, first, count)?))
                .with(write(to))
                .with(u64(length));
            stream.launch(launch)?;
        }
        Ok(())
    }

    /// What is done with each element, or with the last dimension.
    fn row_by_row(
        &mut self,
        at: &AtWork<'_>,
        work: &Work,
        stream: &mut dyn Stream,
    ) -> Result<(), Trouble> {
        let (kernel, (_, from), to) = (at.kernel(0)?, at.input(0)?, at.output(0)?);
        let launch = |grid: Grid| begin(kernel, grid).with(read(from)).with(write(to));
        let rows_of = |columns: u32| {
            let rows = from.len() / size_of::<f32>() / (columns as usize).max(1);
            u32::try_from(rows).map_err(|_| Trouble::Missing)
        };
        let launch = match *work {
            Work::Cast { scale, zero_point, .. } => {
                // Of the two types the wider is float32.
                let count = (from.len().max(to.len()) / size_of::<f32>()) as u64;
                launch(cast::grid(count)).with(u64(count)).with(f32(scale)).with(f32(zero_point))
            }
            Work::TopK { k } => {
                let columns = self.number()?;
                let k = u32::try_from(k).map_err(|_| Trouble::Missing)?;
                let arguments =
                    [write(at.output(1)?), u32(columns), u32(k), u32(top_k::capacity(k))];
                let mut launch = launch(top_k::grid(rows_of(columns)?, columns, k));
                launch.arguments.extend(arguments);
                launch
            }
            Work::Argmax => {
                let columns = self.number()?;
                launch(top_k::argmax_grid(rows_of(columns)?, columns)).with(u32(columns))
            }
            _ => {
                let columns = self.number()?;
                launch(softmax::grid(rows_of(columns)?, columns)).with(u32(columns))
            }
        };
        // Nothing is to be done for rows of no elements.
        if from.is_empty() {
            return Ok(());
        }
        Ok(stream.launch(launch)?)
    }
}

fn begin(kernel: &Kernel, grid: Grid) -> Launch {
    let mut launch = kernel.launch(grid.blocks, grid.threads);
    launch.shared_bytes = grid.shared_bytes;
    launch
}

fn read(slice: &DeviceSlice) -> Argument {
    Argument::Read(slice.clone())
}

fn write(slice: &DeviceSlice) -> Argument {
    Argument::Write(slice.clone())
}

fn u32(number: u32) -> Argument {
    Argument::Scalar(Scalar::U32(number))
}

fn u64(number: u64) -> Argument {
    Argument::Scalar(Scalar::U64(number))
}

fn f32(number: f32) -> Argument {
    Argument::Scalar(Scalar::F32(number))
}

/// As many rows as a launch on sequences can have: the first, and how many.
fn parts_of(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(pad::ROWS_MAX).map(move |first| (first, pad::ROWS_MAX.min(rows - first)))
}

/// Where the sequences of some rows begin and end.
fn bounds(offsets: &DeviceSlice, first: usize, count: usize) -> Result<DeviceSlice, DeviceError> {
    let offset = size_of::<u64>();
    offsets.slice(first * offset..(first + count + 1) * offset)
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
