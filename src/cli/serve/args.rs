use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;

use super::{
    accepted::AcceptedFlags, cloud_args::CloudArgs, device_args::DeviceArgs,
    observe_args::ObserveArgs, ring::RingArgs, sharing_args::SharingArgs, wires::WireArgs,
};
use crate::{
    backend::{directory, onnxruntime, pytorch},
    cli::flags::{BackendSetting, HostPolicy, HostSetting, switch},
    device::Devices,
    memory::memory_limit_bytes,
    observe::logging::{LogFormat, LogSettings},
    repository::Options,
    runtime::{DriverChoice, ReactorSettings, Topology},
    serving::{ControlMode, ControlSettings, InstanceCores, Startup},
};

/// Requests from other cores that may wait at one reactor.
const MAILBOX_CAPACITY: usize = 64 << 10;
/// Tensor memory where nobody says how much, if there is that much: in all, and in one piece.
const BUDGET_BYTES: usize = 4 << 30;
const ARENA_BYTES: usize = 256 << 20;

/// tritonserver's flags, and a few of our own.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// A folder of models, or s3://BUCKET/PATH, gs://BUCKET/PATH, as://ACCOUNT/CONTAINER/PATH; may be given
    /// several times
    #[arg(long, alias = "model-store", value_name = "DIR")]
    pub model_repository: Vec<PathBuf>,
    /// Who decides what is loaded: all models at the start (none), clients (explicit), or changes of
    /// the repositories (poll)
    #[arg(long, value_name = "MODE", default_value = "none",
          value_parser = ["none", "explicit", "poll"])]
    pub model_control_mode: String,
    /// Seconds between looks at the repositories in poll mode; a change that two looks in succession
    /// see is taken up
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub repository_poll_secs: u32,
    /// Whether each repository is a namespace, so that several may have a model of the same name
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub model_namespacing: bool,
    /// A model to load at the start in explicit mode, may be given several times; * alone for all
    #[arg(long, value_name = "NAME")]
    pub load_model: Vec<String>,
    /// Whether clients may register shared memory of their choice
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub allow_client_shm: bool,
    /// Take every configuration as it is, completing nothing from the model
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub disable_auto_complete_config: bool,
    /// Older form of --disable-auto-complete-config
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          value_parser = switch(), action = clap::ArgAction::Set, hide = true)]
    pub strict_model_config: Option<bool>,
    /// Prefer configs/<NAME>.pbtxt of a model to its config.pbtxt
    #[arg(long, value_name = "NAME")]
    pub model_config_name: Option<String>,
    /// Threads that load models
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub model_load_thread_count: usize,
    /// How often a version of a model that failed to load is tried again
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub model_load_retry_count: usize,
    /// Where back ends lie [default: $NEREID_BACKEND_DIR or ~/.local/share/nereid/backends]
    #[arg(long, value_name = "DIR")]
    pub backend_directory: Option<PathBuf>,
    /// A setting of a back end, as <BACKEND>,<SETTING>=<VALUE>; may be given several times
    #[arg(long, value_name = "SETTING")]
    pub backend_config: Vec<BackendSetting>,
    /// Where instances of a host policy run, as <POLICY>,numa-node=<NODE> or
    /// <POLICY>,cpu-cores=<FIRST>-<LAST>; may be given several times
    #[arg(long, value_name = "SETTING")]
    pub host_policy: Vec<HostPolicy>,
    /// Do not start when a model fails to load
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub exit_on_error: bool,
    /// Be ready only when every model is
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub strict_readiness: bool,
    /// What the server calls itself [default: triton]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Seconds that requests in flight have when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub exit_timeout_secs: u64,
    /// Seconds during which the server still serves, but is not ready, when it is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub shutdown_delay_secs: u64,

    /// Whether HTTP is served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub allow_http: bool,
    /// The address for HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub http_address: String,
    /// The port for HTTP; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub http_port: u16,
    /// Let other processes listen on the HTTP port too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub reuse_http_port: bool,
    /// The largest HTTP request body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub http_max_input_size: usize,

    /// Whether gRPC is served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub allow_grpc: bool,
    /// The address for gRPC
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub grpc_address: String,
    /// The port for gRPC; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 8001)]
    pub grpc_port: u16,
    /// Let other processes listen on the gRPC port too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub reuse_grpc_port: bool,

    /// Whether metrics are served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub allow_metrics: bool,
    /// The address for metrics [default: that of HTTP]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<String>,
    /// The port for metrics; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 8002)]
    pub metrics_port: u16,
    #[command(flatten)]
    pub observe: ObserveArgs,

    /// Bytes of tensor memory in one piece, which is pinned when there is a GPU [default: 256 MiB, but not
    /// more than --memory-budget-byte-size]
    #[arg(long, value_name = "BYTES")]
    pinned_memory_pool_byte_size: Option<usize>,
    /// Bytes of tensor memory in all; beyond it requests are refused [default: half of the memory that the
    /// machine or the container has, 4 GiB at most]
    #[arg(long, value_name = "BYTES")]
    memory_budget_byte_size: Option<usize>,
    /// Event loops [default: half of the cores that the process may use, 1 to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    reactors: Option<u16>,
    /// Whether each event loop has a core of its own, and instances have the others [default: unless a
    /// container's quota is below the number of cores]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          value_parser = switch(), action = clap::ArgAction::Set)]
    pin_threads: Option<bool>,
    /// What drives the event loops: auto (epoll), io_uring or epoll
    #[arg(long, value_name = "DRIVER", default_value = "auto")]
    pub io_driver: DriverChoice,
    /// Microseconds that an idle event loop looks for work before it sleeps
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub idle_spin_us: u64,

    /// 0 for no details in the log, 1 for some, 2 and more for all
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    pub log_verbose: u32,
    /// Whether informational messages are logged
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub log_info: bool,
    /// Whether warnings are logged
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub log_warning: bool,
    /// Whether errors are logged
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    pub log_error: bool,
    /// How the log writes times: default or ISO8601
    #[arg(long, value_name = "FORMAT", default_value = "default",
          value_parser = ["default", "ISO8601"])]
    pub log_format: String,
    /// A file for the log [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    #[command(flatten)]
    pub devices: DeviceArgs,
    #[command(flatten)]
    pub cloud: CloudArgs,
    #[command(flatten)]
    pub ring: RingArgs,
    #[command(flatten)]
    pub wires: WireArgs,
    #[command(flatten)]
    pub sharing: SharingArgs,
    #[command(flatten)]
    pub accepted: AcceptedFlags,
}

