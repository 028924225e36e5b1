use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Route, resident};
use crate::{
    backend::{Batch, Expected, ResponseError},
    device::{
        DeviceError,
        streams::{self, BatchParts, Finished, Outcome, Refused},
    },
    inference::{Admitted, Error, Shape, Timestamp},
    observe::BatchTimes,
    serving::{
        batch::{self, Outputs},
        device_regions::DeviceView,
        execution::{Executed, wanted},
        job::Job,
        padding::padding,
        rows::SharedRows,
    },
};

/// A sealed batch on its way. Where the device has no memory for all of it, its requests go in
/// several parts, one after the other.
pub(super) struct Journey {
    route: Route,
    /// The batch's place among those of its queue.
    ticket: u64,
    began: Timestamp,
    /// The requests that are on their way now, and what is expected of their outputs.
    jobs: Vec<Job>,
    expected: Expected,
    /// Those that go after them, the next last.
    later: Vec<Vec<Job>>,
    /// Those that are back, with their outputs.
    back: Vec<Job>,
    outputs: Vec<Outputs>,
    /// Those that could not be made ready.
    failed: Vec<(Job, Error)>,
    /// Rows behind those that are on their way now, which belong to nobody, and how many there were in all.
    padding: Option<Admitted>,
    fillers: u32,
    times: BatchTimes,
}

impl Journey {
    /// That of these requests, which are the batch `ticket` of their queue, beginning now, at `began`.
    pub fn new(route: Route, ticket: u64, jobs: Vec<Job>, began: Timestamp) -> Self {
        Self {
            route,
            ticket,
            began,
            jobs,
            expected: Expected::default(),
            later: Vec::new(),
            back: Vec::new(),
            outputs: Vec::new(),
            failed: Vec::new(),
            padding: None,
            fillers: 0,
            times: BatchTimes::default(),
        }
    }

