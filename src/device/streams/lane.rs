use std::{any::Any, ops::Range, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    job::{BatchParts, Compute, OutputPart, PlacedBatch},
    resident::{KeptMemory, KeptOutput, Resident},
    worker::{Runner, Worker},
};
use crate::device::{
    Device, DeviceError, DeviceMemory, DeviceSlice, Event, Graph, HostTarget, Landing, Stream,
    Urgency,
};

/// Tensors begin at multiples of this, as vector loads of kernels and libraries like it.
pub(super) const ALIGNMENT: usize = 256;
/// What outputs hold before a run: a model that leaves some of them unwritten must not show what
/// another client's batch left there. It reads as NaN.
const UNWRITTEN: u8 = 0xff;
/// Graphs that a lane keeps.
const GRAPHS_MAX: usize = 16;

/// An instance of a model on a device, with its lanes.
pub(super) struct Instance {
    pub device: usize,
    pub worker: Worker,
    pub lanes: Vec<Lane>,
}

/// The memory and the copy streams of one batch at a time.
pub(super) struct Lane {
    copies_in: Box<dyn Stream>,
    copies_out: Box<dyn Stream>,
    /// The inputs are there.
    there: Event,
    /// The model has run.
    computed: Event,
    inputs: Option<DeviceMemory>,
    outputs: Option<DeviceMemory>,
    scratch: Option<DeviceMemory>,
    /// For the tables of launches that bring what lies on the device.
    tables: Option<DeviceMemory>,
    graphs: Vec<(Layout, Graph)>,
    /// Whether something of the model cannot be captured.
    refuses_graphs: bool,
    pub in_use: bool,
}

/// The tensors of a batch on its way.
pub(super) struct Cargo {
    inputs: Vec<Bytes>,
    outputs: Vec<Output>,
    scratch: Vec<usize>,
    /// What of it lies on the device, as it was asked for.
    resident: Option<Arc<Resident>>,
    placed: Placed,
}

/// An output of a batch on its way.
struct Output {
    /// Its size on the device.
    bytes: usize,
    /// Where it is copied to, unless it stays.
    comes: Option<(Landing, HostTarget)>,
}

impl From<OutputPart> for Output {
    fn from(part: OutputPart) -> Self {
        match part {
            OutputPart::Comes(buffer) => {
                Self { bytes: buffer.len(), comes: Some(Landing::new(buffer)) }
            }
            OutputPart::Stays(bytes) => Self { bytes, comes: None },
        }
    }
}

/// A batch in a lane's memory.
#[derive(Clone)]
pub(super) struct Placed {
    rows: u32,
    inputs: Vec<DeviceSlice>,
    outputs: Vec<DeviceSlice>,
    scratch: Vec<DeviceSlice>,
    numbers: Vec<u64>,
    own: Option<Arc<dyn Any + Send + Sync>>,
    resident: Option<Arc<Resident>>,
    /// For the tables of its launches.
    table: Option<DeviceSlice>,
    /// The outputs that outlive the batch.
    kept: Vec<(usize, DeviceSlice)>,
}

impl Placed {
    /// Has the model `run` between what brings inputs from elsewhere on the device and what takes
    /// outputs there.
    pub fn run(
        &self,
        compute: &mut dyn Stream,
        run: impl FnOnce(&mut dyn Stream) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Some((resident, table)) = self.resident.as_ref().zip(self.table.as_ref()) else {
            return run(compute);
        };
        resident.bring(compute, &self.inputs, table)?;
        run(compute)?;
        resident.take_out(compute, &self.outputs, table)?;
        resident.take_whole(compute, &self.outputs, &self.kept)
    }
}

/// What a graph holds good for: so many rows and these numbers, with tensors in these places of a
/// lane's memory.
#[derive(PartialEq)]
struct Layout {
    rows: u32,
    numbers: Vec<u64>,
    ranges: SmallVec<[Range<usize>; 4]>,
}

impl Cargo {
    fn layout(&self) -> Layout {
        let Placed { rows, inputs, outputs, scratch, numbers, .. } = &self.placed;
        let tensors = inputs.iter().chain(outputs).chain(scratch);
        Layout {
            rows: *rows,
            numbers: numbers.clone(),
            ranges: tensors.map(DeviceSlice::range).collect(),
        }
    }

    pub fn new(parts: BatchParts) -> Self {
        let BatchParts { rows, inputs, outputs, scratch, numbers, own, resident } = parts;
        let outputs = outputs.into_iter().map(Output::from).collect();
        let placed = Placed {
            rows,
            inputs: Vec::new(),
            outputs: Vec::new(),
            scratch: Vec::new(),
            numbers,
            own,
            resident: None,
            table: None,
            kept: Vec::new(),
        };
        Self { inputs, outputs, scratch, resident: resident.map(Arc::new), placed }
    }

    /// The batch in its lane's memory.
    pub fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Bytes that are copied to the device, and bytes that are copied from it.
    pub fn bytes(&self) -> (usize, usize) {
        let given = self.inputs.iter().map(Bytes::len);
        let beside = self.resident.iter().flat_map(|it| it.coming()).map(|it| it.bytes.len());
        let coming = self.outputs.iter().filter(|output| output.comes.is_some());
        (given.chain(beside).sum(), coming.map(|output| output.bytes).sum())
    }