impl ServeArgs {
    /// The number of reactors that is asked for.
    pub fn reactors(&self) -> Option<usize> {
        self.reactors.map(usize::from)
    }

    /// The processors, and how they are divided.
    ///
    /// # Errors
    /// When the system does not tell of them.
    pub fn topology(&self) -> io::Result<Topology> {
        let topology = Topology::read()?;
        Ok(match self.pin_threads {
            Some(pins) => topology.pinning(pins),
            None => topology,
        })
    }

    pub fn reactor_settings(&self, count: usize) -> ReactorSettings {
        ReactorSettings {
            count,
            driver: self.io_driver,
            idle_spin: Duration::from_micros(self.idle_spin_us),
            mailbox_capacity: MAILBOX_CAPACITY,
        }
    }

    /// The processors of instances: what the reactors leave, less where host policies say otherwise.
    ///
    /// # Errors
    /// A policy names processors that this process may not use.
    pub fn instance_cores(
        &self,
        topology: &Topology,
        reactors: usize,
    ) -> Result<InstanceCores, String> {
        let mut policies = BTreeMap::<&str, (Option<usize>, Option<&[usize]>)>::new();
        for HostPolicy { name, setting } in &self.host_policy {
            let (node, cores) = policies.entry(name).or_default();
            match setting {
                HostSetting::NumaNode(number) => *node = Some(*number),
                HostSetting::Cores(listed) => *cores = Some(listed),
            }
        }
        let mut all = InstanceCores::from(topology.instance_cores(reactors));
        for (name, (node, listed)) in policies {
            let of_node = node.map(|node| topology.cores_of_node(node));
            let wanted = listed.map(<[usize]>::to_vec).or_else(|| of_node.clone());
            let wanted: Vec<usize> = wanted
                .unwrap_or_default()
                .into_iter()
                .filter(|core| topology.has(*core))
                .filter(|core| of_node.as_ref().is_none_or(|node| node.contains(core)))
                .collect();
            if wanted.is_empty() {
                return Err(format!(
                    "--host-policy: none of the processors of policy '{name}' may be used by this \
                     process"
                ));
            }
            all.set(name.to_owned(), wanted);
        }
        Ok(all)
    }

