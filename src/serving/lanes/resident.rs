use std::{ops::Range, sync::Arc};

use smallvec::{SmallVec, smallvec};

use super::{
    Route,
    residence::{Charge, Kept, ResidentInput},
};
use crate::{
    backend::DeviceBatch,
    device::{
        DeviceError, DeviceSlice,
        streams::{BatchParts, OutputPart, Resident, Rows},
    },
    inference::{Error, InferOutput, Shape, Signature},
    observe::Fallback,
    serving::{
        batch::{self, Outputs},
        job::{Job, ResidentTensors},
    },
};

/// Outputs of a batch that stay on its device for the requests that want them there: which, and what their
/// memory is charged to.
pub struct Staying {
    pub outputs: Vec<usize>,
    charges: Charges,
}

/// What the memory of outputs that stay is charged to.
enum Charges {
    /// Each output lies in one piece, which is held as long as a part of it is.
    Whole(Arc<Charge>),
    /// Each request has its own memory, in the order of those that keep any.
    Apart(Vec<Arc<Charge>>),
}

impl Staying {
    /// Whether an output is one of them.
    pub fn has(&self, index: u16) -> bool {
        self.outputs.contains(&usize::from(index))
    }

    /// Those of a batch of `jobs`, which lie `apart` where a request may hold its own for longer than others
    /// of its batch; `None` if there are none, or there is no leave for so many bytes. Counts what comes to
    /// the host instead.
    pub fn of(route: &Route, jobs: &[Job], laid: &DeviceBatch, apart: bool) -> Option<Self> {
        let residence = route.residence.as_ref()?;
        let signature = &jobs.first()?.version.signature;
        let rows: i64 = jobs.iter().map(|job| i64::from(job.admitted.batch_size)).sum();
        let told = |index: &usize| laid.outputs.get(*index).filter(|output| output.bytes > 0);
        // Others fail where they are taken apart.
        let has_rows = |index: &usize| {
            told(index).is_some_and(|output| {
                signature.max_batch_size == 0 || output.shape.first() == Some(&rows)
            })
        };
        let wanted = jobs.iter().filter_map(Job::keeping);
        let mut outputs: Vec<usize> =
            wanted.flat_map(|keeping| keeping.outputs()).map(usize::from).collect();
        outputs.sort_unstable();
        outputs.dedup();
        if outputs.iter().any(|index| told(index).is_none()) {
            fell_back(route, jobs, Fallback::Shape);
        }
        outputs.retain(has_rows);
        let bytes: usize = outputs.iter().filter_map(told).map(|output| output.bytes).sum();
        if bytes == 0 {
            return None;
        }
        let charges = match apart && jobs.len() > 1 {
            false => residence.charge(bytes).map(Charges::Whole),
            true => {
                let own = parted(jobs, bytes).filter(|(job, _)| job.keeping().is_some());
                let own = own.map(|(_, part)| residence.charge(part.len()));
                own.collect::<Result<_, _>>().map(Charges::Apart)
            }
        };
        match charges {
            Ok(charges) => Some(Self { outputs, charges }),
            Err(why) => {
                fell_back(route, jobs, why);
                None
            }
        }
    }

    /// Has the batch leave them there, where the model may write them itself if it `writes_in_place`.
    fn keep(
        &self,
        resident: &mut Resident,
        jobs: &[Job],
        parts: &[OutputPart],
        writes_in_place: bool,
    ) {
        for &index in &self.outputs {
            match &self.charges {
                Charges::Whole(_) => resident.keep(index, writes_in_place),
                Charges::Apart(_) => {
                    let bytes = parts.get(index).map_or(0, OutputPart::bytes);
                    let own = parted(jobs, bytes).filter(|(job, _)| job.keeping().is_some());
                    resident.keep_apart(index, own.map(|(_, part)| part).collect());
                }
            }
        }
    }

