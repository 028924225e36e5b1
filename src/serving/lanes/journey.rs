use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    Route,
    preparation::Ready,
    residence::Shortage,
    resident::{self, Staying},
    room,
};
use crate::{
    backend::{Batch, Expected, ResponseError},
    device::{
        DeviceError, DeviceSlice,
        streams::{self, BatchParts, Finished, Outcome, Refused},
    },
    inference::{Admitted, Error, Signature, Timestamp},
    memory::BufferPool,
    observe::{BatchTimes, Fallback},
    runtime::spawn,
    serving::{
        batch::{self, Outputs},
        execution::wanted,
        job::Job,
        padding::padding,
        rows::{SHARED_AHEAD_BYTES_MIN, SharedRows},
        version::LoadedVersion,
    },
};

/// A sealed batch on its way. Where the device has no memory for all of it, or where its requests turn out
/// to be of different shapes, they go in several parts, one after the other.
pub(super) struct Journey {
    route: Route,
    /// The tensors that the requests have, and those that the model gives.
    signature: Arc<Signature>,
    began: Timestamp,
    /// Whether it is of sequences: it goes on also when its clients have left, as one batch, and what stays
    /// of a request is its own.
    is_of_sequences: bool,
    /// The requests that are on their way now, and what is expected of their outputs.
    jobs: Vec<Job>,
    expected: Expected,
    /// Those that go after them, the next last.
    later: Vec<Vec<Job>>,
    /// Those that are back, with their outputs.
    back: Vec<(Job, Outputs)>,
    /// Those that could not be made ready, or in which the run found a fault.
    failed: Vec<(Job, Error)>,
    /// Their outputs that stay on the device, and whether any may.
    staying: Option<Staying>,
    may_stay: bool,
    /// What has nothing more kept on a device that has had no room for it.
    shortage: Option<Shortage>,
    /// Rows behind those that are on their way now, which belong to nobody, and how many there were in all.
    padding: Option<Admitted>,
    fillers: u32,
    times: BatchTimes,
    /// Takes it back, on the lanes' reactor and perhaps from within its queue.
    deliver: Box<dyn FnOnce(Back)>,
}

/// A batch that is back: what has run, or was to run together, with what came of it, and the requests that
/// fail by themselves.
pub struct Back {
    pub jobs: Vec<Job>,
    pub outcome: Result<Vec<Outputs>, Error>,
    pub failed: Vec<(Job, Error)>,
    /// Rows that belonged to nobody.
    pub fillers: u32,
    pub began: Timestamp,
    pub times: BatchTimes,
}

impl Back {
    /// Whose it is.
    pub fn version(&self) -> Option<Arc<LoadedVersion>> {
        let mut known = self.jobs.iter().chain(self.failed.iter().map(|(job, _)| job));
        known.next().map(|job| job.version.clone())
    }
}

impl Journey {
    /// That of these requests, which have the tensors of `signature`, beginning now, at `began`.
    pub fn new(
        route: Route,
        signature: Arc<Signature>,
        mut jobs: Vec<Job>,
        began: Timestamp,
        deliver: Box<dyn FnOnce(Back)>,
    ) -> Self {
        jobs.iter_mut().zip(0..).for_each(|(job, place)| job.place = place);
        Self {
            route,
            signature,
            is_of_sequences: false,
            deliver,
            began,
            jobs,
            expected: Expected::default(),
            later: Vec::new(),
            back: Vec::new(),
            failed: Vec::new(),
            staying: None,
            may_stay: true,
            shortage: None,
            padding: None,
            fillers: 0,
            times: BatchTimes::default(),
        }
    }

    /// With rows behind those of the requests, which belong to nobody.
    pub fn with_padding(mut self, padding: Option<Admitted>) -> Self {
        self.padding = padding;
        self
    }

    /// As one of sequences.
    pub fn of_sequences(mut self) -> Self {
        self.is_of_sequences = true;
        self
    }

