//! The scheduler and its lanes on simulated devices. A millisecond of copying is 1000 bytes here, so
//! that real bytes can be moved in every run.

mod faults;
mod kept;
mod overload;
mod places;
mod results;
mod steady;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;
use crate::{
    device::{
        Argument, Destination, Device, DeviceError, HostArgument, Kernel, KernelSource,
        LibraryMemory, Stream, Visit,
        host::{HostDevice, HostSettings, Link, Simulation, SimulationSettings},
    },
    inference::Timestamp,
    memory::BufferPool,
};

const LINK: Link = Link { latency: Duration::ZERO, bytes_per_second: 1e6 };

/// A host device with links of 1000 bytes in a millisecond.
fn linked(index: usize) -> HostSettings {
    HostSettings { index, copy_in: Some(LINK), copy_out: Some(LINK), ..HostSettings::default() }
}

/// A model whose outputs are its input's bytes, inverted, over and over.
struct Inverting {
    kernel: Kernel,
    fixed: Duration,
    per_row: Duration,
}

fn inverting(device: &dyn Device, fixed: Duration, per_row: Duration) -> Runner {
    let source = KernelSource {
        name: "invert".into(),
        image: None,
        twin: Some(Arc::new(|_, arguments| {
            let [HostArgument::Read(input), HostArgument::Write(output)] = arguments else {
                return Err("expected an input and an output".to_owned());
            };
            for (to, from) in output.iter_mut().zip(input.iter().cycle()) {
                *to = !from;
            }
            Ok(())
        })),
    };
    let model = Inverting { kernel: device.kernel(&source).unwrap(), fixed, per_row };
    Runner::open(device, Box::new(model)).unwrap()
}

impl Compute for Inverting {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let mut launch = self.kernel.launch([1; 3], [1; 3]);
        launch.cost = self.fixed + self.per_row * batch.rows;
        let input = Argument::Read(batch.inputs[0].clone());
        stream.launch(launch.with(input).with(Argument::Write(batch.outputs[0].clone())))
    }
}

/// The same as work of a library's.
struct Visiting;

impl Compute for Visiting {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let (input, output) = (batch.inputs[0].clone(), batch.outputs[0].clone());
        let (reads, writes) = (vec![input.clone()], vec![output.clone()]);
        let work = Box::new(move |visited: &mut dyn crate::device::Visited| {
            let first = std::ptr::with_exposed_provenance::<u8>(input.address() as usize);
            // SAFETY: the visit reads these bytes of a device of the host.
            let input = unsafe { std::slice::from_raw_parts(first, input.len()) };
            let made: Vec<u8> = input.iter().cycle().take(output.len()).map(|byte| !byte).collect();
            let address = made.as_ptr().expose_provenance() as u64;
            // SAFETY: the keeper holds the bytes, which have been written.
            let made = unsafe { LibraryMemory::new(address, made.len(), Box::new(made)) };
            visited.bring(made, Destination::Device(&output))
        });
        stream.visit(Visit { who: "a library".into(), reads, writes, work })
    }

    fn is_library(&self) -> bool {
        true
    }
}

/// A batch to be, with a number for the test.
#[derive(Clone, Copy)]
struct Plan {
    number: usize,
    model: usize,
    rows: u32,
    bytes_in: usize,
    bytes_out: usize,
    priority: u32,
    /// From its arrival on.
    deadline: Option<Duration>,
}

impl Plan {
    fn of(model: usize, bytes_in: usize, bytes_out: usize) -> Self {
        Self { number: 0, model, rows: 1, bytes_in, bytes_out, priority: 0, deadline: None }
    }
}

/// What became of one.
struct Ended {
    number: usize,
    model: usize,
    at: Timestamp,
    outcome: Outcome,
    outputs: Vec<Option<bytes::Bytes>>,
}

/// Lanes on simulated devices.
struct Rig {
    simulation: Simulation,
    devices: Vec<Arc<HostDevice>>,
    lanes: Lanes,
    news: Arc<Mutex<VecDeque<Completion>>>,
    arrivals: Arc<Mutex<VecDeque<Plan>>>,
    ended: Arc<Mutex<Vec<Ended>>>,
    /// Batches that nobody wants any more.
    unwanted: Arc<Mutex<BTreeSet<usize>>>,
    pool: BufferPool,
}

