use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    BenchError,
    load::Distribution,
    values::{InputShape, Range, bytes, count, millis, millis_or_none, percentage, tolerance},
};
use crate::runtime::{Driver, DriverChoice};

/// Measures how fast a Triton-compatible server answers inference requests.
///
/// Options that perf_analyzer has too bear its names.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The model to send requests to.
    #[arg(short = 'm', long, value_name = "NAME")]
    pub model_name: String,

    /// The version of the model; the server chooses when none is given.
    #[arg(short = 'x', long, value_name = "VERSION", default_value = "")]
    pub model_version: String,

    /// The server's HOST:PORT [default: localhost:8000 for http, localhost:8001 for grpc].
    #[arg(short = 'u', long)]
    pub url: Option<String>,

    /// The way of the requests.
    #[arg(short = 'i', long = "protocol", visible_alias = "via", value_enum,
        default_value_t = Via::Http, ignore_case = true)]
    pub via: Via,

    /// Where tensors lie, over http or grpc: in the messages, or in memory that the server maps. The
    /// server must allow it; Nereid does with --allow-client-shm=true.
    #[arg(long, value_enum, default_value_t = SharedMemory::None)]
    pub shared_memory: SharedMemory,
    /// Whose memory --shared-memory cuda is
    #[arg(long, value_enum, default_value_t = SharedDevice::Gpu)]
    pub shared_memory_device: SharedDevice,

    /// Room for each output in shared memory, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 102_400, value_parser = bytes)]
    pub output_shared_memory_size: usize,

    /// The server's --ring-socket, for -i ring.
    #[arg(long, value_name = "PATH", required_if_eq("via", "ring"))]
    pub ring_socket: Option<PathBuf>,

    /// Requests kept in flight, START[:END[:STEP]]: each one is followed by the next as soon as it
    /// is answered [default: 1].
    #[arg(long, value_name = "RANGE", conflicts_with = "request_rate_range")]
    pub concurrency_range: Option<Range<usize>>,

    /// Requests sent per second, START[:END[:STEP]], whether earlier ones are answered or not.
    /// Latency counts from the moment at which a request was due, so a server that stalls does not
    /// look better for having delayed the client.
    #[arg(long, value_name = "RANGE")]
    pub request_rate_range: Option<Range<f64>>,

    /// How the requests of a rate are spread over time.
    #[arg(long, value_enum, default_value_t = Distribution::Constant,
        requires = "request_rate_range")]
    pub request_distribution: Distribution,

    /// Requests of a rate that may be unanswered at a time; further ones wait, and their wait
    /// counts.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    pub max_in_flight: usize,

    /// Inferences in a request.
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1, value_parser = count)]
    pub batch_size: usize,

    /// The dimensions of an input of variable shape, without the batch: NAME:D1,D2. Repeatable.
    #[arg(long, value_name = "NAME:DIMS")]
    pub shape: Vec<InputShape>,

    /// What the inputs hold: zeros, or random values (integers 0 to 127, fractions 0 to 1).
    #[arg(long, value_enum, default_value_t = InputData::Random)]
    pub input_data: InputData,

    /// The length of the strings in BYTES inputs.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub string_length: usize,

    /// Sends over ModelStreamInfer, one stream for every request in flight; grpc only.
    #[arg(long)]
    pub streaming: bool,

    /// Connections that the requests in flight share; http carries one request per connection at a
    /// time and opens as many as there are requests in flight [default for grpc: 4, but no more
    /// than requests in flight and no fewer than client threads].
    #[arg(long, value_name = "N", value_parser = count)]
    pub connections: Option<usize>,

    /// Threads that send and receive, each on a processor of its own, counted from the last one
    /// that the process may use: servers tend to take the first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    pub client_threads: usize,

    /// The event loop of the client: auto, io_uring or epoll [default: epoll for a concurrency,
    /// which costs the client less; auto for a rate, since io_uring has the finer timers. With
    /// epoll a rate keeps the client's processors busy to be on time].
    #[arg(long, value_name = "NAME")]
    pub io_driver: Option<DriverChoice>,

    /// The length of a measurement window in milliseconds.
    #[arg(short = 'p', long, value_name = "MS", default_value = "5000", value_parser = millis)]
    pub measurement_interval: Duration,

    /// Requests answered before measuring begins.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup_request_count: u64,

    /// Time spent sending before measuring begins, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "0", value_parser = millis_or_none)]
    pub warmup_interval: Duration,

    /// How far, in percent of their mean, the throughput and latency of three windows in a row may
    /// be from that mean to count as stable.
    #[arg(short = 's', long, value_name = "PERCENT", default_value_t = 10.0,
        value_parser = tolerance)]
    pub stability_percentage: f64,

    /// Windows after which a load that does not get stable is reported as it is.
    #[arg(short = 'r', long, value_name = "N", default_value_t = 10, value_parser = count)]
    pub max_trials: usize,

    /// The latency percentile that has to be stable; it is reported beside the usual ones.
    #[arg(long, value_name = "P", default_value_t = 99.0, value_parser = percentage)]
    pub percentile: f64,

    /// The process of a server on this machine, whose CPU time is reported together with that of
    /// its child processes.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<i32>,

    /// Seeds the random inputs and the poisson distribution.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub random_seed: u64,

    /// Writes the results to FILE as CSV.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub filename: Option<PathBuf>,

    /// Writes the results to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Prints no progress and no table.
    #[arg(long)]
    pub quiet: bool,
}

