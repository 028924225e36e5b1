use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    Route,
    resident::{self, Staying},
};
use crate::{
    backend::{Batch, Expected, Prepared, ResponseError},
    device::{
        DeviceError, DeviceSlice,
        streams::{self, BatchParts, Finished, Outcome, Refused},
    },
    inference::{Admitted, Error, Shape, Timestamp},
    observe::{BatchTimes, Fallback},
    serving::{
        batch::{self, Outputs},
        execution::{Executed, wanted},
        job::Job,
        padding::padding,
        rows::SharedRows,
    },
};

/// A sealed batch on its way. Where the device has no memory for all of it, or where its requests turn out
/// to be of different shapes, they go in several parts, one after the other.
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
    /// Those that could not be made ready, or in which the run found a fault.
    failed: Vec<(Job, Error)>,
    /// Their outputs that stay on the device, and whether any may.
    staying: Option<Staying>,
    may_stay: bool,
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
            staying: None,
            may_stay: true,
            padding: None,
            fillers: 0,
            times: BatchTimes::default(),
        }
    }

    /// Makes the requests ready, each by itself, puts those together for which that went well and which become
    /// the same, into `pinned` memory if it makes a difference, and brings them into lanes.
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
        let mut become_what: Vec<SmallVec<[Shape; 1]>> = vec![SmallVec::new(); self.jobs.len()];
        for (at, index, mut answer) in begun {
            let input = self.jobs.get_mut(at).and_then(|job| job.admitted.inputs.get_mut(index));
            match (answer.receive().await, input) {
                (Some(Ok(Prepared { data, becomes })), Some(Some(input))) => {
                    input.data = data.into();
                    become_what[at].push(becomes);
                }
                (Some(Err(error)), _) => faults.push((at, of_model(error))),
                _ => faults.push((at, Error::unanswered())),
            }
        }
        let jobs = std::mem::take(&mut self.jobs);
        let mut parts: Vec<(SmallVec<[Shape; 1]>, Vec<Job>)> = Vec::new();
        for ((at, job), becomes) in jobs.into_iter().enumerate().zip(become_what) {
            let fault = faults.iter().position(|(other, _)| *other == at);
            let abandoned = job.reply.is_abandoned().then_some(Error::Cancelled);
            let alike = parts.iter_mut().find(|(known, _)| *known == becomes);
            match (fault.map(|fault| faults.swap_remove(fault).1).or(abandoned), alike) {
                (Some(error), _) => self.failed.push((job, error)),
                (None, Some((_, jobs))) => jobs.push(job),
                (None, None) => parts.push((becomes, vec![job])),
            }
        }
        self.later = parts.into_iter().rev().map(|(_, jobs)| jobs).collect();
        self.jobs = self.later.pop().unwrap_or_default();
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
    pub fn depart(self, rows: SharedRows) {
        let mut stayed = self.submit(rows);
        while let Some((journey, error)) = stayed {
            let rest = journey.without(&error);
            stayed = rest.and_then(|journey| journey.submit(SharedRows::default()));
        }
    }

    /// Gives the lanes what is to be on its way now, or gives it back with the reason.
    fn submit(mut self, rows: SharedRows) -> Option<(Self, Error)> {
        if self.is_moot() {
            return Some((self, Error::Cancelled));
        }
        let parts = match self.lay_out(rows) {
            Ok((parts, expected)) => {
                self.expected = expected;
                parts
            }
            Err(error) => return Some((self, error)),
        };
        let (fleet, model) = (self.route.fleet.clone(), self.route.number);
        let (priority, deadline) = (self.priority(), self.deadline());
        let Some(driver) = fleet.driver.get() else {
            let detail = "the lanes of the devices have ended".to_owned();
            return Some((self, Error::Internal { detail }));
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
        let refused = driver.with(|lanes| lanes.submit(job, Timestamp::now())).err()?;
        let journey = journey.borrow_mut().take()?;
        let error = journey.refusal(&refused);
        Some((journey, error))
    }

    /// Goes on with the next of its parts, if there is one, or ends.
    fn next(mut self) -> Option<Self> {
        match self.later.pop() {
            Some(jobs) => {
                self.jobs = jobs;
                Some(self)
            }
            None => {
                let outputs = std::mem::take(&mut self.outputs);
                self.end(Ok(outputs));
                None
            }
        }
    }

    /// Goes on without the requests that are on their way now, which fail. Those before them and those
    /// behind are none the worse for it.
    fn without(mut self, error: &Error) -> Option<Self> {
        if self.back.is_empty() && self.later.is_empty() {
            self.end(Err(error.clone()));
            return None;
        }
        let jobs = std::mem::take(&mut self.jobs);
        self.failed.extend(jobs.into_iter().map(|job| (job, error.clone())));
        self.padding = None;
        self.next()
    }

    /// The same of what was on its way: goes on with what is left.
    fn fail(self, error: &Error) {
        if let Some(rest) = self.without(error) {
            rest.depart(SharedRows::default());
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
        let mut coming = wanted(&version.signature, &requests);
        let mut wanted = coming.clone();
        let want = |outputs: &mut [bool], index: u16| {
            outputs.get_mut(usize::from(index)).into_iter().for_each(|wanted| *wanted = true);
        };
        self.jobs.iter().flat_map(resident::away).for_each(|index| want(&mut wanted, index));
        let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool, places: None };
        let laid = self.route.model.lay_out(&batch);
        let laid = laid.map_err(of_model)?;
        let staying = self.may_stay.then(|| Staying::of(&self.route, &self.jobs, &laid)).flatten();
        for keeping in self.jobs.iter().filter_map(Job::keeping) {
            let stays = |index: u16| staying.as_ref().is_some_and(|it| it.has(index));
            keeping.outputs().filter(|&index| !stays(index)).for_each(|it| want(&mut coming, it));
        }
        let comes = |index| coming.get(index) == Some(&true);
        let (mut parts, expected) = laid.parts(rows, comes, pool)?;
        resident::place(&self.route, &self.jobs, staying.as_ref(), &mut parts)?;
        drop(requests);
        self.staying = staying;
        Ok((parts, expected))
    }

    /// The requests that are on their way now, and the rows behind them.
    fn requests(&self) -> SmallVec<[&Admitted; 8]> {
        self.jobs.iter().map(|job| &job.admitted).chain(&self.padding).collect()
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
        let Finished { outcome, outputs, kept } = finished;
        match outcome {
            Outcome::Done(took) => {
                self.times.compute_infer += took.execute;
                self.times.compute_output += took.copy_out;
                match self.take_back(outputs, kept) {
                    Ok(()) => {
                        if let Some(rest) = self.next() {
                            rest.depart(SharedRows::default());
                        }
                    }
                    Err(error) => self.fail(&error),
                }
            }
            // Without what was to stay there may be room.
            Outcome::TooLarge(error) | Outcome::Failed(error)
                if error.is_out_of_memory() && self.staying.take().is_some() =>
            {
                resident::fell_back(&self.route, &self.jobs, Fallback::Memory);
                self.may_stay = false;
                self.depart(SharedRows::default());
            }
            Outcome::TooLarge(error) | Outcome::Failed(error)
                if error.is_out_of_memory() && self.jobs.len() > 1 =>
            {
                let second = self.jobs.split_off(self.jobs.len() / 2);
                self.later.push(second);
                self.depart(SharedRows::default());
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) if !error.is_lost() => {
                self.fail(&Error::Backend { detail: error.to_string() });
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) | Outcome::Unavailable(error) => {
                let error = self.unavailable(&error);
                self.fail(&error);
            }
            Outcome::Expired => self.fail(&Error::DeadlineExpired),
            Outcome::Cancelled => self.fail(&Error::Cancelled),
        }
    }

    /// Gives the requests that were on their way what has come back.
    fn take_back(
        &mut self,
        outputs: Vec<Option<Bytes>>,
        kept: Vec<(usize, DeviceSlice)>,
    ) -> Result<(), Error> {
        let faults = self.faults(&outputs);
        let mut outputs = self.split(outputs, kept)?.into_iter();
        self.fillers += self.padding.take().map_or(0, |padding| padding.batch_size);
        for (job, fault) in std::mem::take(&mut self.jobs).into_iter().zip(faults) {
            let outputs = outputs.next();
            match fault {
                Some(error) => self.failed.push((job, error)),
                None => {
                    self.back.push(job);
                    self.outputs.extend(outputs);
                }
            }
        }
        Ok(())
    }

    /// What the run has found to be the matter with each of the requests.
    fn faults(&self, returned: &[Option<Bytes>]) -> Vec<Option<Error>> {
        let mut first = 0;
        let fault = |job: &Job| {
            let rows = first..first + job.admitted.batch_size;
            first = rows.end;
            self.route.model.fault(&self.expected, rows, returned).map(of_model)
        };
        self.jobs.iter().map(fault).collect()
    }

    fn split(
        &mut self,
        outputs: Vec<Option<Bytes>>,
        mut kept: Vec<(usize, DeviceSlice)>,
    ) -> Result<Vec<Outputs>, Error> {
        let began = Timestamp::now();
        let expected = std::mem::take(&mut self.expected);
        let (shapes, returned) = (expected.shapes.clone(), outputs.clone());
        let tensors = self.route.model.outputs(expected, outputs);
        let tensors = tensors.map_err(|error| Error::Backend { detail: error.0 })?;
        let came = |index: usize| Some(tensors.get(index)?.as_ref()?.data.as_ptr());
        // A framework that brings an output itself has not written it where it was to be.
        let is_there = |index: usize| {
            let returned = returned.get(index).and_then(|data| Some(data.as_ref()?.as_ptr()));
            came(index).is_none_or(|data| returned == Some(data))
        };
        let stayed = kept.len();
        kept.retain(|(index, _)| is_there(*index));
        if kept.len() < stayed {
            resident::fell_back(&self.route, &self.jobs, Fallback::Shape);
        }
        // Of these only the run told the shape, or there was no room: whoever answers brings them to their
        // places.
        for job in &mut self.jobs {
            let late = resident::away(job).filter(|&index| {
                let index = usize::from(index);
                came(index).is_some() && !kept.iter().any(|(stays, _)| *stays == index)
            });
            let late: SmallVec<[u16; 2]> = late.collect();
            job.admitted.outputs.extend(late);
            job.admitted.outputs.sort_unstable();
        }
        if let Some(staying) = self.staying.take() {
            staying.hand_over(&self.jobs, kept)?;
        }
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return Ok(Vec::new());
        };
        let split = batch::split(&version.signature, &version.ragged, &self.requests(), &tensors);
        let split = split.map(|mut outputs| {
            outputs.truncate(self.jobs.len());
            resident::add_outputs(&self.jobs, &shapes, &version.signature, &mut outputs);
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

fn of_model(ResponseError { code, message }: ResponseError) -> Error {
    Error::Model { code, detail: message }
}
