//! A whole server without its wires, whose model does what a test says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{Observers, Outline, Reply, Server, VersionSpec, sequences::SequenceSetup};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, Host, InlineFitness, Instance, Model, ModelInstance,
        Placement, PlacementDevice,
    },
    inference::{
        DataType, InferInput, InferRequest, Parameters, Shape, Signature, TensorSpec, Timestamp,
    },
    memory::{BufferPool, Regions},
    observe::{
        MetricsSettings, Totals,
        trace::{self, Tracer},
    },
    proto,
    repository::{DynamicBatching, SequenceBatching},
    runtime::{Reactors, ReplyReceiver, Topology, spawn, yield_now},
    scheduler::BatchingPolicy,
};

mod requests;
mod sequences;

const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a row: a few make a batch that is put together by several threads.
const ROW: usize = 256 << 10;

/// A server of one reactor with the model `m`, whose rows are `ROW` bytes in and out.
struct Stage {
    reactors: Reactors,
    server: Arc<Server>,
    /// What waits for an answer, by the first byte of its row.
    waiting: Arc<Mutex<BTreeMap<u8, Waiting>>>,
}

/// Told to give up, the request is dropped on its reactor.
type Waiting = Arc<AtomicBool>;

impl Stage {
    fn set(model: impl Model + 'static, dynamic: Option<DynamicBatching>) -> Self {
        Self::set_up(model, dynamic, proto::ModelConfig::default())
    }

    fn set_up(
        model: impl Model + 'static,
        dynamic: Option<DynamicBatching>,
        config: proto::ModelConfig,
    ) -> Self {
        Self::build(model, dynamic, config, None)
    }

    fn of_sequences(model: impl Model + 'static, batching: &SequenceBatching) -> Self {
        Self::build(model, None, proto::ModelConfig::default(), Some(batching))
    }

    fn build(
        model: impl Model + 'static,
        dynamic: Option<DynamicBatching>,
        config: proto::ModelConfig,
        sequences: Option<&SequenceBatching>,
    ) -> Self {
        let reactors = Reactors::of_test(1);
        let pool = BufferPool::new(64 << 20, 64 << 20).unwrap();
        let observers = Observers {
            tracer: Tracer::start(trace::Output::None, trace::Settings::default()).unwrap(),
            metrics: MetricsSettings::default(),
            gpus: None,
        };
        let server = Server::new(
            reactors.handles(),
            Topology::read().unwrap().reactor_cores(1).into(),
            pool,
            Regions::new(false),
            observers,
        );
        let tensor = |name| TensorSpec::new(name, DataType::Uint8, Shape::from([ROW as i64]));
        let signature = Signature {
            model: "m".into(),
            max_batch_size: 4,
            inputs: vec![tensor("IN")],
            outputs: vec![tensor("OUT")],
        };
        let sequences = sequences.map(|batching| {
            let none = std::path::Path::new("");
            Arc::new(SequenceSetup::new(batching, &signature, none).unwrap())
        });
        let outline = Outline {
            name: "m".into(),
            namespace: "".into(),
            version: 1,
            config: Arc::new(config),
            signature: Arc::new(signature),
            labels: Arc::default(),
            identity: None,
            began: Timestamp::now(),
            folder: None,
            agents: None,
        };
        let spec = VersionSpec {
            outline,
            sequences,
            allowed_batch_sizes: Vec::new(),
            policy: BatchingPolicy { max_batch_size: 4, dynamic },
            warm_ups: Vec::new(),
            placements: vec![Placement {
                name: "m_0".into(),
                device: PlacementDevice::Cpu,
                host_policy: "cpu".into(),
            }],
            rate_limits: Vec::new(),
            model: Arc::new(model),
        };
        let version = server.start(spec).unwrap();
        let id = crate::repository::ModelId { name: "m".into(), namespace: String::new() };
        server.replace(&id, [(1, version)].into());
        Self { reactors, server, waiting: Arc::default() }
    }

    /// Sends a request of one row filled with `value`, and returns where its answer will come.
    fn ask(&self, value: u8, priority: u64) -> mpsc::Receiver<Option<Reply>> {
        let (report, answer) = mpsc::channel();
        let (server, gives_up) = (self.server.clone(), Waiting::default());
        self.waiting.lock().unwrap().insert(value, gives_up.clone());
        let asking = move || {
            let shape = Shape::from([1, ROW as i64]);
            let input = InferInput::new("IN", DataType::Uint8, shape, vec![value; ROW]);
            let request = InferRequest {
                model_name: "m".into(),
                inputs: [input].into_iter().collect(),
                parameters: Parameters::default(),
                priority,
                ..InferRequest::default()
            };
            let received = server.infer(request, None).unwrap();
            spawn(&"a client", wait(received, gives_up, report));
        };
        self.reactors.handles()[0].send(Box::new(asking)).unwrap();
        answer
    }