    /// What is loaded at the start.
    ///
    /// # Errors
    /// `--load-model` does not go with the rest.
    pub fn startup(&self) -> Result<Startup, &'static str> {
        let names = &self.load_model;
        match (self.model_control_mode.as_str(), names.iter().any(|name| name == "*")) {
            ("explicit", true) if names.len() == 1 => Ok(Startup::All),
            ("explicit", true) => Err("--load-model=* must be the only --load-model"),
            ("explicit", false) => {
                let wanted: BTreeSet<String> = names.iter().cloned().collect();
                Ok(Startup::Named(wanted.into_iter().collect()))
            }
            _ if names.is_empty() => Ok(Startup::All),
            _ => Err("Use of '--load-model' requires setting '--model-control-mode=explicit' as \
                      well."),
        }
    }

    pub fn control_settings(&self) -> ControlSettings {
        // tritonserver looks again after an hour when told to wait no time.
        const NEVER: Duration = Duration::from_secs(3600);
        ControlSettings {
            mode: match (self.model_control_mode.as_str(), self.repository_poll_secs) {
                ("explicit", _) => ControlMode::Explicit,
                ("poll", 0) => ControlMode::Poll(NEVER),
                ("poll", seconds) => ControlMode::Poll(Duration::from_secs(seconds.into())),
                _ => ControlMode::None,
            },
            threads: self.model_load_thread_count,
            strict_readiness: self.strict_readiness,
        }
    }

    /// The bytes of the tensor arena, and of all tensors together.
    pub fn memory(&self) -> (usize, usize) {
        let half = || memory_limit_bytes().and_then(|bytes| usize::try_from(bytes / 2).ok());
        let budget = self
            .memory_budget_byte_size
            .unwrap_or_else(|| half().map_or(BUDGET_BYTES, |half| half.min(BUDGET_BYTES)));
        let arena = self.pinned_memory_pool_byte_size.unwrap_or(ARENA_BYTES.min(budget));
        (arena, budget.max(arena))
    }

    pub fn metrics_address(&self) -> &str {
        self.metrics_address.as_deref().unwrap_or(&self.http_address)
    }

    pub fn backend_directory(&self) -> Option<PathBuf> {
        self.backend_directory.clone().or_else(directory::default)
    }

    pub fn repository_options(&self, devices: &Arc<Devices>) -> Options {
        let mut settings = BTreeMap::<String, BTreeMap<String, String>>::new();
        for BackendSetting { backend, name, value } in &self.backend_config {
            settings.entry(backend.clone()).or_default().insert(name.clone(), value.clone());
        }
        let strict = self.strict_model_config.unwrap_or(false);
        Options {
            auto_complete: !self.disable_auto_complete_config && !strict,
            config_name: self.model_config_name.clone(),
            backend_settings: settings
                .into_iter()
                .map(|(backend, settings)| (backend, Arc::new(settings)))
                .collect(),
            gpus: DeviceArgs::gpus(devices),
            gpu_backends: self.gpu_backends(),
            min_compute_capability: self.devices.min_compute_capability(),
            ..Options::default()
        }
    }

    /// The back ends whose models run on devices unless they are told otherwise: those that can. A
    /// library that runs on the host alone shall not keep models from loading where there is a GPU.
    fn gpu_backends(&self) -> Vec<&'static str> {
        let directory = self.backend_directory();
        let has = |has_cuda: fn(&Path) -> bool| {
            self.devices.stand_in() || directory.as_deref().is_some_and(has_cuda)
        };
        let libraries =
            [("onnxruntime", has(onnxruntime::has_cuda)), ("pytorch", has(pytorch::has_cuda))];
        let able = libraries.into_iter().filter_map(|(name, able)| able.then_some(name));
        able.chain(["cuda", "ops"]).collect()
    }

    pub fn log_settings(&self) -> LogSettings {
        LogSettings {
            info: self.log_info,
            warning: self.log_warning,
            error: self.log_error,
            verbose: self.log_verbose,
            format: LogFormat::by_name(&self.log_format).unwrap_or_default(),
            file: self.log_file.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn startup(flags: &[&str]) -> Result<Startup, &'static str> {
        CommandLine::parse_from(["nereid"].iter().chain(flags)).serve.startup()
    }

    #[test]
    fn host_policies_choose_among_the_processors_there_are() {
        let topology = Topology::read().unwrap();
        let core = topology.instance_cores(0)[0];
        let read = |flags: &[String]| {
            let line = ["nereid".to_owned()].into_iter().chain(flags.iter().cloned());
            CommandLine::parse_from(line).serve.instance_cores(&topology, 1)
        };
        let cores = read(&[format!("--host-policy=cpu,cpu-cores={core}")]).unwrap();
        assert_eq!(cores.wanted("cpu"), Some(&[core][..]));
        assert_eq!(cores.others(), topology.instance_cores(1));
        assert!(read(&["--host-policy=cpu,cpu-cores=4095".to_owned()]).is_err());
        assert!(read(&["--host-policy=cpu,numa-node=4095".to_owned()]).is_err());
    }

    #[test]
    fn memory_is_what_was_asked_for_or_fits() {
        let memory =
            |flags: &[&str]| CommandLine::parse_from(["nereid"].iter().chain(flags)).serve.memory();
        let (arena, budget) = memory(&[]);
        assert!(arena <= ARENA_BYTES && arena <= budget && budget <= BUDGET_BYTES);
        assert!(budget as u64 <= memory_limit_bytes().unwrap());
        assert_eq!(memory(&["--memory-budget-byte-size=4096"]), (4096, 4096));
        let both = ["--memory-budget-byte-size=4096", "--pinned-memory-pool-byte-size=8192"];
        assert_eq!(memory(&both), (8192, 8192));
    }

    #[test]
    fn models_are_named_in_explicit_mode_only() {
        let explicit = "--model-control-mode=explicit";
        let named = |names: &[&str]| {
            Ok(Startup::Named(names.iter().map(|name| name.to_string()).collect()))
        };
        assert_eq!(startup(&[]), Ok(Startup::All));
        assert_eq!(startup(&["--model-control-mode=poll"]), Ok(Startup::All));
        assert_eq!(startup(&[explicit]), named(&[]));
        let twice = [explicit, "--load-model=b", "--load-model=a", "--load-model=b"];
        assert_eq!(startup(&twice), named(&["a", "b"]));
        assert_eq!(startup(&[explicit, "--load-model=*"]), Ok(Startup::All));
        assert!(startup(&[explicit, "--load-model=*", "--load-model=a"]).is_err());
        assert!(startup(&["--load-model=a"]).is_err());
    }
}