impl BenchArgs {
    /// The server's HOST:PORT.
    pub(super) fn authority(&self) -> String {
        let url = self.url.as_deref().unwrap_or(match self.protocol() {
            Protocol::Http => "localhost:8000",
            Protocol::Grpc | Protocol::Ring => "localhost:8001",
        });
        let url = url.split_once("://").map_or(url, |(_, rest)| rest);
        url.trim_end_matches('/').to_owned()
    }

    /// The protocol to speak.
    pub(super) fn protocol(&self) -> Protocol {
        match self.via {
            Via::Http => Protocol::Http,
            Via::Grpc | Via::Shm | Via::CudaShm => Protocol::Grpc,
            Via::Ring => Protocol::Ring,
        }
    }

    /// Where tensors lie.
    ///
    /// # Errors
    /// The options contradict each other.
    pub(super) fn shared_memory(&self) -> Result<SharedMemory, BenchError> {
        let by_way = match self.via {
            Via::Shm => SharedMemory::System,
            Via::CudaShm => SharedMemory::Cuda,
            Via::Http | Via::Grpc => return Ok(self.shared_memory),
            Via::Ring => SharedMemory::None,
        };
        match self.shared_memory {
            SharedMemory::None => Ok(by_way),
            given if given == by_way => Ok(by_way),
            _ => Err(BenchError::Options(
                "--shared-memory is for -i http and -i grpc: the way chosen has its own memory"
                    .to_owned(),
            )),
        }
    }

    /// The event loop of the client.
    pub(super) fn driver(&self) -> DriverChoice {
        self.io_driver.unwrap_or(match self.request_rate_range {
            Some(_) => DriverChoice::Auto,
            None => DriverChoice::Only(Driver::Epoll),
        })
    }

    /// Connections over which `in_flight` requests go.
    pub(super) fn connections_for(&self, in_flight: usize) -> usize {
        match (self.protocol(), self.connections) {
            (Protocol::Http, _) => in_flight,
            (Protocol::Ring, _) => self.client_threads.min(in_flight),
            (Protocol::Grpc, Some(wanted)) => wanted.min(in_flight),
            (Protocol::Grpc, None) => 4.max(self.client_threads).min(in_flight),
        }
    }
}