    /// Lets the client of `value` leave.
    fn leave(&self, value: u8) {
        self.waiting.lock().unwrap()[&value].store(true, Ordering::Relaxed);
        self.come_to_rest();
    }

    /// Returns when the reactor has done what there was to do.
    fn come_to_rest(&self) {
        let (report, rested) = mpsc::channel();
        let resting = move || {
            spawn(&"a test", async move {
                for _ in 0..100 {
                    yield_now().await;
                }
                report.send(()).unwrap();
            });
        };
        self.reactors.handles()[0].send(Box::new(resting)).unwrap();
        rested.recv_timeout(PATIENCE).unwrap();
    }

    /// What was counted, once the reactor has come to rest.
    fn totals(&self) -> Totals {
        self.come_to_rest();
        self.server.version("m", "").unwrap().statistics.totals()
    }

    /// What was counted, once so many batches have: a thread that has answered counts them after.
    fn totals_after(&self, executions: u64) -> Totals {
        for _ in 0..1000 {
            let totals = self.totals();
            if totals.executions >= executions {
                return totals;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.totals()
    }

    fn end(self) {
        self.server.unload_all();
        self.reactors.stop();
    }
}

/// A client: waits for the answer until it is told to give up.
async fn wait(
    mut received: ReplyReceiver<Reply>,
    gives_up: Waiting,
    report: mpsc::Sender<Option<Reply>>,
) {
    let answer = std::future::poll_fn(|cx| {
        if gives_up.load(Ordering::Relaxed) {
            return std::task::Poll::Ready(None);
        }
        cx.waker().wake_by_ref();
        received.poll_receive(cx)
    });
    let answer = answer.await;
    drop(received);
    // The test may have lost its interest.
    let _ = report.send(answer);
}

/// A model that gives its input back, tells the rows of each batch, and waits to be let on.
struct Gate {
    told: mpsc::Sender<Vec<u8>>,
    let_on: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Gate {
    fn new() -> (Self, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
        let ((told, rows), (let_on, waits)) = (mpsc::channel(), mpsc::channel());
        (Self { told, let_on: Arc::new(Mutex::new(waits)) }, rows, let_on)
    }
}

impl Model for Gate {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        let gate = Self { told: self.told.clone(), let_on: self.let_on.clone() };
        Ok(ModelInstance::Batches(Box::new(gate)))
    }
}

impl Instance for Gate {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let rows = &batch.inputs[0].as_ref().unwrap().data;
        assert!(rows.chunks(ROW).all(|row| row.iter().all(|&byte| byte == row[0])));
        self.told.send(rows.chunks(ROW).map(|row| row[0]).collect()).unwrap();
        self.let_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Ok(batch.inputs.iter().cloned().collect())
    }
}

#[test]
fn a_full_batch_is_put_together_while_another_runs_and_no_other_is() {
    let (gate, rows, let_on) = Gate::new();
    let stage = Stage::set(gate, Some(DynamicBatching::default()));
    let pool = stage.server.pool().clone();
    let mut answers = vec![stage.ask(0, 0)];
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [0]);

    // Three of four rows: a fourth may come before the instance is free.
    answers.extend((1..4).map(|value| stage.ask(value, 0)));
    assert_eq!((stage.totals().pending, pool.used()), (3, 0));
    // The fourth comes; the ten after it find no lane.
    answers.extend((4..15).map(|value| stage.ask(value, 0)));
    assert_eq!((stage.totals().pending, pool.used()), (10, 4 * ROW));

    for expected in [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10, 11, 12], vec![13, 14]] {
        let_on.send(()).unwrap();
        assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), expected);
    }
    let_on.send(()).unwrap();
    for (value, answer) in answers.into_iter().enumerate() {
        let answer = answer.recv_timeout(PATIENCE).unwrap().unwrap().unwrap();
        assert!(answer.outputs[0].data.iter().all(|&byte| usize::from(byte) == value));
    }
    assert_eq!(stage.totals().executions, 5);
    stage.end();
}

#[test]
fn who_leaves_before_the_batch_is_sealed_is_not_in_it() {
    let (gate, rows, let_on) = Gate::new();
    let stage = Stage::set(gate, Some(DynamicBatching::default()));
    let _first = stage.ask(0, 0);
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [0]);
    let _others: Vec<_> = (1..4).map(|value| stage.ask(value, 0)).collect();
    assert_eq!(stage.totals().pending, 3);
    stage.leave(2);
    let _more: Vec<_> = (4..6).map(|value| stage.ask(value, 0)).collect();
    let totals = stage.totals();
    assert_eq!((totals.pending, totals.cancelled), (0, 1));
    let_on.send(()).unwrap();
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [1, 3, 4, 5]);
    let_on.send(()).unwrap();
    stage.end();
}

