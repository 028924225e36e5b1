use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    batch::{self, Outputs},
    job::Job,
    respond,
    rows::SharedRows,
    version::LoadedVersion,
};
use crate::{
    backend::{
        BackendError, Batch, Instance, ModelInstance, ModelRequest, NearBatch, NearInstance,
        RequestInstance,
    },
    inference::{Admitted, Error, Signature, Timestamp},
    memory::{BufferPool, OutputPlaces},
    observe::BatchTimes,
    repository::Ragged,
    runtime::ReactorHandle,
};

/// A batch that is to run: nobody joins or leaves it any more.
pub struct SealedBatch {
    /// Its requests, in the order of their rows.
    pub jobs: Vec<Job>,
    /// Rows behind theirs that belong to nobody.
    pub padding: Option<Admitted>,
    /// What other threads help to put together.
    pub rows: SharedRows,
    /// Its place among the batches of its queue.
    pub ticket: u64,
}

/// A batch that has run, on its way back to the requests' clients.
pub struct Executed {
    ran: Ran,
    began: Timestamp,
    times: BatchTimes,
    ticket: u64,
    /// Requests of the batch that did not run with the others, for what is the matter with them, in the
    /// order of their places.
    failed: Vec<(Job, Error)>,
}

/// How a batch has run.
pub enum Ran {
    /// As a whole, with so many rows beside those of its requests.
    Batch { jobs: Vec<Job>, outcome: Result<Vec<Outputs>, Error>, fillers: u32 },
    /// Request by request: the model answers them.
    Requests { version: Arc<LoadedVersion>, rows: u32, count: u64 },
}

/// Runs a batch on an instance, on the calling thread, beginning now, at `began`. A panic inside the
/// back end fails the batch and nothing else. The batch is counted on the reactor `home`.
pub fn execute(
    instance: &mut ModelInstance,
    batch: SealedBatch,
    home: &ReactorHandle,
    began: Timestamp,
) -> Executed {
    let SealedBatch { jobs, padding, rows, ticket } = batch;
    let mut times = BatchTimes::default();
    let ran = match instance {
        ModelInstance::Batches(instance) => {
            let padding = padding.as_ref();
            let outcome = run_jobs(&mut **instance, &jobs, padding, rows, began, &mut times);
            let fillers = padding.map_or(0, |padding| padding.batch_size);
            Ran::Batch { jobs, outcome, fillers }
        }
        ModelInstance::Requests(instance) => {
            hand_over(&mut **instance, jobs, home, began, &mut times)
        }
    };
    Executed { ran, began, times, ticket, failed: Vec::new() }
}

/// Gives the requests to an instance that answers them itself.
pub fn hand_over(
    instance: &mut dyn RequestInstance,
    jobs: Vec<Job>,
    home: &ReactorHandle,
    began: Timestamp,
    times: &mut BatchTimes,
) -> Ran {
    let Some(version) = jobs.first().map(|job| Arc::clone(&job.version)) else {
        return Ran::Batch { jobs, outcome: Ok(Vec::new()), fillers: 0 };
    };
    let rows = jobs.iter().map(|job| job.admitted.batch_size).sum();
    let count = jobs.len() as u64;
    let requests = respond::requests(jobs, home, &Arc::new(Began::new(began)));
    let ran = catch_unwind(AssertUnwindSafe(|| instance.execute(requests, &version.host)));
    if let Err(panic) = ran {
        // Its responders are dropped, which answers the requests.
        log::error!("model '{}': {}", version.name, describe(&*panic));
    }
    times.compute_infer = Timestamp::now() - began;
    Ran::Requests { version, rows, count }
}

/// A batch that was handed over, perhaps with others.
struct Handed {
    version: Arc<LoadedVersion>,
    rows: u32,
    count: u64,
    ticket: u64,
    began: Arc<Began>,
}

