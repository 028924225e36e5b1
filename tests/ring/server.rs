//! A server process of a test's own.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nereid_ring_client::{
    Block, Completion, DataType, Error, Options, Request, Ring, Tensor, Wanted,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const DRIVERS: [&str; 2] = ["epoll", "io_uring"];

pub struct Server {
    process: Child,
    folder: TempDir,
}

impl Server {
    /// Starts a server of identity models whose ring is at [`Server::socket`].
    pub fn start(driver: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, datatype, options) in [
            ("fp32", "FP32", ""),
            ("int64", "INT64", ""),
            ("bytes", "STRING", ""),
            (
                "late",
                "FP32",
                "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 20000 }",
            ),
            (
                "never",
                "FP32",
                "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 60000000 }",
            ),
        ] {
            let model = folder.path().join("models").join(name);
            fs::create_dir_all(model.join("1")).unwrap();
            let tensor = format!("data_type: TYPE_{datatype} dims: [ -1 ]");
            let config = format!(
                "backend: \"identity\" {options}\n\
                 input [{{ name: \"INPUT0\" {tensor} }}]\noutput [{{ name: \"OUTPUT0\" {tensor} }}]\n"
            );
            fs::write(model.join("config.pbtxt"), config).unwrap();
        }
        let process = Self::process(folder.path(), driver, flags);
        let server = Self { process, folder };
        server.wait_ready();
        server
    }

    fn process(folder: &Path, driver: &str, flags: &[&str]) -> Child {
        let log = fs::File::create(folder.join("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_nereid"))
            .arg("serve")
            .arg(format!("--model-repository={}", folder.join("models").display()))
            .arg(format!("--ring-socket={}", folder.join("ring").display()))
            .arg(format!("--io-driver={driver}"))
            .args(["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"])
            .args(["--reactors=1", "--pinned-memory-pool-byte-size=1048576"])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Waits until clients are served, and all models are there: each is loaded by itself.
    fn wait_ready(&self) {
        let models = fs::read_dir(self.folder.path().join("models")).unwrap().count();
        self.wait_until("all models are loaded", |it| {
            it.log().matches("successfully loaded").count() == models
        });
        let until = Instant::now() + PATIENCE;
        loop {
            let served = self.connect(&Options { arena_bytes: 1 << 16, ..Options::default() });
            match served.and_then(|mut ring| echo(&mut ring, "fp32", &[0; 64])) {
                Ok(_) => return,
                Err(error) if Instant::now() > until => panic!("{error}\n{}", self.log()),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Ends the server without a warning and starts another in its place.
    pub fn replace(&mut self, driver: &str) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        assert!(fs::metadata(self.socket()).unwrap().file_type().is_socket());
        self.process = Self::process(self.folder.path(), driver, &[]);
        self.wait_ready();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("ring")
    }

    pub fn connect(&self, options: &Options) -> Result<Ring, Error> {
        Ring::connect(self.socket(), options)
    }

    /// A client of default options.
    pub fn client(&self) -> Ring {
        self.connect(&Options::default()).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// How many descriptors the server has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// How many memories of clients the server has mapped.
    pub fn memories(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process.id())).unwrap();
        maps.lines().filter(|line| line.contains("memfd:nereid-ring")).count()
    }

    /// Waits until something is so.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "never: {what}\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells the server to stop and waits until it has.
    pub fn stop(&mut self) -> io::Result<Duration> {
        let told = Instant::now();
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGTERM)?;
        while self.process.try_wait()?.is_none() {
            assert!(told.elapsed() < PATIENCE, "the server does not stop\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
        Ok(told.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request that gives a model one tensor.
pub fn request<'a>(model: &'a str, input: &Block, area: &Block) -> Request<'a> {
    let datatype = match model {
        "int64" => DataType::Int64,
        "bytes" => DataType::Bytes,
        _ => DataType::Fp32,
    };
    let elements = input.len() / datatype.size().unwrap_or(input.len().max(1));
    let batched = ["late", "never"].contains(&model);
    let dims = if batched { vec![1, elements as i64] } else { vec![elements as i64] };
    let (dims, data) = (dims.into_iter().collect(), input.span());
    Request {
        model,
        area: area.span(),
        inputs: [Tensor { name: "INPUT0", datatype, dims, data }].into_iter().collect(),
        ..Request::default()
    }
}

/// Submits a tensor of these bytes, with an area that has room for it.
pub fn submit(ring: &mut Ring, model: &str, bytes: &[u8]) -> Result<u64, Error> {
    let mut input = ring.allocate(bytes.len())?;
    input.copy_from_slice(bytes);
    let area = ring.allocate(bytes.len() + 1024)?;
    let request = request(model, &input, &area);
    ring.submit(&request, vec![input, area])
}

/// Sends a tensor of these bytes and takes what comes back.
pub fn echo(ring: &mut Ring, model: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let token = submit(ring, model, bytes)?;
    let completion = wait(ring);
    assert_eq!(completion.token, token);
    assert!(completion.is_final);
    let answer = completion.answer()?;
    Ok(completion.tensor(answer.outputs[0].data).unwrap().to_vec())
}

/// The next completion, which must come.
pub fn wait(ring: &mut Ring) -> Completion {
    ring.next(Some(PATIENCE)).unwrap().expect("a completion in time")
}

/// An output that goes to `place`.
pub fn placed(name: &str, place: nereid_ring_client::Span) -> Wanted<'_> {
    Wanted { name, classes: 0, place: Some(place) }
}
