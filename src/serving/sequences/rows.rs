//! A batch of sequences, from its rows to the answers and what the sequences carry on.

use smallvec::SmallVec;

use super::{
    Turn,
    setup::{SequenceSetup, StateValue, States, Told},
};
use crate::{
    backend::{Instance, ModelInstance},
    inference::{Admitted, AdmittedInput, CorrelationId, Error, InferOutput, Rope, Timestamp},
    memory::BufferPool,
    observe::BatchTimes,
    runtime::ReactorHandle,
    scheduler::{SequenceBatch, SequenceKey, SequenceRow},
    serving::{
        batch::Outputs,
        execution::{self, Executed, Ran},
        job::{Job, Keeping},
        respond::Progress,
        rows::SharedRows,
    },
};

/// What a run leaves to its sequences.
pub type Left = SmallVec<[(SequenceKey, States); 4]>;

/// Runs a batch, beginning now, at `began`. A batch that fails leaves the states as they were.
pub fn run(
    setup: &SequenceSetup,
    instance: &mut ModelInstance,
    batch: SequenceBatch<Job, States>,
    home: &ReactorHandle,
    began: Timestamp,
) -> (Left, Executed) {
    let mut times = BatchTimes::default();
    let (mut left, mut jobs) = (Left::new(), Vec::with_capacity(batch.rows.len()));
    // Of each job its row, and the outputs that its client asked for.
    let mut places: SmallVec<[usize; 8]> = SmallVec::new();
    let mut asked = Vec::with_capacity(batch.rows.len());
    let row_count = batch.rows.len();
    // Who answers requests by itself gives no state back.
    let batched = matches!(instance, ModelInstance::Batches(_));
    for (place, row) in batch.rows.into_iter().enumerate() {
        let Some(SequenceRow { key, mut request, start, end, carried }) = row else { continue };
        asked.push(request.admitted.outputs.clone());
        tell(setup, &mut request, start, end, &carried);
        if batched {
            let states = setup.states.iter().map(|state| state.output);
            ask_for(states, &mut request.admitted.outputs);
        }
        left.push((key, carried));
        if setup.policy.iterative {
            request.turn.get_or_insert_with(|| Turn { key, progress: Progress::default() });
        }
        places.push(place);
        jobs.push(request);
    }
    let instance = match instance {
        ModelInstance::Batches(instance) => &mut **instance,
        ModelInstance::Requests(instance) => {
            let ran = execution::hand_over(&mut **instance, jobs, home, began, &mut times);
            return (left, Executed::new(ran, began, times));
        }
    };
    let outcome = execute(setup, instance, &jobs, (&places, row_count), began, &mut times);
    let fillers = (row_count - jobs.len()) as u32;
    let outcome = outcome.and_then(|mut outputs| {
        let Some(version) = jobs.first().map(|job| &job.version) else { return Ok(outputs) };
        let pool = &version.host.pool;
        let kept = outputs.iter().map(|outputs| keep(setup, outputs, None, pool, row_count > 1));
        let kept: Vec<States> = kept.collect::<Result<_, _>>()?;
        left.iter_mut().zip(kept).for_each(|((_, states), kept)| *states = kept);
        for (outputs, asked) in outputs.iter_mut().zip(&asked) {
            leave_asked(setup, outputs, asked);
        }
        Ok(outputs)
    });
    (left, Executed::new(Ran::Batch { jobs, outcome, fillers }, began, times))
}

/// Gives a request the inputs of the server.
pub fn tell(setup: &SequenceSetup, job: &mut Job, start: bool, end: bool, states: &States) {
    let none = CorrelationId::default();
    let sequence = job.sequence.as_mut().map(|sequence| {
        sequence.start = start;
        &**sequence
    });
    let id = sequence.map_or(&none, |sequence| &sequence.id);
    let told = Told { id, start, end, ready: true };
    job.admitted.inputs.extend(setup.hidden_inputs(&told, states).map(Some));
}

