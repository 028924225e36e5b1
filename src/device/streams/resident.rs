use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::lane::ALIGNMENT;
use crate::device::{
    Argument, Device, DeviceError, DeviceSlice, Kernel, Scalar, Stream,
    kernels::{
        self, PLACES_MAX,
        gather::{STRETCH, grid},
    },
};

/// What moves bytes between a batch and many places of the same device, in one launch for all places of a
/// tensor.
pub struct Mover {
    gather: Option<Kernel>,
    scatter: Option<Kernel>,
    /// Whether places that lie over each other are written one after the other: a device of the host takes
    /// that for a race, on a GPU it is the client's own affair.
    parts_writes: bool,
}

/// The tensors of a batch that lie on its device: of these inputs only rows that are elsewhere are copied
/// from the host.
#[derive(Clone)]
pub struct Resident {
    mover: Arc<Mover>,
    inputs: Vec<Tensor>,
    /// Inputs that the model reads where they lie.
    lying: Vec<(usize, DeviceSlice)>,
    /// What of inputs comes from the host.
    coming: Vec<Coming>,
    /// What of inputs is zeros.
    zeros: Vec<(usize, Range<usize>)>,
    outputs: Vec<Tensor>,
    kept: Vec<KeptOutput>,
}

/// Rows of an input that lies on the device.
#[derive(Clone)]
pub enum Rows {
    /// They lie there.
    Lie(DeviceSlice),
    /// They come from the host.
    Come(Bytes),
    /// They are so many zeros, which nobody has to bring.
    Zeros(usize),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Lie(place) => place.len(),
            Self::Come(bytes) => bytes.len(),
            Self::Zeros(bytes) => *bytes,
        }
    }
}

/// Bytes of an input that come from the host, though others of it lie on the device.
#[derive(Clone)]
pub(super) struct Coming {
    /// Which of the batch's.
    pub index: usize,
    /// Where in it they begin.
    pub start: usize,
    pub bytes: Bytes,
}

/// An output whose memory outlives the batch.
#[derive(Clone)]
pub(super) struct KeptOutput {
    /// Which of the batch's.
    pub index: usize,
    pub memory: KeptMemory,
}

/// Where an output lies that outlives its batch.
#[derive(Clone)]
pub(super) enum KeptMemory {
    /// All in one piece. If `is_written_there` the model writes it there itself.
    Whole { is_written_there: bool },
    /// These parts of it, each in memory of its own.
    Apart(Vec<Range<usize>>),
}

#[derive(Clone)]
struct Tensor {
    /// Which of the batch's.
    index: usize,
    bytes: usize,
    shares: Vec<Share>,
}

/// One launch: a part of a tensor, and where it lies.
#[derive(Clone)]
struct Share {
    range: Range<usize>,
    places: Vec<DeviceSlice>,
}

impl Share {
    /// Where the places begin in the part, and where the last ends, as kernels read it.
    fn offsets(&self) -> impl Iterator<Item = u64> {
        let ends = self.places.iter().scan(0, |end, place| {
            *end += place.len() as u64;
            Some(*end)
        });
        std::iter::once(0).chain(ends)
    }

    fn table_bytes(&self) -> usize {
        (self.places.len() + 1) * size_of::<u64>()
    }
}

/// Parts places, each with where it begins in the tensor, into launches: no more in one than a table
/// holds; where they are to be `apart`, none that lie over each other.
fn shares(pieces: impl Iterator<Item = (usize, DeviceSlice)>, apart: bool) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for (start, place) in pieces.filter(|(_, place)| !place.is_empty()) {
        let end = start + place.len();
        let fits = |share: &&mut Share| {
            share.range.end == start
                && share.places.len() < PLACES_MAX
                && !(apart && share.places.iter().any(|other| other.overlaps(&place)))
        };
        match shares.last_mut().filter(fits) {
            Some(share) => {
                share.range.end = end;
                share.places.push(place);
            }
            None => shares.push(Share { range: start..end, places: vec![place] }),
        }
    }
    shares
}