impl Handed {
    /// Makes requests of a batch that begins at `now`; `None` when it has none.
    fn of(
        batch: SealedBatch,
        home: &ReactorHandle,
        now: Timestamp,
    ) -> Option<(Self, Vec<ModelRequest>)> {
        let SealedBatch { jobs, ticket, .. } = batch;
        let version = jobs.first().map(|job| Arc::clone(&job.version))?;
        let rows = jobs.iter().map(|job| job.admitted.batch_size).sum();
        let (count, began) = (jobs.len() as u64, Arc::new(Began::new(now)));
        let requests = respond::requests(jobs, home, &began);
        Some((Self { version, rows, count, ticket, began }, requests))
    }

    fn ended(self, now: Timestamp) -> (Arc<LoadedVersion>, Executed) {
        let Self { version, rows, count, ticket, began } = self;
        let began = began.at();
        let times = BatchTimes { compute_infer: now - began, ..BatchTimes::default() };
        let ran = Ran::Requests { version: version.clone(), rows, count };
        (version, Executed { ran, began, times, ticket, failed: Vec::new() })
    }
}

/// Gives batches to an instance that answers their requests itself, to be run one after the other. What
/// came of each goes to `done` when it has run.
pub fn hand_over_series(
    instance: &mut dyn RequestInstance,
    series: Vec<SealedBatch>,
    home: &ReactorHandle,
    mut done: impl FnMut(Arc<LoadedVersion>, Executed),
) {
    let now = Timestamp::now();
    let (mut waiting, mut requests) = (VecDeque::new(), Vec::with_capacity(series.len()));
    for batch in series {
        let Some((handed, its)) = Handed::of(batch, home, now) else { continue };
        requests.push(its);
        waiting.push_back(handed);
    }
    let Some(version) = waiting.front().map(|first| first.version.clone()) else { return };
    let mut ended = || {
        let Some(first) = waiting.pop_front() else { return };
        let now = Timestamp::now();
        if let Some(next) = waiting.front() {
            next.began.set(now);
        }
        let (version, executed) = first.ended(now);
        done(version, executed);
    };
    let ran = catch_unwind(AssertUnwindSafe(|| {
        instance.execute_series(requests, &version.host, &mut ended);
    }));
    if let Err(panic) = ran {
        // Its responders are dropped, which answers the requests.
        log::error!("model '{}': {}", version.name, describe(&*panic));
    }
    let now = Timestamp::now();
    for left in waiting {
        let (version, executed) = left.ended(now);
        done(version, executed);
    }
}

/// Gives a batch to an instance that its home reactor, which this is, hears itself.
pub fn begin(instance: &dyn NearInstance, batch: SealedBatch, home: &ReactorHandle) {
    let Some((handed, requests)) = Handed::of(batch, home, Timestamp::now()) else { return };
    instance.begin(requests, Box::new(HandedHome { handed, home: home.clone() }));
}

/// A batch that its home has handed over itself.
struct HandedHome {
    handed: Handed,
    home: ReactorHandle,
}

impl NearBatch for HandedHome {
    fn begins(&self) {
        self.handed.began.set(Timestamp::now());
    }

    fn ended(self: Box<Self>) {
        let Self { handed, home } = *self;
        let (version, executed) = handed.ended(Timestamp::now());
        if home.is_current() {
            return version.executed(executed);
        }
        if home.send(Box::new(move || version.executed(executed))).is_err() {
            log::debug!("a batch ended after its reactor had");
        }
    }
}

/// When a batch began. One that was handed over with others begins when the one before it has ended.
#[derive(Debug)]
pub struct Began(AtomicU64);

impl Began {
    /// A batch that begins at `at`, as far as is known.
    pub fn new(at: Timestamp) -> Self {
        Self(AtomicU64::new(at.as_nanos()))
    }

    /// The time.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Corrects it.
    fn set(&self, at: Timestamp) {
        self.0.store(at.as_nanos(), Ordering::Relaxed);
    }
}

/// What came of a request that was run by itself.
pub struct RanAlone {
    /// Its outputs.
    pub outcome: Result<Outputs, Error>,
    /// How long it took.
    pub times: BatchTimes,
}