    /// Makes the requests ready, each by itself, puts those together for which that went well, into `pinned`
    /// memory if it makes a difference, and brings them into lanes.
    pub async fn prepare(mut self, pinned: bool) {
        let model = self.route.model.clone();
        let mut begun = Vec::new();
        for (at, job) in self.jobs.iter().enumerate().filter(|(_, job)| !job.reply.is_abandoned()) {
            let (rows, pool) = (job.admitted.batch_size, job.version.host.pool.clone());
            for &index in model.prepared() {
                let input = job.admitted.inputs.get(index).and_then(Option::as_ref);
                let Some(data) = input.map(|input| input.data.clone().into_bytes()) else {
                    continue;
                };
                let (model, pool) = (model.clone(), pool.clone());
                let work = move || model.prepare(index, rows, data, &pool);
                begun.push((at, index, self.route.fleet.preparation.run(work)));
            }
        }
        let mut faults: Vec<(usize, Error)> = Vec::new();
        for (at, index, mut answer) in begun {
            let input = self.jobs.get_mut(at).and_then(|job| job.admitted.inputs.get_mut(index));
            match (answer.receive().await, input) {
                (Some(Ok(data)), Some(Some(input))) => input.data = data.into(),
                (Some(Err(ResponseError { code, message })), _) => {
                    faults.push((at, Error::Model { code, detail: message }));
                }
                _ => faults.push((at, Error::unanswered())),
            }
        }
        let jobs = std::mem::take(&mut self.jobs);
        for (at, job) in jobs.into_iter().enumerate() {
            let fault = faults.iter().position(|(other, _)| *other == at);
            let abandoned = job.reply.is_abandoned().then_some(Error::Cancelled);
            match fault.map(|fault| faults.swap_remove(fault).1).or(abandoned) {
                Some(error) => self.failed.push((job, error)),
                None => self.jobs.push(job),
            }
        }
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return self.end(Ok(Vec::new()));
        };
        let requests: SmallVec<[&Admitted; 8]> =
            self.jobs.iter().map(|job| &job.admitted).collect();
        let rows = match pinned {
            true => SharedRows::seal_all(&version.signature, &requests, &version.host.pool),
            false => SharedRows::default(),
        };
        drop(requests);
        rows.fill().await;
        self.depart(rows);
    }

    /// Brings the requests into lanes.
    pub fn depart(mut self, rows: SharedRows) {
        if self.is_moot() {
            return self.end(Err(Error::Cancelled));
        }
        let parts = match self.lay_out(rows) {
            Ok((parts, expected)) => {
                self.expected = expected;
                parts
            }
            Err(error) => return self.end(Err(error)),
        };
        let (fleet, model) = (self.route.fleet.clone(), self.route.number);
        let (priority, deadline) = (self.priority(), self.deadline());
        let Some(driver) = fleet.driver.get() else {
            let detail = "the lanes of the devices have ended".to_owned();
            return self.end(Err(Error::Internal { detail }));
        };
        let ended = driver.ended.clone();
        let journey = Rc::new(RefCell::new(Some(self)));
        let travels = journey.clone();
        let done = Box::new(move |finished| {
            let journey = travels.borrow_mut().take();
            ended.borrow_mut().extend(journey.map(|journey| (journey, finished)));
        });
        let asked = journey.clone();
        let is_moot = Box::new(move || asked.borrow().as_ref().is_some_and(Self::is_moot));
        let job = streams::Job { model, parts, priority, deadline, is_moot, done };
        let taken = driver.with(|lanes| lanes.submit(job, Timestamp::now()));
        if let Err(refused) = taken {
            let journey = journey.borrow_mut().take();
            journey.into_iter().for_each(|journey| {
                let error = journey.refusal(&refused);
                journey.end(Err(error));
            });
        }
    }

    /// Whether all clients have left of what is on its way now.
    fn is_moot(&self) -> bool {
        self.jobs.iter().all(|job| job.reply.is_abandoned())
    }

    fn lay_out(&mut self, shared: SharedRows) -> Result<(BatchParts, Expected), Error> {
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return Ok((BatchParts::default(), Expected::default()));
        };
        let pool = &version.host.pool;
        self.padding = padding(&version.allowed_batch_sizes, &version.signature, &self.jobs);
        let requests = self.requests();
        let inputs = batch::assemble(&version.signature, &version.ragged, &requests, shared, pool)?;
        let rows = requests.iter().map(|request| request.batch_size).sum();
        let coming = wanted(&version.signature, &requests);
        let mut wanted = coming.clone();
        for (index, _) in self.staying() {
            wanted.get_mut(usize::from(*index)).into_iter().for_each(|wanted| *wanted = true);
        }
        let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool, places: None };
        let laid = self.route.model.lay_out(&batch);
        let laid = laid.map_err(|error| Error::Backend { detail: error.0 })?;
        let comes = |index| coming.get(index) == Some(&true);
        let (mut parts, expected) = laid.parts(rows, comes, pool)?;
        resident::place(&self.jobs, &mut parts)?;
        Ok((parts, expected))
    }

    /// The requests that are on their way now, and the rows behind them.
    fn requests(&self) -> SmallVec<[&Admitted; 8]> {
        self.jobs.iter().map(|job| &job.admitted).chain(&self.padding).collect()
    }

    /// The outputs that are to lie on the device; they are the same for all requests of a batch.
    fn staying(&self) -> &[(u16, DeviceView)] {
        let tensors = self.jobs.first().and_then(|job| job.resident.as_deref());
        tensors.map_or(&[], |tensors| &tensors.outputs)
    }

    /// Smaller goes first: what the model's configuration says.
    fn priority(&self) -> u32 {
        let version = self.jobs.first().map(|job| &job.version);
        version.map_or(0, |version| version.device_priority)
    }

    /// When none of the requests is wanted any more.
    fn deadline(&self) -> Option<Timestamp> {
        let deadlines: Option<Vec<Timestamp>> = self.jobs.iter().map(|job| job.deadline).collect();
        deadlines?.into_iter().max()
    }

    /// What was on its way has come back, or will not.
    pub fn ended(mut self, finished: Finished) {
        let Finished { outcome, outputs } = finished;
        match outcome {
            Outcome::Done(took) => {
                self.times.compute_infer += took.execute;
                self.times.compute_output += took.copy_out;
                match self.split(outputs) {
                    Ok(outputs) => self.outputs.extend(outputs),
                    Err(error) => return self.end(Err(error)),
                }
                self.fillers += self.padding.take().map_or(0, |padding| padding.batch_size);
                let back = std::mem::take(&mut self.jobs);
                self.back.extend(back);
                match self.later.pop() {
                    Some(jobs) => {
                        self.jobs = jobs;
                        self.depart(SharedRows::default());
                    }
                    None => {
                        let outputs = std::mem::take(&mut self.outputs);
                        self.end(Ok(outputs));
                    }
                }
            }
            Outcome::TooLarge(error) | Outcome::Failed(error)
                if error.is_out_of_memory() && self.jobs.len() > 1 =>
            {
                let second = self.jobs.split_off(self.jobs.len() / 2);
                self.later.push(second);
                self.depart(SharedRows::default());
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) if !error.is_lost() => {
                self.end(Err(Error::Backend { detail: error.to_string() }));
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) | Outcome::Unavailable(error) => {
                let error = self.unavailable(&error);
                self.end(Err(error));
            }
            Outcome::Expired => self.end(Err(Error::DeadlineExpired)),
            Outcome::Cancelled => self.end(Err(Error::Cancelled)),
        }
    }

    fn split(&mut self, outputs: Vec<Option<Bytes>>) -> Result<Vec<Outputs>, Error> {
        let began = Timestamp::now();
        let expected = std::mem::take(&mut self.expected);
        let shape_of = |index: u16| expected.shapes.get(usize::from(index)).cloned();
        let staying: Vec<(u16, Shape)> = self
            .staying()
            .iter()
            .filter_map(|(index, _)| Some((*index, shape_of(*index)?)))
            .collect();
        let tensors = self.route.model.outputs(expected, outputs);
        let tensors = tensors.map_err(|error| Error::Backend { detail: error.0 })?;
        let has_come = |index: u16| matches!(tensors.get(usize::from(index)), Some(Some(_)));
        let (came, staying): (Vec<_>, Vec<_>) =
            staying.into_iter().partition(|(index, _)| has_come(*index));
        // Of these only the run told the shape: whoever answers brings them to their places.
        if !came.is_empty() {
            for job in &mut self.jobs {
                job.admitted.outputs.extend(came.iter().map(|(index, _)| *index));
                job.admitted.outputs.sort_unstable();
            }
        }
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return Ok(Vec::new());
        };
        let split = batch::split(&version.signature, &version.ragged, &self.requests(), &tensors);
        let split = split.map(|mut outputs| {
            outputs.truncate(self.jobs.len());
            resident::add_outputs(&self.jobs, &staying, &version.signature, &mut outputs);
            outputs
        });
        self.times.compute_output += Timestamp::now() - began;
        split
    }

    fn refusal(&self, refused: &Refused) -> Error {
        match refused {
            Refused::Full { .. } => Error::QueueFull,
            Refused::Unavailable { source, .. } => self.unavailable(source),
            Refused::NoModel { .. } => Error::Internal { detail: refused.to_string() },
        }
    }

    fn unavailable(&self, error: &DeviceError) -> Error {
        self.route.fleet.heed(error);
        let version = self.jobs.first().map(|job| &job.version);
        let model = version.map(|version| version.name.to_string()).unwrap_or_default();
        Error::ModelUnavailable { model, reason: error.to_string() }
    }

    /// Hands the requests back to their version, as one batch again. It may be at work with its queue
    /// just now, so it gets a message.
    fn end(self, outcome: Result<Vec<Outputs>, Error>) {
        let Self { route, ticket, began, jobs, later, back, failed, fillers, mut times, .. } = self;
        let all: Vec<Job> =
            back.into_iter().chain(jobs).chain(later.into_iter().rev().flatten()).collect();
        let mut known = all.iter().chain(failed.iter().map(|(job, _)| job));
        let Some(version) = known.next().map(|job| job.version.clone()) else { return };
        // What the batch waited for, between its stages too, is time before the run.
        let whole = Timestamp::now() - began;
        times.compute_input = whole.saturating_sub(times.compute_infer + times.compute_output);
        let executed = Executed::batch(all, ticket, outcome, began, times);
        let executed = executed.with_failed(failed).with_fillers(fillers);
        if route.fleet.home.send(Box::new(move || version.executed(executed))).is_err() {
            log::debug!("a batch has come back from a device after its reactor had ended");
        }
    }
}