    /// What is copied from the host, with where in which input it begins.
    fn coming(&self) -> impl Iterator<Item = (usize, usize, &Bytes)> {
        let given = self.inputs.iter().enumerate().map(|(index, bytes)| (index, 0, bytes));
        let beside = self.resident.iter().flat_map(|it| it.coming());
        given.chain(beside.map(|it| (it.index, it.start, &it.bytes)))
    }

    /// The sizes of all inputs on the device.
    fn input_sizes(&self) -> Vec<usize> {
        let resident = self.resident.as_ref();
        let size = |(index, input): (usize, &Bytes)| {
            resident.and_then(|it| it.input_bytes(index)).unwrap_or(input.len())
        };
        self.inputs.iter().enumerate().map(size).collect()
    }

    /// Takes the memory of the outputs that outlive the batch.
    pub fn take_kept(&mut self) -> Vec<(usize, DeviceSlice)> {
        std::mem::take(&mut self.placed.kept)
    }

    /// The outputs that came, when no copy into them is under way any more.
    pub fn finish(self) -> Option<Vec<Option<Bytes>>> {
        let come = self.outputs.into_iter().map(|output| {
            let Some((landing, target)) = output.comes else { return Some(None) };
            drop(target);
            landing.finish().map(Some)
        });
        come.collect()
    }
}

impl Lane {
    pub fn open(device: &dyn Device) -> Result<Self, DeviceError> {
        Ok(Self {
            copies_in: device.stream(Urgency::Urgent)?,
            copies_out: device.stream(Urgency::Urgent)?,
            there: device.event()?,
            computed: device.event()?,
            inputs: None,
            outputs: None,
            scratch: None,
            tables: None,
            graphs: Vec::new(),
            refuses_graphs: false,
            in_use: false,
        })
    }

    /// Gives its memory back.
    pub fn reclaim(&mut self) {
        (self.inputs, self.outputs) = (None, None);
        (self.scratch, self.tables) = (None, None);
        self.graphs.clear();
    }

    /// Gives the batch its places in the lane's memory, more of which is taken if it is too small.
    pub fn prepare(&mut self, device: &dyn Device, cargo: &mut Cargo) -> Result<(), DeviceError> {
        let inputs = cargo.input_sizes();
        let mut outputs: Vec<usize> = cargo.outputs.iter().map(|output| output.bytes).collect();
        let mut resident = cargo.resident.clone();
        let (mut kept, mut elsewhere) = (Vec::new(), Vec::new());
        for KeptOutput { index, memory } in cargo.resident.iter().flat_map(|it| it.kept()) {
            let Some(bytes) = outputs.get_mut(*index) else { continue };
            match memory {
                KeptMemory::Whole { is_written_there } => {
                    let memory = device.allocate(*bytes)?.whole();
                    kept.push((*index, memory.clone()));
                    if *is_written_there {
                        *bytes = 0;
                        elsewhere.push((*index, memory));
                    }
                }
                KeptMemory::Apart(parts) => {
                    let place = |part: &Range<usize>| -> Result<_, DeviceError> {
                        Ok((part.start, device.allocate(part.len())?.whole()))
                    };
                    let places: Vec<_> = parts.iter().map(place).collect::<Result<_, _>>()?;
                    kept.extend(places.iter().map(|(_, memory)| (*index, memory.clone())));
                    if let Some(resident) = &mut resident {
                        Arc::make_mut(resident).add_output(*index, places);
                    }
                }
            }
        }
        let tables: Vec<usize> = resident.iter().map(|resident| resident.table_bytes()).collect();
        let graphs = &mut self.graphs;
        let mut inputs = place(&mut self.inputs, &inputs, device, graphs)?;
        let mut outputs = place(&mut self.outputs, &outputs, device, graphs)?;
        let scratch = place(&mut self.scratch, &cargo.scratch, device, graphs)?;
        // No graph names these.
        let table = place(&mut self.tables, &tables, device, &mut Vec::new())?.pop();
        let lying = resident.iter().flat_map(|it| it.lying());
        put(&mut inputs, lying.cloned());
        put(&mut outputs, elsewhere);
        // Not before: a batch that finds no memory for all of this holds none of it.
        let placed = &mut cargo.placed;
        (placed.inputs, placed.outputs, placed.scratch) = (inputs, outputs, scratch);
        (placed.table, placed.kept, placed.resident) = (table, kept, resident);
        Ok(())
    }

    /// Copies a range of the inputs, which come one behind the other.
    pub fn copy_in(&mut self, cargo: &Cargo, range: &Range<usize>) -> Result<(), DeviceError> {
        let mut start = 0;
        for (index, at, bytes) in cargo.coming() {
            let part = overlap(range, start, bytes.len());
            if let Some(placed) = cargo.placed.inputs.get(index).filter(|_| !part.is_empty()) {
                let place = placed.slice(at + part.start..at + part.end)?;
                self.copies_in.copy_in(bytes.slice(part), &place)?;
            }
            start += bytes.len();
        }
        self.copies_in.record(&self.there)
    }

