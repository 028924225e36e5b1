//! A batch of sequences whose instance has a lane of its own on a device, where their states stay from one
//! request to the next.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    Turn,
    instances::Ran,
    rows::{self, Left},
    setup::{SequenceSetup, State, States},
};
use crate::{
    inference::{Admitted, Rope, Timestamp},
    runtime::{ReactorHandle, reply_channel},
    scheduler::{SequenceBatch, SequenceKey, SequenceRow},
    serving::{
        execution::{self, Executed},
        job::{Job, Keeping, ResidentTensors},
        lanes::{Back, ModelLanes, ResidentInput},
        respond::Progress,
    },
};

/// What is known of a row while it is away.
struct Away {
    key: SequenceKey,
    /// What its sequence carried before.
    carried: States,
    /// The outputs that its client asked for.
    asked: SmallVec<[u16; 4]>,
}

/// Sends a batch to the lane of an instance, beginning now. It comes back through its version, to `home`.
pub fn run(
    setup: &Arc<SequenceSetup>,
    instance: u32,
    lanes: &mut ModelLanes,
    batch: SequenceBatch<Job, States>,
    home: &ReactorHandle,
) {
    let began = Timestamp::now();
    let mut known = batch.rows.iter().flatten();
    let Some(version) = known.next().map(|row| row.request.version.clone()) else { return };
    let stay = version.keeps_states;
    let (mut away, mut like) = (Vec::with_capacity(batch.rows.len()), None);
    let rows: Vec<Option<Job>> = batch
        .rows
        .into_iter()
        .map(|row| {
            let (job, its) = depart(setup, row?, stay);
            away.push(its);
            like.get_or_insert_with(|| job.admitted.clone());
            Some(job)
        })
        .collect();
    let Some(like) = like else { return };
    let nobody = || {
        // Nobody hears the answer.
        let (reply, _) = reply_channel();
        let mut filler = rows::filler(setup, &like);
        let resident = stay.then(|| Box::new(reside(setup, &mut filler, None.into_iter())));
        Job { resident, ..Job::new(version.clone(), filler, began, reply) }
    };
    let jobs = rows.into_iter().map(|job| job.unwrap_or_else(nobody)).collect();
    let (told, home) = (setup.clone(), home.clone());
    // Its queue may be at work just now, so it gets a message.
    let deliver = Box::new(move |back: Back| {
        let Some(version) = back.version() else { return };
        let (sequences, executed) = arrive(&told, away, back);
        let ran = Ran { instance, sequences, executed };
        if home.send(Box::new(move || version.ran(ran))).is_err() {
            log::debug!("a batch of sequences has come back after its reactor had ended");
        }
    });
    lanes.run_sequences(jobs, &setup.signature, began, deliver);
}

/// Makes a row's request ready, whose states `stay` on the device if they can.
fn depart(setup: &SequenceSetup, row: SequenceRow<Job, States>, stay: bool) -> (Job, Away) {
    let SequenceRow { key, mut request, start, end, carried } = row;
    let asked = request.admitted.outputs.clone();
    rows::tell(setup, &mut request, start, end, &carried);
    let stays = |state: &&State| stay && state.has_length;
    let output = |state: &State| state.output;
    let (staying, coming) = (
        setup.states.iter().filter(stays).map(output),
        setup.states.iter().filter(|state| !stays(state)).map(output),
    );
    rows::ask_for(coming, &mut request.admitted.outputs);
    let staying: SmallVec<[u16; 2]> = staying.collect();
    if !staying.is_empty() {
        let places = carried.0.iter().map(|state| state.resides.clone());
        let mut resident = reside(setup, &mut request.admitted, places);
        resident.keeping = Some(Arc::new(Keeping::new(&staying)));
        request.resident = Some(Box::new(resident));
    }
    request.turn = Some(Turn { key, progress: Progress::default() });
    (request, Away { key, carried, asked })
}

/// Has the states of a request read on the device: from their `places` there, or, where there is none, by way
/// of the lane, so that they can be in a batch with others.
fn reside(
    setup: &SequenceSetup,
    request: &mut Admitted,
    places: impl Iterator<Item = Option<ResidentInput>>,
) -> ResidentTensors {
    let mut resident = ResidentTensors::default();
    let places = places.chain(std::iter::repeat(None));
    for (state, place) in setup.states.iter().zip(places).filter(|(state, _)| state.has_length) {
        let Some(Some(tensor)) = request.inputs.get_mut(usize::from(state.input)) else { continue };
        match place {
            Some(there) => resident.inputs.push((state.input, there)),
            None => {
                let bytes = Rope::absent(tensor.data.len());
                resident.brought.push((state.input, std::mem::replace(&mut tensor.data, bytes)));
            }
        }
    }
    resident
}

/// Takes a batch back: what its sequences carry on, and its answers. Those that failed carry on what they had.
fn arrive(setup: &SequenceSetup, away: Vec<Away>, back: Back) -> (Left, Executed) {
    let Back { mut jobs, outcome, mut failed, began, times, .. } = back;
    let row_count = jobs.len() + failed.len();
    let fillers = (row_count - away.len()) as u32;
    let (mut left, asked): (Left, Vec<_>) =
        away.into_iter().map(|away| ((away.key, away.carried), away.asked)).unzip();
    let outcome = outcome.and_then(|outputs| {
        let (mut answers, mut kept) = (Vec::with_capacity(left.len()), Vec::new());
        for (job, mut outputs) in jobs.iter().zip(outputs) {
            let key = job.turn.as_ref().map(|turn| turn.key);
            let place = left.iter().position(|(known, _)| Some(*known) == key);
            let Some(place) = place else { continue };
            let pool = &job.version.host.pool;
            kept.push((place, rows::keep(setup, &outputs, job.keeping(), pool, row_count > 1)?));
            rows::leave_asked(setup, &mut outputs, &asked[place]);
            answers.push(outputs);
        }
        kept.into_iter().for_each(|(place, states)| left[place].1 = states);
        Ok(answers)
    });
    // Rows of nobody have no turn.
    jobs.retain(|job| job.turn.is_some());
    failed.retain(|(job, _)| job.turn.is_some());
    let ran = execution::Ran::Batch { jobs, outcome, fillers };
    (left, Executed::new(ran, began, times).with_failed(failed))
}
