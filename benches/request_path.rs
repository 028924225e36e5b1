//! The hot pieces of a gRPC request's way, each beside a twin that does the least that could do the
//! job: a copy of the bytes, an allocation of the same size, a hop through a channel.

use std::{
    hint::black_box,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nereid::{
    inference::{
        DataType, InferOutput, InferResponse, Parameters, Rope, Shape, Signature, TensorSpec,
    },
    ingress::grpc::{infer_request, infer_response},
    memory::{Buffer, BufferPool, Filler, Gather},
    proto,
    runtime::{DriverChoice, Mailbox, ReactorSettings, Reactors, Topology, reply_channel, spawn},
};
use prost::Message as _;

const SMALL: usize = 64;
const LARGE: usize = 600 << 10;

fn request(bytes: usize) -> Bytes {
    let input = proto::model_infer_request::InferInputTensor {
        name: "INPUT0".into(),
        datatype: "FP32".into(),
        shape: vec![(bytes / 4) as i64],
        ..Default::default()
    };
    let request = proto::ModelInferRequest {
        model_name: "identity".into(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from(vec![1; bytes])],
        ..Default::default()
    };
    request.encode_to_vec().into()
}

fn response(bytes: usize) -> InferResponse {
    let output = InferOutput {
        name: "OUTPUT0".into(),
        datatype: DataType::Fp32,
        shape: Shape::from([(bytes / 4) as i64]),
        data: Bytes::from(vec![1; bytes]),
    };
    InferResponse {
        model_name: "identity".into(),
        model_version: 1,
        id: "".into(),
        parameters: Parameters::default(),
        outputs: [output].into_iter().collect(),
    }
}

/// Reading a request, beside prost's own reading of the same message and a copy of its bytes.
fn decode(criterion: &mut Criterion) {
    let signature = Signature {
        model: "identity".into(),
        max_batch_size: 0,
        inputs: vec![TensorSpec::new("INPUT0", DataType::Fp32, Shape::from([-1]))],
        outputs: vec![TensorSpec::new("OUTPUT0", DataType::Fp32, Shape::from([-1]))],
    };
    for (name, bytes) in [("64 B", SMALL), ("600 KB", LARGE)] {
        let message = request(bytes);
        let mut group = criterion.benchmark_group(format!("gRPC request, {name}"));
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function("decode and admit", |bencher| {
            bencher.iter(|| {
                let mut request = infer_request(Rope::from(message.clone())).unwrap();
                black_box(signature.admit(&mut request).unwrap());
            });
        });
        group.bench_function("twin: prost", |bencher| {
            bencher.iter(|| black_box(proto::ModelInferRequest::decode(message.clone()).unwrap()));
        });
        group.bench_function("bound: memcpy", |bencher| {
            bencher.iter(|| black_box(message.to_vec()));
        });
    }
}

/// Writing a response, beside prost's own writing and a copy of its bytes.
fn encode(criterion: &mut Criterion) {
    for (name, bytes) in [("64 B", SMALL), ("600 KB", LARGE)] {
        let ours = response(bytes);
        let output = proto::model_infer_response::InferOutputTensor {
            name: "OUTPUT0".into(),
            datatype: "FP32".into(),
            shape: vec![(bytes / 4) as i64],
            ..Default::default()
        };
        let twin = proto::ModelInferResponse {
            model_name: "identity".into(),
            model_version: "1".into(),
            outputs: vec![output],
            raw_output_contents: vec![Bytes::from(vec![1; bytes])],
            ..Default::default()
        };
        let mut group = criterion.benchmark_group(format!("gRPC response, {name}"));
        group.bench_function("encode", |bencher| bencher.iter(|| black_box(infer_response(&ours))));
        group.bench_function("twin: prost", |bencher| {
            bencher.iter(|| black_box(twin.encode_to_vec()));
        });
        let message = twin.encode_to_vec();
        group.bench_function("bound: memcpy", |bencher| {
            bencher.iter(|| black_box(message.clone()));
        });
    }
}

/// Taking a batch buffer, filling a row and giving it back, beside the heap.
fn buffers(criterion: &mut Criterion) {
    let pool = BufferPool::new(64 << 20, 64 << 20).unwrap();
    for (name, bytes) in [("4 KB", 4 << 10), ("600 KB", LARGE)] {
        let row = vec![1_u8; bytes];
        let mut group = criterion.benchmark_group(format!("batch buffer, {name}"));
        group.bench_function("pool: allocate, fill, freeze, drop", |bencher| {
            bencher.iter(|| {
                let mut buffer = pool.allocate(bytes).unwrap();
                buffer.copy_from_slice(&row);
                black_box(buffer.freeze());
            });
        });
        group.bench_function("twin: heap", |bencher| {
            bencher.iter(|| black_box(Bytes::from(row.clone())));
        });
    }
}

/// Putting eight requests' rows together as a large batch's are, by the thread that runs it and by
/// one more, which is told of each batch through a channel; beside a copy of the same bytes.
fn rows(criterion: &mut Criterion) {
    const ROWS: usize = 8;
    const CHUNK: usize = 256 << 10;
    let pool = BufferPool::new(64 << 20, 64 << 20).unwrap();
    let (call, calls) = mpsc::channel::<Filler<Buffer, Bytes>>();
    let helper =
        thread::spawn(move || calls.iter().for_each(|filler| while filler.fill_chunk() {}));
    for (name, bytes) in [("8 x 64 KB", 64 << 10), ("8 x 600 KB", LARGE)] {
        let pieces: Vec<_> = (0..ROWS).map(|_| Bytes::from(vec![1; bytes])).collect();
        let reserve = || {
            let buffer = pool.allocate(ROWS * bytes).unwrap();
            Gather::new(buffer, pieces.iter().cloned(), CHUNK).unwrap()
        };
        let mut group = criterion.benchmark_group(format!("rows of a batch, {name}"));
        group.throughput(Throughput::Bytes((ROWS * bytes) as u64));
        group.bench_function("one thread: reserve, fill, complete", |bencher| {
            bencher.iter(|| black_box(reserve().complete()));
        });
        group.bench_function("two threads: reserve, call, fill, complete", |bencher| {
            bencher.iter(|| {
                let gather = reserve();
                call.send(gather.filler()).unwrap();
                black_box(gather.complete())
            });
        });
        group.bench_function("bound: memcpy", |bencher| {
            let joined = pieces.concat();
            let mut target = pool.allocate(joined.len()).unwrap();
            bencher.iter(|| {
                target.copy_from_slice(black_box(&joined));
                black_box(&target);
            });
        });
    }
    drop(call);
    helper.join().unwrap();
}

/// A message through a mailbox on one thread, and a request and its reply between two reactors,
/// beside a channel between two threads.
fn hops(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hop");
    let mailbox = Mailbox::new(64);
    group.bench_function("mailbox: send and take, same thread", |bencher| {
        bencher.iter(|| {
            mailbox.send(black_box(1_u64)).unwrap();
            let mut receive = std::pin::pin!(mailbox.receive());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match receive.as_mut().poll(&mut context) {
                std::task::Poll::Ready(messages) => messages.for_each(|message| {
                    black_box(message);
                }),
                std::task::Poll::Pending => unreachable!("a message was sent"),
            }
        });
    });
    group.bench_function("twin: one channel, same thread", |bencher| {
        let (send, receive) = mpsc::sync_channel::<u64>(64);
        bencher.iter(|| {
            send.send(black_box(1)).unwrap();
            black_box(receive.try_recv().unwrap());
        });
    });
    for driver in ["io_uring", "epoll"] {
        let settings = ReactorSettings {
            count: 2,
            driver: driver.parse::<DriverChoice>().unwrap(),
            idle_spin: Duration::ZERO,
            mailbox_capacity: 64,
        };
        let Ok(reactors) = Reactors::start(&settings, &Topology::read().unwrap()) else {
            println!("skipped: {driver} cannot be had here");
            continue;
        };
        group.bench_function(
            format!("{driver}: request and reply between two reactors"),
            |bencher| {
                bencher.iter_custom(|rounds| round_trips(&reactors, rounds));
            },
        );
        reactors.stop();
    }
    group.bench_function("twin: two threads, two channels", |bencher| {
        let (request, requests) = mpsc::sync_channel::<u64>(1);
        let (answer, answers) = mpsc::sync_channel::<u64>(1);
        let echo = thread::spawn(move || requests.iter().try_for_each(|value| answer.send(value)));
        bencher.iter(|| {
            request.send(1).unwrap();
            black_box(answers.recv().unwrap());
        });
        drop(request);
        echo.join().unwrap().unwrap();
    });
    group.finish();
}

fn round_trips(reactors: &Reactors, rounds: u64) -> Duration {
    let (report, reported) = mpsc::channel();
    let other = Arc::new(reactors.handles()[1].clone());
    let asking = Box::new(move || {
        spawn(&"bench", async move {
            let began = Instant::now();
            for round in 0..rounds {
                let (reply, mut answer) = reply_channel();
                other.send(Box::new(move || reply.finish(round))).unwrap();
                black_box(answer.receive().await);
            }
            report.send(began.elapsed()).unwrap();
        });
    });
    reactors.handles()[0].send(asking).unwrap();
    reported.recv().unwrap()
}

criterion_group!(benches, decode, encode, buffers, rows, hops);
criterion_main!(benches);