    /// Runs the model, behind the copies of its inputs.
    pub fn execute(
        &mut self,
        runner: &mut Runner,
        cargo: &Cargo,
        graph: bool,
    ) -> Result<(), DeviceError> {
        let (compute, model) = (&mut *runner.stream, &mut *runner.model);
        compute.wait(&self.there)?;
        let ran = cargo.placed.run(compute, |compute| match graph && !self.refuses_graphs {
            true => self.replay(compute, model, cargo),
            false => enqueue(compute, model, &cargo.placed),
        });
        // Also behind what failed half way: the outputs are not read before it has ended.
        let recorded = compute.record(&self.computed);
        ran.and(recorded)
    }

    fn replay(
        &mut self,
        compute: &mut dyn Stream,
        model: &mut dyn Compute,
        cargo: &Cargo,
    ) -> Result<(), DeviceError> {
        let layout = cargo.layout();
        if let Some((_, graph)) = self.graphs.iter().find(|(known, _)| *known == layout) {
            return compute.replay(graph);
        }
        compute.begin_capture()?;
        let enqueued = enqueue(compute, model, &cargo.placed);
        let captured = compute.end_capture();
        match enqueued.and(captured) {
            Ok(graph) => {
                let ran = compute.replay(&graph);
                if self.graphs.len() == GRAPHS_MAX {
                    self.graphs.remove(0);
                }
                self.graphs.push((layout, graph));
                ran
            }
            Err(error) if error.is_lost() => Err(error),
            Err(error) => {
                log::warn!("a model runs without graphs: {error}");
                self.refuses_graphs = true;
                enqueue(compute, model, &cargo.placed)
            }
        }
    }

    /// Copies a range of the outputs, which come one behind the other, behind the run.
    pub fn copy_out(&mut self, cargo: &mut Cargo, range: &Range<usize>) -> Result<(), DeviceError> {
        self.copies_out.wait(&self.computed)?;
        let mut start = 0;
        let outputs = cargo.outputs.iter_mut().zip(&cargo.placed.outputs);
        let coming = outputs.filter_map(|(output, placed)| output.comes.as_mut().zip(Some(placed)));
        for ((_, target), placed) in coming {
            let part = overlap(range, start, placed.len());
            if !part.is_empty() {
                // Ranges come in order, so the target's first bytes are the next.
                let target = target.split_to(part.len());
                self.copies_out.copy_out(&placed.slice(part)?, target)?;
            }
            start += placed.len();
        }
        Ok(())
    }

    /// What tells that a batch's inputs are there, and what tells that it has run.
    pub fn events(&self) -> (Event, Event) {
        (self.there.clone(), self.computed.clone())
    }

    pub fn copies_in(&mut self) -> &mut dyn Stream {
        &mut *self.copies_in
    }

    pub fn copies_out(&mut self) -> &mut dyn Stream {
        &mut *self.copies_out
    }
}

/// Puts a batch's work onto a stream.
pub(super) fn enqueue(
    compute: &mut dyn Stream,
    model: &mut dyn Compute,
    batch: &Placed,
) -> Result<(), DeviceError> {
    let Placed { rows, inputs, outputs, scratch, numbers, own, .. } = batch;
    for output in outputs.iter().filter(|output| !output.is_empty()) {
        compute.fill(output, UNWRITTEN)?;
    }
    let (rows, own) = (*rows, own.as_ref());
    model.enqueue(compute, &PlacedBatch { rows, inputs, outputs, scratch, numbers, own })
}

/// Places for tensors of the given sizes in `memory`, which grows if it must.
fn place(
    memory: &mut Option<DeviceMemory>,
    sizes: &[usize],
    device: &dyn Device,
    graphs: &mut Vec<(Layout, Graph)>,
) -> Result<Vec<DeviceSlice>, DeviceError> {
    if sizes.is_empty() {
        return Ok(Vec::new());
    }
    let total: usize = sizes.iter().map(|size| size.next_multiple_of(ALIGNMENT)).sum();
    let held = match memory.take() {
        Some(held) if held.size() >= total => held,
        // What was held is given back first; graphs name it.
        held => {
            graphs.clear();
            drop(held);
            device.allocate(total.max(ALIGNMENT))?
        }
    };
    let held = memory.insert(held);
    let mut start = 0;
    sizes
        .iter()
        .map(|size| {
            let slice = held.slice(start..start + size);
            start += size.next_multiple_of(ALIGNMENT);
            slice
        })
        .collect()
}

/// Gives tensors other places than those in the lane.
fn put(tensors: &mut [DeviceSlice], places: impl IntoIterator<Item = (usize, DeviceSlice)>) {
    for (index, place) in places {
        tensors.get_mut(index).into_iter().for_each(|tensor| *tensor = place.clone());
    }
}

/// The part of `range` that lies in the `len` bytes from `start` on, counted from there.
fn overlap(range: &Range<usize>, start: usize, len: usize) -> Range<usize> {
    let from = range.start.clamp(start, start + len) - start;
    let to = range.end.clamp(start, start + len) - start;
    from..to
}