impl RanAlone {
    /// Runs it, on the calling thread, beginning now, at `began`. Its client may want the outputs in `places`.
    pub fn of(
        instance: &mut dyn Instance,
        version: &LoadedVersion,
        request: &Admitted,
        places: Option<&Arc<OutputPlaces>>,
        began: Timestamp,
    ) -> Self {
        let site = RunSite::of(version, places);
        let mut times = BatchTimes::default();
        let ran = run(instance, &site, &[request], SharedRows::default(), began, &mut times);
        let outcome = ran.and_then(|mut all| all.pop().ok_or_else(Error::unanswered));
        Self { outcome, times }
    }
}

fn run_jobs(
    instance: &mut dyn Instance,
    jobs: &[Job],
    padding: Option<&Admitted>,
    shared: SharedRows,
    began: Timestamp,
    times: &mut BatchTimes,
) -> Result<Vec<Outputs>, Error> {
    let Some(version) = jobs.first().map(|job| &job.version) else { return Ok(Vec::new()) };
    let requests: SmallVec<[&Admitted; 8]> =
        jobs.iter().map(|job| &job.admitted).chain(padding).collect();
    let places = match jobs {
        [alone] if padding.is_none() => alone.output_places(),
        _ => None,
    };
    let site = RunSite::of(version, places);
    let mut outputs = run(instance, &site, &requests, shared, began, times)?;
    outputs.truncate(jobs.len());
    Ok(outputs)
}

/// What a run needs besides its requests.
pub struct RunSite<'a> {
    /// The tensors that the requests have, and those that the model gives.
    pub signature: &'a Signature,
    /// How requests of different shapes share a batch.
    pub ragged: &'a Ragged,
    /// Where to take memory from.
    pub pool: &'a BufferPool,
    /// Where outputs are to go, if there is one request and its client has said so.
    pub places: Option<&'a Arc<OutputPlaces>>,
}

impl<'a> RunSite<'a> {
    fn of(version: &'a LoadedVersion, places: Option<&'a Arc<OutputPlaces>>) -> Self {
        let LoadedVersion { ragged, host, .. } = version;
        Self { signature: &version.signature, ragged, pool: &host.pool, places }
    }
}

/// Puts the requests together, runs them and takes the outputs apart again.
///
/// # Errors
/// When memory is used up, or the back end fails.
pub fn run(
    instance: &mut dyn Instance,
    site: &RunSite<'_>,
    requests: &[&Admitted],
    shared: SharedRows,
    began: Timestamp,
    times: &mut BatchTimes,
) -> Result<Vec<Outputs>, Error> {
    let RunSite { signature, ragged, pool, places } = *site;
    let inputs = batch::assemble(signature, ragged, requests, shared, pool)?;
    let assembled = Timestamp::now();
    times.compute_input = assembled - began;

    let wanted = wanted(signature, requests);
    let rows = requests.iter().map(|request| request.batch_size).sum();
    let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool, places };
    let outputs = catch_unwind(AssertUnwindSafe(|| instance.execute(&batch)))
        .unwrap_or_else(|panic| Err(BackendError(describe(&*panic))));
    let ran = Timestamp::now();
    times.compute_infer = ran - assembled;
    let outputs = outputs.map_err(|error| failure(instance, signature, error))?;

    let responses = batch::split(signature, ragged, requests, &outputs)?;
    times.compute_output = Timestamp::now() - ran;
    Ok(responses)
}

/// For each output of the signature, whether any of the requests asks for it.
pub fn wanted(signature: &Signature, requests: &[&Admitted]) -> SmallVec<[bool; 4]> {
    (0..signature.outputs.len())
        .map(|index| requests.iter().any(|request| request.outputs.contains(&(index as u16))))
        .collect()
}

/// What a run that failed is to its clients.
fn failure(instance: &dyn Instance, signature: &Signature, error: BackendError) -> Error {
    match instance.device().and_then(|device| device.lost()) {
        Some(lost) => {
            let (model, reason) = (signature.model.to_string(), lost.to_string());
            Error::ModelUnavailable { model, reason }
        }
        None => Error::Backend { detail: error.0 },
    }
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the back end panicked: {}", text.unwrap_or("no message"))
}

