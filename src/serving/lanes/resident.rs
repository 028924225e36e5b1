use smallvec::SmallVec;

use crate::{
    device::{
        DeviceError,
        streams::{BatchParts, OutputPart, Resident},
    },
    inference::{Error, InferOutput, Shape, Signature},
    serving::{
        batch::{self, Outputs},
        device_regions::DeviceView,
        job::{Job, ResidentTensors},
    },
};

/// Has what lies on the device gathered from there and put there. All requests of a batch have the same
/// tensors there.
pub fn place(jobs: &[Job], parts: &mut BatchParts) -> Result<(), Error> {
    let Some((first, tensors)) = jobs.first().and_then(|job| Some((job, job.resident.as_deref()?)))
    else {
        return Ok(());
    };
    let mut views = tensors.inputs.iter().chain(&tensors.outputs);
    let Some((_, view)) = views.next() else { return Ok(()) };
    let mut resident = Resident::new(view.mover().clone());
    for &(index, _) in &tensors.inputs {
        // What goes to the device begins with the inputs that are given.
        let before = first.admitted.inputs.iter().take(usize::from(index));
        let at = before.filter(|input| input.is_some()).count();
        let of = |job: &Job| find(job, |it| &it.inputs, index).cloned();
        resident
            .add_input(at, jobs.iter().filter_map(of).map(|view| view.slice().clone()).collect());
    }
    let rows: u32 = jobs.iter().map(|job| job.admitted.batch_size).sum();
    for &(index, _) in &tensors.outputs {
        let Some(&OutputPart::Stays(bytes)) = parts.outputs.get(usize::from(index)) else {
            continue;
        };
        let (mut start, mut places) = (0, Vec::new());
        for job in jobs {
            let own = bytes / rows.max(1) as usize * job.admitted.batch_size as usize;
            let place = find(job, |it| &it.outputs, index).map(|view| view.slice());
            // One that is too small is told to its client when the batch is back.
            if let Some(place) = place.filter(|place| place.len() >= own) {
                let place = place.slice(0..own).map_err(internal)?;
                places.push((start, place));
            }
            start += own;
        }
        resident.add_output(usize::from(index), places);
    }
    parts.resident = Some(resident);
    Ok(())
}

fn internal(error: DeviceError) -> Error {
    Error::Internal { detail: error.to_string() }
}

fn find(
    job: &Job,
    tensors: impl FnOnce(&ResidentTensors) -> &SmallVec<[(u16, DeviceView); 1]>,
    index: u16,
) -> Option<&DeviceView> {
    let tensors = tensors(job.resident.as_deref()?);
    tensors.iter().find(|(number, _)| *number == index).map(|(_, view)| view)
}

/// Adds the outputs that lie on the device to those that came back, in the order of the signature and
/// without their bytes.
pub fn add_outputs(
    jobs: &[Job],
    shapes: &[(u16, Shape)],
    signature: &Signature,
    outputs: &mut [Outputs],
) {
    for (job, outputs) in jobs.iter().zip(outputs) {
        for (index, shape) in shapes {
            let at = outputs
                .iter()
                .position(|output| {
                    let number = signature.outputs.iter().position(|spec| spec.name == output.name);
                    number > Some(usize::from(*index))
                })
                .unwrap_or(outputs.len());
            let rows = job.admitted.batch_size;
            let absent: Option<InferOutput> =
                batch::absent_output(signature, usize::from(*index), shape, rows);
            if let Some(absent) = absent {
                outputs.insert(at, absent);
            }
        }
    }
}