/// The protocols of a Triton-compatible server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with JSON and the binary tensor extension.
    Http,
    /// gRPC.
    Grpc,
    /// The ring of a Nereid on this host; the model is asked about over gRPC.
    Ring,
}

/// How requests get to the server: a protocol, and where their tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// HTTP/1.1 with JSON and the binary tensor extension.
    Http,
    /// gRPC.
    Grpc,
    /// gRPC, tensors in shared memory of this host: -i grpc --shared-memory system.
    Shm,
    /// gRPC, tensors in memory of this host's first GPU: -i grpc --shared-memory cuda.
    CudaShm,
    /// The ring of a Nereid on this host; the model is asked about over gRPC.
    Ring,
}

/// Where the tensors of requests and responses lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SharedMemory {
    /// In the messages.
    None,
    /// In a POSIX shared-memory object that the server maps.
    System,
    /// In memory of a GPU that the server opens.
    Cuda,
}

/// Whose memory a CUDA region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SharedDevice {
    /// That of the first GPU.
    Gpu,
    /// That of this host, for a server of --device=host.
    Host,
}

/// What the inputs hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputData {
    /// Zeros; strings of the digit zero.
    Zero,
    /// Random values; strings of random letters.
    Random,
}

#[cfg(test)]
pub(super) fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    Line::try_parse_from(format!("bench {line}").split_whitespace()).map(|line| line.bench)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_decides_the_address_and_the_connections() {
        let args = parse("-m x -i GRPC").unwrap();
        assert_eq!((args.authority().as_str(), args.connections_for(64)), ("localhost:8001", 4));
        assert_eq!(args.connections_for(2), 2);
        let args = parse("-m x --via ring --ring-socket r").unwrap();
        assert_eq!((args.authority().as_str(), args.connections_for(64)), ("localhost:8001", 1));
        assert!(parse("-m x --via ring").is_err());
        for via in
            ["-i grpc --shared-memory system", "--via shm", "--via shm --shared-memory system"]
        {
            let args = parse(&format!("-m x {via}")).unwrap();
            assert_eq!(args.protocol(), Protocol::Grpc);
            assert_eq!(args.shared_memory().unwrap(), SharedMemory::System, "{via}");
        }
        let args = parse("-m x --via cuda-shm").unwrap();
        assert_eq!(args.shared_memory().unwrap(), SharedMemory::Cuda);
        assert_eq!(parse("-m x").unwrap().shared_memory().unwrap(), SharedMemory::None);
        for via in
            ["--via shm --shared-memory cuda", "-i ring --ring-socket r --shared-memory system"]
        {
            assert!(parse(&format!("-m x {via}")).unwrap().shared_memory().is_err(), "{via}");
        }
        let args = parse("-m x --via grpc --client-threads 8").unwrap();
        assert_eq!(args.connections_for(64), 8);
        let args = parse("-m x -u http://host:80/").unwrap();
        assert_eq!((args.authority().as_str(), args.connections_for(64)), ("host:80", 64));
    }

    #[test]
    fn the_load_decides_the_driver() {
        let driver = |line| parse(line).unwrap().driver();
        assert_eq!(driver("-m x"), DriverChoice::Only(Driver::Epoll));
        assert_eq!(driver("-m x --request-rate-range 5"), DriverChoice::Auto);
        assert_eq!(driver("-m x --io-driver io_uring"), DriverChoice::Only(Driver::IoUring));
    }

    #[test]
    fn bad_options_are_refused() {
        assert!(parse("-m x --concurrency-range 1 --request-rate-range 1").is_err());
        assert!(parse("-m x --request-distribution poisson").is_err());
        assert!(parse("-m x --percentile 0").is_err());
        assert!(parse("-m x --measurement-interval 0").is_err());
        assert!(parse("-m x -s 0").is_err());
        assert!(parse("-m x -b 65537").is_err());
        assert!(parse("").is_err());
    }
}