impl Executed {
    /// A batch that began at `began` and has run.
    pub fn new(ran: Ran, began: Timestamp, times: BatchTimes) -> Self {
        Self { ran, began, times, ticket: 0, failed: Vec::new() }
    }

    /// A batch of these requests, at `ticket` among those of its queue, that began at `began`.
    pub fn batch(
        jobs: Vec<Job>,
        ticket: u64,
        outcome: Result<Vec<Outputs>, Error>,
        began: Timestamp,
        times: BatchTimes,
    ) -> Self {
        let ran = Ran::Batch { jobs, outcome, fillers: 0 };
        Self { ran, began, times, ticket, failed: Vec::new() }
    }

    /// With requests of the batch that fail, whatever became of the others. Those and these are in the order
    /// of their places.
    pub fn with_failed(mut self, failed: Vec<(Job, Error)>) -> Self {
        self.failed = failed;
        self
    }

    /// With so many rows that belonged to nobody.
    pub fn with_fillers(mut self, rows: u32) -> Self {
        if let Ran::Batch { fillers, .. } = &mut self.ran {
            *fillers = rows;
        }
        self
    }

    /// A batch that did not run, because all its clients have left.
    pub fn cancelled(batch: SealedBatch) -> Self {
        let (outcome, now) = (Err(Error::Cancelled), Timestamp::now());
        Self::batch(batch.jobs, batch.ticket, outcome, now, BatchTimes::default())
    }

    /// Its place among the batches of its queue.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// How long the model took; zero when it did not run.
    pub fn compute_infer(&self) -> Duration {
        self.times.compute_infer
    }

    /// The rows of its requests.
    pub fn rows(&self) -> u32 {
        match &self.ran {
            Ran::Batch { jobs, .. } => jobs.iter().map(|job| job.admitted.batch_size).sum(),
            Ran::Requests { rows, .. } => *rows,
        }
    }

    /// How long all of it took; `None` when it failed.
    pub fn took(&self) -> Option<Duration> {
        match &self.ran {
            Ran::Batch { outcome: Err(_), .. } => None,
            _ => Some(self.ended() - self.began),
        }
    }

    /// Whether it took at most `quick`, on an instance that can be told of several batches at once.
    pub fn is_quick(&self, quick: Duration) -> bool {
        matches!(self.ran, Ran::Requests { .. }) && self.times.compute_infer < quick
    }

    /// When the last output was there; when it began, if it failed.
    pub fn ended(&self) -> Timestamp {
        self.began + self.times.total()
    }

    /// Answers every request of the batch, in the order of their places, and counts it, now, at `now`. Runs on
    /// reactor `reactor`.
    pub fn answer(self, reactor: usize, now: Timestamp) {
        let Self { ran, began, times, failed, .. } = self;
        let mut failed = failed.into_iter().peekable();
        let mut fail_before = |place: u32| {
            while let Some((job, error)) = failed.next_if(|(job, _)| job.place < place) {
                job.fail(reactor, error);
            }
        };
        let (jobs, outcome, fillers) = match ran {
            Ran::Batch { jobs, outcome, fillers } => (jobs, outcome, fillers),
            Ran::Requests { version, rows, count } => {
                return version.statistics.executed(reactor, (rows, 0), count, times, now);
            }
        };
        let responses = match outcome {
            Ok(responses) => responses,
            Err(error) => {
                for job in jobs {
                    fail_before(job.place);
                    job.fail(reactor, error.clone());
                }
                return fail_before(u32::MAX);
            }
        };
        let rows = jobs.iter().map(|job| job.admitted.batch_size).sum();
        if let Some(first) = jobs.first() {
            let count = jobs.len() as u64;
            first.version.statistics.executed(reactor, (rows, fillers), count, times, now);
        }
        for (job, outputs) in jobs.into_iter().zip(responses) {
            fail_before(job.place);
            job.answer(outputs, began, times, reactor, now);
        }
        fail_before(u32::MAX);
    }
}