/// Rows that all lie on the device as one, if each begins where the one before ends.
fn joined(rows: &[Rows]) -> Option<DeviceSlice> {
    let mut places = rows.iter().map(|rows| match rows {
        Rows::Lie(place) => Some(place),
        _ => None,
    });
    let first = places.next()??.clone();
    places.try_fold(first, |before, next| before.joined(next?))
}

impl Resident {
    /// None yet.
    pub fn new(mover: Arc<Mover>) -> Self {
        Self {
            mover,
            inputs: Vec::new(),
            lying: Vec::new(),
            coming: Vec::new(),
            zeros: Vec::new(),
            outputs: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Adds the batch's input `index`, of these rows in their order. If it `may_lie` there while the model
    /// reads it, rows that lie one behind the other are not moved.
    pub fn add_input(&mut self, index: usize, rows: Vec<Rows>, may_lie: bool) {
        let whole = may_lie.then(|| joined(&rows)).flatten();
        if let Some(whole) = whole.filter(|it| it.address().is_multiple_of(ALIGNMENT as u64)) {
            return self.lying.push((index, whole));
        }
        let (mut bytes, mut places) = (0, Vec::new());
        for rows in rows {
            let start = bytes;
            bytes += rows.len();
            match rows {
                Rows::Lie(place) => places.push((start, place)),
                Rows::Come(bytes) => self.coming.push(Coming { index, start, bytes }),
                Rows::Zeros(_) => self.zeros.push((index, start..bytes)),
            }
        }
        let shares = shares(places.into_iter(), false);
        self.inputs.push(Tensor { index, bytes, shares });
    }

    /// Adds the batch's output `index`, whose bytes from each number on go to the place beside it, as
    /// many as that has.
    pub fn add_output(&mut self, index: usize, places: Vec<(usize, DeviceSlice)>) {
        let bytes = places.iter().map(|(_, place)| place.len()).sum();
        let shares = shares(places.into_iter(), self.mover.parts_writes);
        self.outputs.push(Tensor { index, bytes, shares });
    }

    /// Has the memory of output `index` outlive the batch. The model writes it there itself, or, where it
    /// has to find its tensors in its lane, it is copied there behind the run.
    pub fn keep(&mut self, index: usize, is_written_there: bool) {
        self.kept.push(KeptOutput { index, memory: KeptMemory::Whole { is_written_there } });
    }

    /// Has these parts of output `index` outlive the batch, each in memory of its own, so that none is held
    /// by another. They are copied there behind the run.
    pub fn keep_apart(&mut self, index: usize, parts: Vec<Range<usize>>) {
        self.kept.push(KeptOutput { index, memory: KeptMemory::Apart(parts) });
    }

    /// The inputs that stay where they lie.
    pub(super) fn lying(&self) -> &[(usize, DeviceSlice)] {
        &self.lying
    }

    /// The outputs whose memory outlives the batch.
    pub(super) fn kept(&self) -> &[KeptOutput] {
        &self.kept
    }

    /// The size that the input `index` has in the lane, if it is brought there from elsewhere on the device.
    pub(super) fn input_bytes(&self, index: usize) -> Option<usize> {
        Some(self.inputs.iter().find(|tensor| tensor.index == index)?.bytes)
    }

    /// What of the inputs comes from the host.
    pub(super) fn coming(&self) -> &[Coming] {
        &self.coming
    }

    fn shares(&self) -> impl Iterator<Item = &Share> {
        self.inputs.iter().chain(&self.outputs).flat_map(|tensor| &tensor.shares)
    }

    /// The bytes of device memory that the launches read their tables from.
    pub(super) fn table_bytes(&self) -> usize {
        self.shares().map(Share::table_bytes).sum()
    }

    /// Brings the inputs to their places in the batch, and the tables of all launches to `table`.
    pub(super) fn bring(
        &self,
        stream: &mut dyn Stream,
        inputs: &[DeviceSlice],
        table: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        for (index, range) in &self.zeros {
            let Some(input) = inputs.get(*index) else { continue };
            stream.fill(&input.slice(range.clone())?, 0)?;
        }
        let words: Vec<u64> = self.shares().flat_map(Share::offsets).collect();
        if !table.is_empty() {
            stream.copy_in(Bytes::from_owner(Words(words)), table)?;
        }
        let kernel = self.mover.gather.as_ref();
        for_each(&self.inputs, inputs, table, 0, |share, batch, offsets| match kernel {
            Some(kernel) => {
                let places = Argument::ReadTable(share.places.clone());
                launch(kernel, stream, share, places, offsets, Argument::Write(batch.clone()))
            }
            None => one_by_one(share, batch, |place, part| stream.copy_within(place, part)),
        })
    }

    /// Brings the outputs from the batch to where they are to lie, by the tables that
    /// [`bring`](Self::bring) has put there.
    pub(super) fn take_out(
        &self,
        stream: &mut dyn Stream,
        outputs: &[DeviceSlice],
        table: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let before = self.inputs.iter().flat_map(|tensor| &tensor.shares).map(Share::table_bytes);
        let kernel = self.mover.scatter.as_ref();
        for_each(
            &self.outputs,
            outputs,
            table,
            before.sum(),
            |share, batch, offsets| match kernel {
                Some(kernel) => {
                    let places = Argument::WriteTable(share.places.clone());
                    launch(kernel, stream, share, places, offsets, Argument::Read(batch.clone()))
                }
                None => one_by_one(share, batch, |place, part| stream.copy_within(part, place)),
            },
        )
    }

    /// Copies what is kept whole from the batch's outputs to its memory, `kept`, if the model has not written
    /// it there itself.
    pub(super) fn take_whole(
        &self,
        stream: &mut dyn Stream,
        outputs: &[DeviceSlice],
        kept: &[(usize, DeviceSlice)],
    ) -> Result<(), DeviceError> {
        for KeptOutput { index, memory } in &self.kept {
            if let KeptMemory::Whole { is_written_there: false } = memory
                && let Some(output) = outputs.get(*index)
                && let Some((_, place)) = kept.iter().find(|(number, _)| number == index)
            {
                stream.copy_within(output, place)?;
            }
        }
        Ok(())
    }
}

/// Does each launch of `tensors`: with its part of the batch, and its table, the first of which begins
/// at `start`.
fn for_each(
    tensors: &[Tensor],
    batch: &[DeviceSlice],
    table: &DeviceSlice,
    mut start: usize,
    mut give: impl FnMut(&Share, &DeviceSlice, DeviceSlice) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    for tensor in tensors {
        let Some(all) = batch.get(tensor.index) else { continue };
        for share in &tensor.shares {
            let end = start + share.table_bytes();
            give(share, &all.slice(share.range.clone())?, table.slice(start..end)?)?;
            start = end;
        }
    }
    Ok(())
}

struct Words(Vec<u64>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Mover {
    /// Loads the kernels on a device. Where it has no code for them, places are copied one by one.
    pub fn load(device: &dyn Device) -> Self {
        let load = |name| {
            let loaded = device.kernel(&kernels::source(name)?);
            let told = |error| log::warn!("tensors on a device are copied one by one: {error}");
            loaded.map_err(told).ok()
        };
        let parts_writes = device.properties().compute_capability.is_none();
        Self { gather: load("gather"), scatter: load("scatter"), parts_writes }
    }
}

fn launch(
    kernel: &Kernel,
    stream: &mut dyn Stream,
    share: &Share,
    places: Argument,
    offsets: DeviceSlice,
    batch: Argument,
) -> Result<(), DeviceError> {
    let grid = grid(share.range.len() as u64);
    let launch = kernel
        .launch(grid.blocks, grid.threads)
        .with(places)
        .with(Argument::Read(offsets))
        // It is at most the length of a table.
        .with(Argument::Scalar(Scalar::U32(share.places.len() as u32)))
        .with(batch)
        .with(Argument::Scalar(Scalar::U64(STRETCH)));
    stream.launch(launch)
}

/// Copies each place's part of the batch.
fn one_by_one(
    share: &Share,
    batch: &DeviceSlice,
    mut copy: impl FnMut(&DeviceSlice, &DeviceSlice) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let mut start = 0;
    for place in &share.places {
        copy(place, &batch.slice(start..start + place.len())?)?;
        start += place.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{
            Landing, Urgency,
            host::{HostDevice, HostSettings},
        },
        memory::BufferPool,
    };

    const PIECES: usize = 300;

    /// Rows of a region, the last first, that are brought to a batch and from there to another region.
    fn there_and_back(
        mover: impl FnOnce(&HostDevice) -> Mover,
        lengths: &[usize],
    ) -> (Vec<u8>, Vec<u8>) {
        let device = HostDevice::start(HostSettings::default()).unwrap();
        let mut stream = device.stream(Urgency::Normal).unwrap();
        let total: usize = lengths.iter().sum();
        let content: Vec<u8> = (0..total).map(|at| (at * 7 % 251) as u8).collect();
        let [from, to, batch] = [(); 3].map(|()| device.allocate(total).unwrap());
        stream.copy_in(content.clone().into(), &from.whole()).unwrap();
        stream.fill(&to.whole(), 0).unwrap();
        let mut end = total;
        let places = lengths.iter().map(|length| {
            end -= length;
            end..end + length
        });
        let places: Vec<Range<usize>> = places.collect();
        let mut resident = Resident::new(Arc::new(mover(&device)));
        let rows = places.iter().map(|place| Rows::Lie(from.slice(place.clone()).unwrap()));
        resident.add_input(0, rows.collect(), true);
        let mut start = 0;
        let targets = places.iter().map(|place| {
            start += place.len();
            (start - place.len(), to.slice(place.clone()).unwrap())
        });
        resident.add_output(0, targets.collect());
        assert_eq!((resident.input_bytes(0), resident.input_bytes(1)), (Some(total), None));
        let table = device.allocate(resident.table_bytes()).unwrap().whole();
        let batch = [batch.whole()];
        resident.bring(&mut *stream, &batch, &table).unwrap();
        resident.take_out(&mut *stream, &batch, &table).unwrap();
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let (landing, target) = Landing::new(pool.allocate(total).unwrap());
        stream.copy_out(&to.whole(), target).unwrap();
        let (report, reported) = std::sync::mpsc::channel();
        stream.call(Box::new(move |done| report.send(done).unwrap())).unwrap();
        reported.recv().unwrap().outcome.unwrap();
        (content, landing.finish().unwrap().to_vec())
    }

    #[test]
    fn more_places_than_a_table_holds_come_and_go_in_their_order() {
        let lengths: Vec<usize> = (0..PIECES).map(|piece| piece % 5 * 9).collect();
        let (content, got) = there_and_back(|device| Mover::load(device), &lengths);
        assert!(content == got);
        let without = |_: &HostDevice| Mover { gather: None, scatter: None, parts_writes: true };
        let (content, got) = there_and_back(without, &lengths);
        assert!(content == got);
    }

    #[test]
    fn a_launch_takes_a_table_full_and_no_two_places_that_are_written_over_each_other() {
        let device = HostDevice::start(HostSettings::default()).unwrap();
        let memory = device.allocate(64).unwrap();
        let place = |range| memory.slice(range).unwrap();
        let count = |pieces: Vec<DeviceSlice>, apart| {
            let mut end = 0;
            let pieces = pieces.into_iter().map(|piece| {
                end += piece.len();
                (end - piece.len(), piece)
            });
            shares(pieces.collect::<Vec<_>>().into_iter(), apart).len()
        };
        let same = || vec![place(0..8), place(4..12), place(8..16), place(3..3)];
        assert_eq!((count(same(), true), count(same(), false)), (3, 1));
        assert_eq!(count(vec![place(0..1); PLACES_MAX + 1], false), 2);
        assert_eq!(count(Vec::new(), true), 0);
    }
}