    /// Makes the requests ready, each by itself, and brings those for which that went well into lanes, those
    /// together that become the same.
    pub async fn prepare(mut self) {
        let Route { fleet, model, .. } = self.route.clone();
        let jobs = std::mem::take(&mut self.jobs);
        let Ready { mut parts, failed } = fleet.preparation.ready(&model, jobs).await;
        parts.reverse();
        (self.later, self.failed) = (parts, failed);
        if let Some(journey) = self.next() {
            journey.depart();
        }
    }

    /// Puts the requests that are next together, and brings them into lanes.
    pub fn depart(mut self) {
        let rows = self.seal();
        self.depart_with(rows);
    }

    /// Brings the requests into lanes, with what of them is shared with other threads. That is completed in
    /// turns with other work if it takes its time.
    pub fn depart_with(mut self, mut rows: SharedRows) {
        while rows.is_soon_filled() {
            let Some((journey, error)) = self.submit(rows) else { return };
            let Some(rest) = journey.without(&error) else { return };
            self = rest;
            rows = self.seal();
        }
        spawn(&"putting a batch together", async move {
            rows.fill().await;
            if let Some((journey, error)) = self.submit(rows) {
                journey.fail(&error);
            }
        });
    }

    /// Gives the requests that are next their places in the server's own memory, if their device wants them
    /// there or they are large, and the rows behind them.
    fn seal(&mut self) -> SharedRows {
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return SharedRows::default();
        };
        let pool = &version.host.pool;
        if !self.is_of_sequences {
            self.padding = padding(&version.allowed_batch_sizes, &self.signature, &self.jobs);
        }
        let requests = self.requests();
        match self.route.wants_pinned() {
            true => SharedRows::seal_all(&self.signature, &requests, pool),
            false => SharedRows::seal(&self.signature, &requests, SHARED_AHEAD_BYTES_MIN, pool),
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
                self.end(None);
                None
            }
        }
    }

    /// Goes on without the requests that are on their way now, which fail. Those before them and those
    /// behind are none the worse for it.
    fn without(mut self, error: &Error) -> Option<Self> {
        if self.back.is_empty() && self.later.is_empty() {
            self.end(Some(error.clone()));
            return None;
        }
        let jobs = std::mem::take(&mut self.jobs);
        self.failed.extend(jobs.into_iter().map(|job| (job, error.clone())));
        self.next()
    }

    /// The same of what was on its way: goes on with what is left.
    pub fn fail(self, error: &Error) {
        if let Some(rest) = self.without(error) {
            rest.depart();
        }
    }

    /// Where its model has its memory of the host from.
    pub fn pool(&self) -> Option<BufferPool> {
        self.jobs.first().map(|job| job.version.host.pool.clone())
    }

    /// Whether all clients have left of what is on its way now.
    fn is_moot(&self) -> bool {
        !self.is_of_sequences && self.jobs.iter().all(|job| job.reply.is_abandoned())
    }

    fn lay_out(&mut self, shared: SharedRows) -> Result<(BatchParts, Expected), Error> {
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return Ok((BatchParts::default(), Expected::default()));
        };
        let (signature, pool) = (self.signature.clone(), &version.host.pool);
        let requests = self.requests();
        let inputs = batch::assemble(&signature, &version.ragged, &requests, shared, pool)?;
        let rows = requests.iter().map(|request| request.batch_size).sum();
        let mut coming = wanted(&signature, &requests);
        let mut wanted = coming.clone();
        let want = |outputs: &mut [bool], index: u16| {
            outputs.get_mut(usize::from(index)).into_iter().for_each(|wanted| *wanted = true);
        };
        self.jobs.iter().flat_map(resident::away).for_each(|index| want(&mut wanted, index));
        let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool, places: None };
        let laid = self.route.model.lay_out(&batch);
        let laid = laid.map_err(of_model)?;
        let staying = || Staying::of(&self.route, &self.jobs, &laid, self.is_of_sequences);
        let staying = self.may_stay.then(staying).flatten();
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
        if self.is_of_sequences {
            return None;
        }
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
                            rest.depart();
                        }
                    }
                    Err(error) => self.fail(&error),
                }
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) if error.is_out_of_memory() => {
                self.found_no_memory(&error);
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) => {
                let error = self.of_device(&error);
                self.fail(&error);
            }
            Outcome::Unavailable(error) => {
                let error = self.unavailable(&error);
                self.fail(&error);
            }
            Outcome::Expired => self.fail(&Error::DeadlineExpired),
            Outcome::Cancelled => self.fail(&Error::Cancelled),
        }
    }

    /// Sends what was on its way again: without what was to stay, or once what others have left on the device
    /// has come to the host, or in halves. Where all of that is in vain it fails.
    fn found_no_memory(mut self, error: &DeviceError) {
        if self.staying.take().is_some() {
            resident::fell_back(&self.route, &self.jobs, Fallback::Memory);
            self.may_stay = false;
            return self.depart();
        }
        let fleet = self.route.fleet.clone();
        let device = error.out_of_memory_on();
        if let Some(residence) = device.and_then(|device| fleet.residence_on(device))
            && let Some(room) = fleet.driver.get().map(|driver| &driver.room)
            && room.can_be_made(residence)
        {
            self.shortage.get_or_insert_with(|| residence.shortage());
            return room::make(&fleet, residence, self);
        }
        if self.jobs.len() > 1 && !self.is_of_sequences {
            let second = self.jobs.split_off(self.jobs.len() / 2);
            self.later.push(second);
            return self.depart();
        }
        let error = self.of_device(error);
        self.fail(&error);
    }

    /// Gives the requests that were on their way what has come back.
    fn take_back(
        &mut self,
        outputs: Vec<Option<Bytes>>,
        kept: Vec<(usize, DeviceSlice)>,
    ) -> Result<(), Error> {
        let faults = self.faults(&outputs);
        let outputs = self.split(outputs, kept)?;
        self.fillers += self.padding.take().map_or(0, |padding| padding.batch_size);
        let jobs = std::mem::take(&mut self.jobs).into_iter();
        for ((job, outputs), fault) in jobs.zip(outputs).zip(faults) {
            match fault {
                Some(error) => self.failed.push((job, error)),
                None => self.back.push((job, outputs)),
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
            staying.hand_over(&self.route, &self.jobs, kept)?;
        }
        let Some(version) = self.jobs.first().map(|job| job.version.clone()) else {
            return Ok(Vec::new());
        };
        let split = batch::split(&self.signature, &version.ragged, &self.requests(), &tensors);
        let split = split.map(|mut outputs| {
            outputs.truncate(self.jobs.len());
            resident::add_outputs(&self.jobs, &shapes, &self.signature, &mut outputs);
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

    /// What its requests are told when a device has failed.
    pub fn of_device(&self, error: &DeviceError) -> Error {
        match error.is_lost() {
            true => self.unavailable(error),
            false => Error::Backend { detail: error.to_string() },
        }
    }

    fn unavailable(&self, error: &DeviceError) -> Error {
        self.route.fleet.heed(error);
        let version = self.jobs.first().map(|job| &job.version);
        let model = version.map(|version| version.name.to_string()).unwrap_or_default();
        Error::ModelUnavailable { model, reason: error.to_string() }
    }

    /// Hands the requests back, as one batch again: those that are back and those that failed. With an `error`
    /// those that were on their way have it, and none is back.
    fn end(self, error: Option<Error>) {
        let Self { began, mut jobs, mut back, mut failed, fillers, mut times, deliver, .. } = self;
        // Those of one shape went together, wherever they were in the batch.
        back.sort_by_key(|(job, _)| job.place);
        failed.sort_by_key(|(job, _)| job.place);
        let outcome = match error {
            Some(error) => Err(error),
            None => {
                let (back, outputs) = back.into_iter().unzip();
                jobs = back;
                Ok(outputs)
            }
        };
        // What the batch waited for, between its stages too, is time before the run.
        let whole = Timestamp::now() - began;
        times.compute_input = whole.saturating_sub(times.compute_infer + times.compute_output);
        deliver(Back { jobs, outcome, failed, fillers, began, times });
    }
}

pub(super) fn of_model(ResponseError { code, message }: ResponseError) -> Error {
    Error::Model { code, detail: message }
}