    /// Gives each request its part of `kept`, the memory of the outputs that the model left there.
    ///
    /// # Errors
    /// When that is not as long as all parts are.
    pub fn hand_over(
        &self,
        route: &Route,
        jobs: &[Job],
        memories: Vec<(usize, DeviceSlice)>,
    ) -> Result<(), Error> {
        let (Some(residence), Some(first)) = (&route.residence, jobs.first()) else {
            return Ok(());
        };
        let keep = |memory: &DeviceSlice, charge: &Arc<Charge>| {
            let statistics = &first.version.statistics;
            let kept = Arc::new(Kept::new(residence, statistics, memory.clone(), charge));
            route.fleet.driver.get().into_iter().for_each(|driver| driver.room.keep(&kept));
            kept
        };
        match &self.charges {
            Charges::Whole(charge) => {
                for (index, memory) in memories {
                    let kept = keep(&memory, charge);
                    for (job, part) in parted(jobs, memory.len()) {
                        let Some(keeping) = job.keeping() else { continue };
                        keeping.stays(index, ResidentInput::kept(kept.clone(), part));
                    }
                }
            }
            Charges::Apart(charges) => {
                for &index in &self.outputs {
                    let own = memories.iter().filter(|(number, _)| *number == index);
                    let keeping = jobs.iter().filter_map(Job::keeping);
                    for ((keeping, charge), (_, memory)) in keeping.zip(charges).zip(own) {
                        let kept = keep(memory, charge);
                        keeping.stays(index, ResidentInput::kept(kept, 0..memory.len()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Counts a batch of which tensors came to the host that could have stayed.
pub fn fell_back(route: &Route, jobs: &[Job], why: Fallback) {
    let statistics = jobs.first().map(|job| &job.version.statistics);
    statistics.into_iter().for_each(|it| it.fell_back(route.fleet.home.index(), why));
}

/// Each request and its part of a tensor of so many bytes.
fn parted(jobs: &[Job], bytes: usize) -> impl Iterator<Item = (&Job, Range<usize>)> {
    let rows: u32 = jobs.iter().map(|job| job.admitted.batch_size).sum();
    let row = bytes / rows.max(1) as usize;
    jobs.iter().scan(0, move |start, job| {
        let part = *start..*start + row * job.admitted.batch_size as usize;
        *start = part.end;
        Some((job, part))
    })
}

/// Has what lies on the device read or gathered from there, and what is to lie there put or left there. The
/// inputs and places are the same for all requests of a batch.
pub fn place(
    route: &Route,
    jobs: &[Job],
    staying: Option<&Staying>,
    parts: &mut BatchParts,
) -> Result<(), Error> {
    let Some((residence, first)) = route.residence.as_ref().zip(jobs.first()) else {
        return Ok(());
    };
    let none = ResidentTensors::default();
    let tensors = first.resident.as_deref().unwrap_or(&none);
    let ResidentTensors { inputs, brought, outputs, .. } = tensors;
    if inputs.is_empty() && brought.is_empty() && outputs.is_empty() && staying.is_none() {
        return Ok(());
    }
    let mut resident = Resident::new(residence.mover.clone());
    let lying = inputs.iter().map(|(index, _)| *index);
    for index in lying.chain(brought.iter().map(|(index, _)| *index)) {
        // What goes to the device begins with the inputs that are given.
        let before = first.admitted.inputs.iter().take(usize::from(index));
        let at = before.filter(|input| input.is_some()).count();
        // What a client could change meanwhile is read once.
        let mut there = jobs.iter().filter_map(|job| find(job, |it| &it.inputs, index));
        let may_lie = route.reads_in_place && there.all(ResidentInput::is_kept);
        let mut rows = Vec::with_capacity(jobs.len());
        for job in jobs {
            rows.extend(rows_of(job, index).map_err(internal)?);
        }
        resident.add_input(at, rows, may_lie);
    }
    for &(index, _) in outputs {
        let Some(&OutputPart::Stays(bytes)) = parts.outputs.get(usize::from(index)) else {
            continue;
        };
        let mut places = Vec::new();
        for (job, part) in parted(jobs, bytes) {
            let place = find(job, |it| &it.outputs, index);
            // One that is too small is told to its client when the batch is back.
            if let Some(place) = place.filter(|place| place.len() >= part.len()) {
                places.push((part.start, place.slice(0..part.len()).map_err(internal)?));
            }
        }
        resident.add_output(usize::from(index), places);
    }
    if let Some(staying) = staying {
        staying.keep(&mut resident, jobs, &parts.outputs, route.writes_in_place);
    }
    parts.resident = Some(resident);
    Ok(())
}

/// Where the rows are that a request has of an input.
fn rows_of(job: &Job, index: u16) -> Result<SmallVec<[Rows; 1]>, DeviceError> {
    if let Some(input) = find(job, |it| &it.inputs, index) {
        return Ok(smallvec![input.rows()?]);
    }
    Ok(match find(job, |it| &it.brought, index) {
        Some(zeros) if zeros.is_zeros() => smallvec![Rows::Zeros(zeros.len())],
        Some(bytes) => bytes.pieces().iter().cloned().map(Rows::Come).collect(),
        None => SmallVec::new(),
    })
}

fn internal(error: DeviceError) -> Error {
    Error::Internal { detail: error.to_string() }
}

fn find<'a, T>(
    job: &'a Job,
    tensors: impl FnOnce(&'a ResidentTensors) -> &'a [(u16, T)],
    index: u16,
) -> Option<&'a T> {
    let tensors = tensors(job.resident.as_deref()?);
    tensors.iter().find(|(number, _)| *number == index).map(|(_, tensor)| tensor)
}

/// The outputs of a request that are to lie on the device.
pub fn away(job: &Job) -> impl Iterator<Item = u16> {
    job.resident.iter().flat_map(|resident| resident.away())
}

/// Adds the outputs that lie on the device to those that came back, in the order of the signature and
/// without their bytes. `shapes` are those of the batch.
pub fn add_outputs(jobs: &[Job], shapes: &[Shape], signature: &Signature, outputs: &mut [Outputs]) {
    for (job, outputs) in jobs.iter().zip(outputs) {
        for index in away(job).filter(|index| !job.admitted.outputs.contains(index)) {
            let at = outputs
                .iter()
                .position(|output| {
                    let number = signature.output(&output.name);
                    number > Some(usize::from(index))
                })
                .unwrap_or(outputs.len());
            let Some(shape) = shapes.get(usize::from(index)) else { continue };
            let rows = job.admitted.batch_size;
            let absent: Option<InferOutput> =
                batch::absent_output(signature, usize::from(index), shape, rows);
            if let Some(absent) = absent {
                outputs.insert(at, absent);
            }
        }
    }
}
