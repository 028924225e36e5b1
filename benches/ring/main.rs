//! `make bench-ring`: what a request through the ring costs, beside what it could not cost less than.
//!
//! A served identity model, one client thread and one server thread, each on a processor of its own where
//! there are two, and once both on one: to wake a processor that sleeps takes longer than all the rest. The
//! twins are measured in the same run, with their two threads on the same processors: threads that wake each
//! other by bytes on a socket pair, with the system calls that the two sides of the ring make, and `memcpy`
//! of as many bytes as the server copies. `BENCH_SECONDS` (2) is how long each line is measured; medians
//! are of single round trips.

#[path = "../goals/mod.rs"]
mod goals;
mod twins;

use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use goals::Goals;
use nereid::runtime::{Topology, pin_to};
use nereid_ring_client::{Block, DataType, Error, Options, Request, Ring, Tensor};
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use tempfile::TempDir;

const CONFIG: &str = r#"backend: "identity"
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
"#;
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 600_000;
const IN_FLIGHT: u32 = 256;
const READY_MAX: Duration = Duration::from_secs(20);
/// A round trip of two sides that sleep, in those of bare doorbells.
const ASLEEP_MAX: f64 = 1.5;
const SPINNING_MICROS_MAX: f64 = 10.0;
/// Of one client thread.
const REQUESTS_PER_SECOND_MIN: f64 = 300_000.0;
/// 600 KB, in one small request and one copy.
const LARGE_MAX: f64 = 1.3;

struct Server {
    process: Child,
    folder: TempDir,
}