#[test]
fn a_sealed_batch_whose_clients_have_all_left_does_not_run() {
    let (gate, rows, let_on) = Gate::new();
    let stage = Stage::set(gate, Some(DynamicBatching::default()));
    let _first = stage.ask(0, 0);
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [0]);
    let _sealed: Vec<_> = (1..5).map(|value| stage.ask(value, 0)).collect();
    assert_eq!(stage.totals().pending, 0);
    (1..5).for_each(|value| stage.leave(value));
    let last = stage.ask(5, 0);
    assert_eq!(stage.totals().pending, 1);
    let_on.send(()).unwrap();
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [5]);
    let_on.send(()).unwrap();
    assert!(last.recv_timeout(PATIENCE).unwrap().unwrap().is_ok());
    let totals = stage.totals();
    assert_eq!((totals.cancelled, totals.executions), (4, 2));
    stage.end();
}

#[test]
fn what_is_urgent_goes_before_a_full_batch_that_is_not() {
    let (gate, rows, let_on) = Gate::new();
    let dynamic =
        DynamicBatching { priority_levels: 2, default_priority: 2, ..DynamicBatching::default() };
    let stage = Stage::set(gate, Some(dynamic));
    let _first = stage.ask(0, 0);
    assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), [0]);
    let _lesser: Vec<_> = (1..5).map(|value| stage.ask(value, 0)).collect();
    assert_eq!(stage.totals().pending, 4);
    let _urgent: Vec<_> = (5..9).map(|value| stage.ask(value, 1)).collect();
    assert_eq!(stage.totals().pending, 4);
    for expected in [[5, 6, 7, 8], [1, 2, 3, 4]] {
        let_on.send(()).unwrap();
        assert_eq!(rows.recv_timeout(PATIENCE).unwrap(), expected);
    }
    let_on.send(()).unwrap();
    stage.end();
}

/// How long a slow run takes.
const TIRED: Duration = Duration::from_micros(300);

/// A model that is fast when it is tried and slow from then on; it tells the threads that it ran on.
#[derive(Clone)]
struct Tired {
    fitness: InlineFitness,
    /// Whether it fails when it is slow.
    fails: bool,
    slow: Arc<AtomicBool>,
    on_reactors: Arc<AtomicUsize>,
    elsewhere: Arc<AtomicUsize>,
}

impl Model for Tired {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Batches(Box::new(self.clone())))
    }

    fn inline_fitness(&self) -> InlineFitness {
        self.fitness
    }
}

impl Instance for Tired {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        if self.slow.load(Ordering::Relaxed) {
            let began = Instant::now();
            while began.elapsed() < TIRED {
                std::hint::spin_loop();
            }
            let reactor = thread::current().name().is_some_and(|name| name.starts_with("reactor"));
            let ran = if reactor { &self.on_reactors } else { &self.elsewhere };
            ran.fetch_add(1, Ordering::Relaxed);
            if self.fails {
                return Err(BackendError("too tired".to_owned()));
            }
        }
        Ok(batch.inputs.iter().cloned().collect())
    }
}

#[test]
fn an_inline_model_that_has_become_slow_gets_a_thread_unless_it_is_always_inline() {
    let ways = [InlineFitness::IfFast, InlineFitness::Always].map(|it| [(it, false), (it, true)]);
    for (fitness, fails) in ways.into_iter().flatten() {
        let model = Tired {
            fitness,
            fails,
            slow: Arc::default(),
            on_reactors: Arc::default(),
            elsewhere: Arc::default(),
        };
        let stage = Stage::set(model.clone(), None);
        model.slow.store(true, Ordering::Relaxed);
        for _ in 0..100 {
            let answer = stage.ask(1, 0).recv_timeout(PATIENCE).unwrap();
            assert_eq!(answer.unwrap().is_err(), fails);
        }
        let Totals { success, fail, .. } = stage.totals();
        let (took, other) = if fails { (fail, success) } else { (success, fail) };
        assert!(took.nanos >= 100 * TIRED.as_nanos() as u64 && other.count == 0);
        let ran = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        assert_eq!(ran(&model.on_reactors) + ran(&model.elsewhere), 100);
        assert_eq!(ran(&model.elsewhere) > 0, fitness == InlineFitness::IfFast);
        stage.end();
    }
}