impl Rig {
    fn new(
        settings: SchedulerSettings,
        simulation: SimulationSettings,
        devices: Vec<HostSettings>,
    ) -> Self {
        let simulation = Simulation::new(simulation);
        let devices: Vec<_> =
            devices.into_iter().map(|settings| Arc::new(simulation.device(settings))).collect();
        let news = Arc::new(Mutex::new(VecDeque::new()));
        let told = news.clone();
        let notify: Notify = Arc::new(move |completion| told.lock().unwrap().push_back(completion));
        let handles = devices.iter().map(|device| device.clone() as Arc<dyn Device>).collect();
        Self {
            simulation,
            devices,
            lanes: Lanes::new(settings, handles, notify),
            news,
            arrivals: Arc::default(),
            ended: Arc::default(),
            unwanted: Arc::default(),
            pool: BufferPool::new(1 << 24, 1 << 30).unwrap(),
        }
    }

    /// Adds a model with an instance of so many lanes on every device.
    fn model(&mut self, share: f64, lanes: usize, fixed: Duration, per_row: Duration) -> usize {
        let instances =
            self.devices.iter().enumerate().map(|(device, there)| {
                (Place { device, lanes }, inverting(&**there, fixed, per_row))
            });
        let instances = instances.collect();
        let plan = ModelPlan { name: "m".into(), share, graphs: false, instances };
        self.lanes.add_model(plan).unwrap()
    }

    fn submit(&mut self, plan: Plan) -> Result<BatchId, Refused> {
        let now = self.simulation.now();
        let (ended, simulation) = (self.ended.clone(), self.simulation.clone());
        let Plan { number, model, rows, bytes_in, bytes_out, priority, deadline } = plan;
        let (byte, unwanted) = (number as u8, self.unwanted.clone());
        let job = Job {
            model,
            parts: BatchParts {
                rows,
                inputs: vec![vec![byte; bytes_in].into()],
                outputs: vec![OutputPart::Comes(self.pool.allocate(bytes_out).unwrap())],
                ..BatchParts::default()
            },
            priority,
            deadline: deadline.map(|deadline| now + deadline),
            is_moot: Box::new(move || unwanted.lock().unwrap().contains(&number)),
            done: Box::new(move |Finished { outcome, outputs, .. }| {
                let at = simulation.now();
                ended.lock().unwrap().push(Ended { number, model, at, outcome, outputs });
            }),
        };
        self.lanes.submit(job, now)
    }

    fn arrive(&self, at: Timestamp, plan: Plan) {
        let arrivals = self.arrivals.clone();
        self.simulation.call_at(at, move || arrivals.lock().unwrap().push_back(plan));
    }

    /// Goes on until nothing more happens; tells how many arrivals were refused.
    fn run(&mut self) -> usize {
        let mut refused = 0;
        loop {
            loop {
                let Some(completion) = self.news.lock().unwrap().pop_front() else { break };
                self.lanes.completed(&completion, self.simulation.now());
            }
            loop {
                let Some(plan) = self.arrivals.lock().unwrap().pop_front() else { break };
                refused += usize::from(self.submit(plan).is_err());
            }
            if !self.simulation.step() && self.news.lock().unwrap().is_empty() {
                return refused;
            }
        }
    }

    fn ended(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().unwrap())
    }

    fn elapsed(&self) -> Duration {
        self.simulation.now() - Timestamp::default()
    }

    /// That nothing is left: no batch, no operation, no memory.
    fn check_nothing_is_left(self) {
        assert_eq!(self.lanes.scheduler().load(), (0, 0));
        drop(self.ended());
        drop(self.lanes);
        for device in &self.devices {
            assert!(device.is_idle());
            assert_eq!(device.free_bytes(), device.properties().memory_bytes);
        }
        assert_eq!(self.pool.used(), 0);
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