/// Asks for outputs that are states, among those that are asked for.
pub fn ask_for(states: impl Iterator<Item = u16>, outputs: &mut SmallVec<[u16; 4]>) {
    for output in states {
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
}

/// Leaves of a request's outputs those that its client asked for.
pub fn leave_asked(setup: &SequenceSetup, outputs: &mut Outputs, asked: &[u16]) {
    outputs.retain(|output| {
        let specs = setup.signature.outputs.iter().zip(0..);
        let mut of_its_name = specs.filter(|(spec, _)| spec.name == output.name);
        of_its_name.any(|(_, index)| asked.contains(&index))
    });
}

fn execute(
    setup: &SequenceSetup,
    instance: &mut dyn Instance,
    jobs: &[Job],
    (places, row_count): (&[usize], usize),
    began: Timestamp,
    times: &mut BatchTimes,
) -> Result<Vec<Outputs>, Error> {
    let Some(first) = jobs.first() else { return Ok(Vec::new()) };
    let filler = filler(setup, &first.admitted);
    let mut requests: SmallVec<[&Admitted; 8]> = SmallVec::from_elem(&filler, row_count);
    for (&place, job) in places.iter().zip(jobs) {
        if let Some(request) = requests.get_mut(place) {
            *request = &job.admitted;
        }
    }
    let site = execution::RunSite {
        signature: &setup.signature,
        ragged: &first.version.ragged,
        pool: &first.version.host.pool,
        places: None,
    };
    let all = execution::run(instance, &site, &requests, SharedRows::default(), began, times)?;
    let mut row = 0..;
    let real = all.into_iter().filter(|_| row.next().is_some_and(|row| places.contains(&row)));
    Ok(real.collect())
}

/// A row for a sequence that has nothing to run: zeros of the shapes of `like`, for which nothing is
/// asked.
pub fn filler(setup: &SequenceSetup, like: &Admitted) -> Admitted {
    let id = CorrelationId::default();
    let told = Told { id: &id, start: false, end: false, ready: false };
    let zeros = |input: &AdmittedInput| AdmittedInput {
        shape: input.shape.clone(),
        data: Rope::zeros(input.data.len()),
    };
    let clients = setup.signature.inputs.len() - setup.hidden_count();
    let states = like.inputs.iter().skip(like.inputs.len() - setup.states.len()).flatten();
    let states = States(states.map(|state| zeros(state).into()).collect());
    let own = like.inputs.iter().take(clients).map(|input| input.as_ref().map(zeros));
    Admitted {
        batch_size: 1,
        inputs: own.chain(setup.hidden_inputs(&told, &states).map(Some)).collect(),
        outputs: SmallVec::new(),
        classes: SmallVec::new(),
    }
}

/// Takes the states out of a request's outputs, or notes where they have stayed. From the host they are
/// `copied` where the run had several rows: one of them must not keep the memory of all.
pub fn keep(
    setup: &SequenceSetup,
    outputs: &Outputs,
    keeping: Option<&Keeping>,
    pool: &BufferPool,
    copied: bool,
) -> Result<States, Error> {
    let kept = setup
        .states
        .iter()
        .map(|state| {
            let name = setup.signature.outputs.get(usize::from(state.output)).map(|it| &it.name);
            let found = outputs.iter().find(|output| Some(&output.name) == name);
            let Some(InferOutput { shape, data, .. }) = found else {
                let detail = format!("model '{}' gave no state", setup.policy.model);
                return Err(Error::Internal { detail });
            };
            let shape = shape.clone();
            let stayed = keeping.and_then(|keeping| keeping.stayed(state.output.into()));
            if let Some(there) = stayed {
                let data = Rope::absent(there.len());
                let tensor = AdmittedInput { shape, data };
                return Ok(StateValue { tensor, resides: Some(there.clone()) });
            }
            let data = match copied {
                false => data.clone(),
                true => {
                    let mut own = pool.allocate(data.len())?;
                    own.copy_from_slice(data);
                    own.freeze()
                }
            };
            Ok(AdmittedInput { shape, data: data.into() }.into())
        })
        .collect::<Result<_, Error>>()?;
    Ok(States(kept))
}