impl Server {
    /// A server on one processor. What starts it stays there.
    fn start(core: usize, flags: &[&str]) -> Self {
        // A process has the processors of the thread that starts it.
        pin_to(&[core]).expect("the server's processor");
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("models").join("identity");
        fs::create_dir_all(model.join("1")).expect("a model's folder");
        fs::write(model.join("config.pbtxt"), CONFIG).expect("a model's configuration");
        let process = Command::new(env!("CARGO_BIN_EXE_nereid"))
            .arg("serve")
            .arg(format!("--model-repository={}", folder.path().join("models").display()))
            .arg(format!("--ring-socket={}", folder.path().join("ring").display()))
            .args(["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"])
            .args(["--reactors=1", "--log-info=false"])
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Self { process, folder };
        let until = Instant::now() + READY_MAX;
        while server.try_connect(false).is_err() {
            assert!(Instant::now() < until, "the server does not get ready");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn try_connect(&self, spin: bool) -> Result<Client, Error> {
        let options = Options { spin, requests: IN_FLIGHT, ..Options::default() };
        let path: &Path = &self.folder.path().join("ring");
        let mut client = Client { ring: Ring::connect(path, &options)?, spare: Vec::new() };
        client.round_trip(SMALL_BYTES)?;
        Ok(client)
    }

    fn connect(&self, spin: bool) -> Client {
        self.try_connect(spin).expect("the server is ready")
    }

    /// The processor time that the server has used.
    fn cpu(&self) -> Duration {
        let process = Pid::from_raw(self.process.id().try_into().expect("a process id"));
        let clock = clock_getcpuclockid(process).expect("the clock of the server");
        clock_gettime(clock).expect("the time of the server").into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client {
    ring: Ring,
    /// Input and area of requests that are done, to be used again.
    spare: Vec<Vec<Block>>,
}

impl Client {
    fn submit(&mut self, bytes: usize) -> Result<(), Error> {
        let blocks = match self.spare.pop() {
            Some(blocks) if blocks[0].len() == bytes => blocks,
            _ => vec![self.ring.allocate(bytes)?, self.ring.allocate(bytes + 1024)?],
        };
        let tensor = Tensor {
            name: "INPUT0",
            datatype: DataType::Fp32,
            dims: [(bytes / 4) as i64].into_iter().collect(),
            data: blocks[0].span(),
        };
        let request = Request {
            model: "identity",
            area: blocks[1].span(),
            inputs: [tensor].into_iter().collect(),
            ..Request::default()
        };
        self.ring.submit(&request, blocks).map(|_| ())
    }

    fn take(&mut self, patience: Option<Duration>) -> Result<bool, Error> {
        let next = match patience {
            Some(patience) if patience.is_zero() => self.ring.try_next()?,
            patience => self.ring.next(patience)?,
        };
        let Some(completion) = next else { return Ok(false) };
        completion.answer()?;
        self.spare.extend(completion.into_blocks());
        Ok(true)
    }

    fn round_trip(&mut self, bytes: usize) -> Result<(), Error> {
        self.submit(bytes)?;
        while !self.take(None)? {}
        Ok(())
    }

    /// Requests done, and in what time, with many in flight: all that fit are put, then the server is woken
    /// once.
    fn rate(&mut self, period: Duration) -> Result<(u64, Duration), Error> {
        let (begun, mut done) = (Instant::now(), 0u64);
        while begun.elapsed() < period {
            while self.ring.in_flight() < IN_FLIGHT as usize {
                self.submit(SMALL_BYTES)?;
            }
            self.take(None)?;
            done += 1;
            while self.take(Some(Duration::ZERO))? {
                done += 1;
            }
        }
        let took = begun.elapsed();
        while self.ring.in_flight() > 0 {
            self.take(None)?;
        }
        Ok((done, took))
    }
}

/// The median and the 99th percentile of something done over and over.
pub fn percentiles(period: Duration, mut work: impl FnMut()) -> (Duration, Duration) {
    let (begun, mut times) = (Instant::now(), Vec::with_capacity(1 << 20));
    while begun.elapsed() < period {
        let start = Instant::now();
        work();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn main() -> ExitCode {
    // `cargo test --benches` runs benches too, without the flag that `cargo bench` gives them.
    if std::env::args().all(|argument| argument != "--bench") {
        return ExitCode::SUCCESS;
    }
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    let period = Duration::from_secs_f64(seconds.unwrap_or(2.0));
    let topology = Topology::read().expect("the processors of this process");
    let cores = topology.reactor_cores(topology.core_count());
    let (server_core, client_core) = (cores[0], cores[cores.len() - 1]);
    let trip = |client: &mut Client, bytes| client.round_trip(bytes).expect("an answer");
    let mut goals = Goals::of("ring");

    let server = Server::start(server_core, &[]);
    for (what, core) in [("apart", client_core), ("on one processor", server_core)] {
        pin_to(&[core]).expect("the client's processor");
        let mut client = server.connect(false);
        let twin = twins::doorbells(period, server_core);
        let parked = percentiles(period, || trip(&mut client, SMALL_BYTES));
        let name = format!("64 bytes, both asleep, {what}");
        line(&name, parked);
        line("    two threads with doorbells", twin);
        goals.at_most(
            &format!("{name}: p50 beside doorbells"),
            micros(parked.0) / micros(twin.0),
            ASLEEP_MAX,
        );
    }

    pin_to(&[client_core]).expect("the client's processor");
    let mut client = server.connect(false);
    let before = (server.cpu(), own_cpu());
    let (requests, took) = client.rate(period).expect("answers");
    let name = format!("64 bytes, {IN_FLIGHT} in flight");
    println!(
        "{name:<40} of each request the server takes {:.2} µs, the client {:.2} µs",
        micros(server.cpu() - before.0) / requests as f64,
        micros(own_cpu() - before.1) / requests as f64,
    );
    goals.at_most(
        &format!("{name}: µs for each ({:.0} a second)", requests as f64 / took.as_secs_f64()),
        micros(took) / requests as f64,
        1e6 / REQUESTS_PER_SECOND_MIN,
    );

    let small = cpu_of(&server, &mut client, SMALL_BYTES, period);
    let large = cpu_of(&server, &mut client, LARGE_BYTES, period);
    let copy = twins::copy(LARGE_BYTES, period);
    println!(
        "600 KB, server CPU: {:.1} µs; 64 bytes {:.1} µs and one copy {:.1} µs",
        micros(large),
        micros(small),
        micros(copy),
    );
    goals.at_most(
        "600 KB: server CPU beside a small request and one copy",
        micros(large) / (micros(small) + micros(copy)),
        LARGE_MAX,
    );
    drop((client, server));

    // One thread of the server looks for requests all the time, the others sleep.
    let server = Server::start(server_core, &["--ring-spin"]);
    pin_to(&[client_core]).expect("the client's processor");
    let mut client = server.connect(true);
    let spinning = percentiles(period, || trip(&mut client, SMALL_BYTES));
    line("64 bytes, both sides spin", spinning);
    goals.at_most("64 bytes, both sides spin: p50 in µs", micros(spinning.0), SPINNING_MICROS_MAX);
    goals.conclude()
}

/// The processor time that this thread has used.
fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the clock of this thread").into()
}

fn cpu_of(server: &Server, client: &mut Client, bytes: usize, period: Duration) -> Duration {
    client.spare.clear();
    let (begun, before, mut done) = (Instant::now(), server.cpu(), 0u32);
    while begun.elapsed() < period {
        client.round_trip(bytes).expect("an answer");
        done += 1;
    }
    (server.cpu() - before) / done
}

fn line(what: &str, (median, late): (Duration, Duration)) {
    println!("{what:<40} p50 {:>7.1} µs  p99 {:>7.1} µs", micros(median), micros(late));
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
