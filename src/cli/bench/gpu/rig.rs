use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    args::{GpuArgs, Kind},
    model::Synthetic,
    overlap::Combination,
};
use crate::{
    device::{
        Device, DeviceError,
        cuda::{self, CudaDevice, CudaSettings, CudaUnavailable, PinnedMemory},
        host::{HostDevice, HostSettings, Link, Simulation, SimulationSettings},
        streams::{
            BatchParts, Completion, Finished, Job, Lanes, ModelPlan, Outcome, OutputPart, Place,
            Refused, SchedulerSettings, Times,
        },
    },
    inference::Timestamp,
    memory::{BufferPool, Exhausted},
};

/// Batches that are sent alone to learn what each stage takes.
const ALONE: u32 = 5;
/// How long a batch may take before it is taken for lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GpuBenchError {
    /// There are no GPUs.
    #[error("no GPU can be measured: {0}")]
    NoCuda(#[from] CudaUnavailable),
    /// There are fewer GPUs than asked for.
    #[error("{wanted} GPUs are asked for, {found} can be used")]
    TooFew {
        /// Asked for.
        wanted: usize,
        /// There.
        found: usize,
    },
    /// A device refuses.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A batch was not taken.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no memory for the batches.
    #[error("no memory for the batches: {0}")]
    Memory(#[from] Exhausted),
    /// The system refuses threads or memory.
    #[error("the system refuses threads or memory: {0}")]
    System(#[from] io::Error),
    /// A batch failed.
    #[error("a batch ended with {0:?}")]
    Failed(Outcome),
    /// What came back is not what the model computes.
    #[error("a batch's output is not its input, which the synthetic model passes on")]
    WrongOutput,
    /// A copy gave other bytes.
    #[error("what was copied to a device and back is not what it was")]
    WrongCopy,
    /// The kernels cannot be read.
    #[error("the kernels '{path}' cannot be read: {source}")]
    Kernels {
        /// Where they should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The figures cannot be written.
    #[error("'{path}' cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing happened for a while.
    #[error("no batch ended for {} s", PATIENCE.as_secs())]
    Stuck,
}

/// The GPUs of this machine.
///
/// # Errors
/// When there are none, or the kernels that are to run there cannot be read.
pub(super) fn gpus(args: &GpuArgs) -> Result<Vec<Arc<CudaDevice>>, GpuBenchError> {
    let read = |path: &PathBuf| {
        let read = fs::read(path).map(Bytes::from);
        read.map_err(|source| GpuBenchError::Kernels { path: path.clone(), source })
    };
    let kernels = args.gpu_kernels.as_ref().map(read).transpose()?;
    Ok(cuda::open(&CudaSettings { kernels, ..CudaSettings::default() })?)
}

/// Devices to measure on.
pub(super) struct Opened {
    pub devices: Vec<Arc<dyn Device>>,
    /// For virtual time.
    pub simulation: Option<Simulation>,
    pub pinned: Vec<PinnedMemory>,
}

impl Opened {
    /// So many devices of a kind, for which the memory of `pool` is pinned where that makes a difference.
    pub fn open(
        args: &GpuArgs,
        kind: Kind,
        count: usize,
        pool: &BufferPool,
    ) -> Result<Self, GpuBenchError> {
        let (mut pinned, mut simulation) = (Vec::new(), None);
        let settings = |index| {
            let link =
                Link { latency: Duration::ZERO, bytes_per_second: args.link_bytes_per_second };
            HostSettings {
                index,
                memory_bytes: 8 << 30,
                copy_in: Some(link),
                copy_out: Some(link),
                ..HostSettings::default()
            }
        };
        let devices: Vec<Arc<dyn Device>> = match kind {
            Kind::Cuda => {
                let found = gpus(args)?;
                if found.len() < count {
                    return Err(GpuBenchError::TooFew { wanted: count, found: found.len() });
                }
                // Registered once it is pinned for all devices.
                match found.first().map(|device| device.pin(pool)) {
                    Some(Ok(memory)) => pinned.push(memory),
                    Some(Err(error)) => {
                        println!("memory is not pinned, copies are slower: {error}");
                    }
                    None => {}
                }
                found.into_iter().take(count).map(|device| device as Arc<dyn Device>).collect()
            }
            Kind::Host => (0..count)
                .map(|index| Ok(Arc::new(HostDevice::start(settings(index))?) as Arc<dyn Device>))
                .collect::<io::Result<_>>()?,
            Kind::Virtual => {
                let simulated = simulation.insert(Simulation::new(SimulationSettings::default()));
                let device = |index| Arc::new(simulated.device(settings(index))) as Arc<dyn Device>;
                (0..count).map(device).collect()
            }
        };
        Ok(Self { devices, simulation, pinned })
    }

    /// The first of them, for what measures one alone.
    pub fn first(&self) -> Result<&Arc<dyn Device>, GpuBenchError> {
        self.devices.first().ok_or(GpuBenchError::TooFew { wanted: 1, found: 0 })
    }
}

/// Lanes with models in them, and what brings the news.
pub(super) struct Rig {
    lanes: Lanes,
    models: Vec<usize>,
    news: Receiver<Completion>,
    pool: BufferPool,
    input: Bytes,
    /// Batches that are sent and have not ended, at most.
    window: usize,
    devices: Vec<Arc<dyn Device>>,
    /// For virtual time.
    simulation: Option<Simulation>,
    _pinned: Vec<PinnedMemory>,
}

impl Rig {
    pub fn open(
        args: &GpuArgs,
        kind: Kind,
        combination: Combination,
    ) -> Result<Self, GpuBenchError> {
        let Combination { devices, models, lanes, bytes } = combination;
        // Enough to keep every lane busy and as many waiting, and the one input that all share.
        let window = 2 * devices * models * lanes;
        let arena = bytes.next_power_of_two().max(4096) * (window + 2);
        let pool = BufferPool::new(arena, arena.saturating_mul(2))?;
        let mut input = pool.allocate(bytes)?;
        input.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
        let Opened { devices: opened, simulation, pinned } =
            Opened::open(args, kind, devices, &pool)?;
        let (tell, news): (Sender<Completion>, _) = channel();
        // Nobody waits for news when the rig is gone.
        let notify = Arc::new(move |completion| tell.send(completion).unwrap_or_default());
        let scheduler =
            SchedulerSettings { waiting_max: usize::MAX, ..SchedulerSettings::default() };
        let mut rig = Self {
            lanes: Lanes::new(scheduler, opened.clone(), notify),
            models: Vec::new(),
            news,
            input: input.freeze(),
            pool,
            window,
            devices: opened.clone(),
            simulation,
            _pinned: pinned,
        };
        for _ in 0..models {
            let instances = opened
                .iter()
                .enumerate()
                .map(|(device, there)| {
                    let model = Synthetic::load(&**there, args.execute(bytes))?;
                    Ok((Place { device, lanes }, model))
                })
                .collect::<Result<_, DeviceError>>()?;
            let plan = ModelPlan { name: "synthetic".into(), share: 1.0, graphs: false, instances };
            rig.models.push(rig.lanes.add_model(plan)?);
        }
        Ok(rig)
    }

    /// What each stage takes when nothing else runs, after one batch to warm up.
    pub fn stages_alone(&mut self) -> Result<Times, GpuBenchError> {
        self.single()?;
        let mut sum = Times::default();
        for _ in 0..ALONE {
            let times = self.single()?;
            sum.copy_in += times.copy_in;
            sum.execute += times.execute;
            sum.copy_out += times.copy_out;
        }
        Ok(Times {
            copy_in: sum.copy_in / ALONE,
            execute: sum.execute / ALONE,
            copy_out: sum.copy_out / ALONE,
        })
    }

    fn single(&mut self) -> Result<Times, GpuBenchError> {
        let (tell, told) = channel();
        self.submit(0, move |finished| tell.send(finished).unwrap_or_default())?;
        let finished = loop {
            match told.try_recv() {
                Ok(finished) => break finished,
                Err(_) => self.go_on()?,
            }
        };
        match finished.outcome {
            Outcome::Done(times) if finished.outputs == [Some(self.input.clone())] => Ok(times),
            Outcome::Done(_) => Err(GpuBenchError::WrongOutput),
            outcome => Err(GpuBenchError::Failed(outcome)),
        }
    }

    /// Has every lane take its memory.
    pub fn fill_lanes(&mut self) -> Result<(), GpuBenchError> {
        // All wait before the first has been heard of.
        self.send(self.window).map(drop)
    }

    /// Sends batches to the models in turn, with always enough of them waiting; tells how long they
    /// took.
    pub fn send(&mut self, batches: usize) -> Result<Duration, GpuBenchError> {
        let ended = Arc::new(AtomicUsize::new(0));
        let (fail, failed) = channel();
        let began = self.now();
        let mut sent = 0;
        loop {
            let done = ended.load(Ordering::Relaxed);
            if let Ok(outcome) = failed.try_recv() {
                return Err(GpuBenchError::Failed(outcome));
            }
            if done == batches {
                return Ok(self.now() - began);
            }
            if sent == batches || sent - done == self.window {
                self.go_on()?;
                continue;
            }
            let (ended, fail) = (ended.clone(), fail.clone());
            self.submit(sent, move |Finished { outcome, .. }| {
                ended.fetch_add(1, Ordering::Relaxed);
                if !matches!(outcome, Outcome::Done(_)) {
                    fail.send(outcome).unwrap_or_default();
                }
            })?;
            sent += 1;
        }
    }

    fn submit(
        &mut self,
        batch: usize,
        done: impl FnOnce(Finished) + 'static,
    ) -> Result<(), GpuBenchError> {
        let job = Job {
            model: self.models.get(batch % self.models.len().max(1)).copied().unwrap_or_default(),
            parts: BatchParts {
                rows: 1,
                inputs: vec![self.input.clone()],
                outputs: vec![OutputPart::Comes(self.pool.allocate(self.input.len())?)],
                ..BatchParts::default()
            },
            priority: 0,
            deadline: None,
            is_moot: Box::new(|| false),
            done: Box::new(done),
        };
        let now = self.now();
        self.lanes.submit(job, now)?;
        Ok(())
    }

    /// Waits for the next news, or makes them.
    fn go_on(&mut self) -> Result<(), GpuBenchError> {
        let news = match &self.simulation {
            Some(simulation) => {
                let news = self.news.try_recv();
                if news.is_err() && !simulation.step() {
                    return Err(GpuBenchError::Stuck);
                }
                news.ok()
            }
            None => Some(self.news.recv_timeout(PATIENCE).map_err(|_| GpuBenchError::Stuck)?),
        };
        if let Some(completion) = news {
            let now = self.now();
            self.lanes.completed(&completion, now);
        }
        Ok(())
    }

    /// What is free of the devices' memory.
    pub fn free_bytes(&self) -> usize {
        self.devices.iter().map(|device| device.free_bytes()).sum()
    }

    fn now(&self) -> Timestamp {
        self.simulation.as_ref().map_or_else(Timestamp::now, Simulation::now)
    }
}
