//! `nereid serve`: starts the server, keeps it until it is told to stop, and stops it in order.

mod accepted;
mod args;
mod cloud_args;
mod device_args;
mod observe_args;
mod ring;
mod sharing_args;
mod startup;
mod tls_handshake;
mod wires;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::getpid,
};

pub use self::{accepted::names as accepted_names, args::ServeArgs};
use self::{cloud_args::Endpoint, tls_handshake::over_tls, wires::WireError};
use crate::{
    backend::{
        Backend, BackendError, Identity, Ops, Repeat,
        cuda::Cuda,
        onnxruntime::OnnxRuntime,
        python::{self, Python},
        pytorch::PyTorch,
    },
    device::{DeviceError, Devices},
    ingress::{
        grpc::{self, GrpcService},
        http,
    },
    memory::{BufferPool, Regions, keep_freed_memory},
    observe::{logging, trace::Tracer},
    repository::{self, Agents, Options, Repository},
    runtime::{
        Acceptor, Listener, ReactorHandle, Reactors, StartError, Topology, raise_descriptor_limit,
        spawn,
    },
    serving::{
        Backends, Caches, Fleet, Limiter, Loader, ModelControl, Observers, Places, Server,
        ServerState, Startup,
    },
};

/// How often the end of the last connections is looked for while the server stops.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// How often a second signal is looked for while the server leaves.
const LEAVE_POLL: Duration = Duration::from_millis(20);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("--model-repository is missing: the folder of the models to serve")]
    NoRepository,
    #[error("cannot start the log: {0}")]
    Log(io::Error),
    #[error("cannot block signals: {0}")]
    Signals(nix::Error),
    #[error("cannot read the processors that this process may use: {0}")]
    Topology(io::Error),
    #[error("{0}")]
    Reactors(#[from] StartError),
    #[error("cannot reserve {bytes} bytes of tensor memory: {source}")]
    Memory { bytes: usize, source: io::Error },
    #[error("cannot listen on '{address}' for {what}: {source}")]
    Listen { what: &'static str, address: String, source: io::Error },
    #[error("{0}")]
    Wires(#[from] WireError),
    #[error("{0}")]
    Cloud(#[from] http::CloudError),
    #[error("{0}")]
    Repository(#[from] repository::Error),
    #[error("{0}")]
    Flags(&'static str),
    #[error("{0}")]
    OtherFlags(String),
    #[error("cannot start the thread that writes traces: {0}")]
    Traces(io::Error),
    #[error("cannot start a thread that speaks to redis: {0}")]
    Redis(io::Error),
    #[error("cannot start to watch the model repositories: {0}")]
    Watch(io::Error),
    #[error("{failed} model(s) failed to load; --exit-on-error=false serves the others")]
    Models { failed: usize },
    #[error("cannot start to accept connections: {0}")]
    Accept(io::Error),
    #[error("{0}; --exit-on-device-loss has ended the server")]
    DeviceLost(DeviceError),
}

/// Serves until SIGINT or SIGTERM.
pub fn run(args: ServeArgs) -> ExitCode {
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &ServeArgs) -> Result<(), ServeError> {
    if args.model_repository.is_empty() {
        return Err(ServeError::NoRepository);
    }
    let startup = args.startup().map_err(ServeError::Flags)?;
    let (trace_output, traces) = args.observe.traces().map_err(ServeError::OtherFlags)?;
    logging::start(&args.log_settings()).map_err(ServeError::Log)?;
    // Before any thread starts, so that all of them leave these signals to this one.
    let stop_signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    stop_signals.thread_block().map_err(ServeError::Signals)?;
    keep_freed_memory();

    let topology = Topology::read().map_err(ServeError::Topology)?;
    let count = args.reactors().unwrap_or_else(|| topology.default_reactors());
    // Whoever serves the ring alone comes last.
    let all = count + args.ring.reactors();
    let mut reactors = Reactors::start(&args.reactor_settings(all), &topology)?;
    let (arena, budget) = args.memory();
    let pool = BufferPool::new(arena, budget)
        .map_err(|source| ServeError::Memory { bytes: arena, source })?;
    let observers = Observers {
        tracer: Tracer::start(trace_output, traces).map_err(ServeError::Traces)?,
        metrics: args.observe.metrics(),
        gpus: args.observe.gpus(),
    };
    let regions = Regions::new(args.allow_client_shm);
    let devices = Arc::new(args.devices.devices(&pool));
    let instance_cores = args.instance_cores(&topology, all).map_err(ServeError::OtherFlags)?;
    // A scrape is answered also while models keep all other reactors busy.
    let scraped = match args.allow_metrics {
        true => Some(reactors.start_aside(&args.reactor_settings(all), instance_cores.others())?),
        false => None,
    };
    let server = Server::new(reactors.handles(), instance_cores, pool, regions, observers);

    if let Some(settings) = args.sharing.cache().map_err(ServeError::OtherFlags)? {
        let caches = Caches::start(&settings, reactors.handles()).map_err(ServeError::Redis)?;
        server.keep_answers_in(caches);
    }
    if let Some(limits) = args.sharing.limits() {
        server.share_resources_by(Limiter::new(limits));
    }
    if let Some(name) = &args.id {
        server.call_it(name.clone());
    }
    let ended_by = Arc::new(OnceLock::new());
    if let Some(fleet) = fleet(args, &devices, &server, &ended_by) {
        server.run_on(fleet);
    }
    let control = control(args, server.clone(), &devices)?;
    let mut listeners = listen(args, &control, scraped)?;
    if let Some(path) = args.ring.path() {
        let listener = args.ring.listen(&server, reactors.handles().last());
        let address = path.display().to_string();
        let listener =
            listener.map_err(|source| ServeError::Listen { what: "the ring", address, source })?;
        listeners.extend(listener.map(|listener| ("ring", listener)));
    }
    startup::log_listeners(&listeners);
    let warnings = args.accepted.warnings().chain(args.devices.warnings(&devices));
    warnings.for_each(|warning| log::warn!("{warning}"));
    let acceptor = Acceptor::start(
        listeners.into_iter().map(|(_, listener)| listener).collect(),
        reactors.handles().iter().take(count).cloned().collect(),
        raise_descriptor_limit(),
    )
    .map_err(ServeError::Accept)?;

    let loaded = load(args, &control, &startup);
    let stopped = loaded.map(|()| {
        server.enter(ServerState::Ready);
        let signal = stop_signals.wait();
        log::info!("{}: stopping", signal.map_or("a signal", Signal::as_str));
        leave(&server, &stop_signals, Duration::from_secs(args.shutdown_delay_secs));
    });
    if let Some(file) = &args.devices.timeline_file {
        write_timeline(&server, file);
    }
    stop(&control, acceptor, reactors, Duration::from_secs(args.exit_timeout_secs));
    match ended_by.get() {
        Some(error) => Err(ServeError::DeviceLost(DeviceError::clone(error))),
        None => stopped,
    }
}

/// The lanes on the devices. That one is lost shows in the server's readiness and, if that is wanted,
/// ends the server as a signal would; then it is what `ended_by` holds.
fn fleet(
    args: &ServeArgs,
    devices: &Arc<Devices>,
    server: &Arc<Server>,
    ended_by: &Arc<OnceLock<DeviceError>>,
) -> Option<Arc<Fleet>> {
    let (strict, exits) = (args.strict_readiness, args.devices.exit_on_device_loss);
    let (there, ended_by) = (Arc::downgrade(server), ended_by.clone());
    let on_loss = move |error: &DeviceError| {
        log::error!("{error}; only a new start brings it back");
        if strict && let Some(server) = there.upgrade() {
            server.set_impaired();
        }
        if exits {
            ended_by.get_or_init(|| error.clone());
            if let Err(error) = kill(getpid(), Signal::SIGTERM) {
                log::error!("the server cannot be told to stop: {error}");
            }
        }
    };
    Fleet::new(devices.clone(), args.devices.fleet_settings(), server.reactors(), on_loss)
}

fn write_timeline(server: &Server, file: &Path) {
    let Some(timeline) = server.fleet().and_then(Fleet::timeline_blocking) else { return };
    match std::fs::write(file, timeline.chrome_trace().to_string()) {
        Ok(()) => log::info!("'{}' holds what the devices did last", file.display()),
        Err(error) => log::error!("cannot write the timeline to '{}': {error}", file.display()),
    }
}

fn control(
    args: &ServeArgs,
    server: Arc<Server>,
    devices: &Arc<Devices>,
) -> Result<Arc<ModelControl>, ServeError> {
    let options = Arc::new(args.repository_options(devices));
    let loader = Loader {
        backends: find_backends(args.backend_directory(), &options, devices),
        agents: Agents::built_in(),
        options,
        retries: args.model_load_retry_count,
        places: Places::new(args.model_load_thread_count),
    };
    let repository = Repository::new(args.model_repository.clone(), args.model_namespacing)?;
    Ok(ModelControl::new(server, repository, loader, args.control_settings()))
}

fn load(
    args: &ServeArgs,
    control: &Arc<ModelControl>,
    startup: &Startup,
) -> Result<(), ServeError> {
    let polling = control.first_look()?;
    let models = control.start(startup)?;
    startup::log_backends(&control.loader().backends);
    startup::log_models(&models);
    startup::log_options(args, control.server());
    let failed = models.iter().filter(|model| model.outcome.is_err()).count();
    if failed > 0 && args.exit_on_error {
        return Err(ServeError::Models { failed });
    }
    match polling {
        Some(polling) => control.watch(polling).map_err(ServeError::Watch),
        None => Ok(()),
    }
}

/// The back ends that this machine may have. Each is opened when a model first needs it, and so are the
/// devices that some of them run models on.
pub fn find_backends(
    directory: Option<PathBuf>,
    options: &Options,
    devices: &Arc<Devices>,
) -> Backends {
    let mut backends = Backends::default();
    backends.add("identity", || Ok(Arc::new(Identity)));
    let there = devices.clone();
    backends.add("ops", move || Ok(Arc::new(Ops::new(there.clone()))));
    backends.add("repeat", || Ok(Arc::new(Repeat)));
    let python = options.settings("python");
    backends.add("python", move || Ok(Arc::new(Python::open(&python)?)));
    let (scripts, options) = (directory.clone(), options.clone());
    backends.add_scripts(move |name| {
        let script = python::script(scripts.as_deref()?, name)?;
        // What is said of Python models holds, unless it is said otherwise of these.
        let mut settings = BTreeMap::clone(&options.settings("python"));
        settings.extend(BTreeMap::clone(&options.settings(name)));
        Some(Python::open_script(script, &settings).map(|it| Arc::new(it) as Arc<dyn Backend>))
    });
    let (compilers, there) = (directory.clone(), devices.clone());
    backends.add("cuda", move || Ok(Arc::new(Cuda::new(compilers.clone(), there.clone()))));
    let (place, there) = (directory.clone(), devices.clone());
    backends.add("onnxruntime", move || {
        let opened = OnnxRuntime::open(known(place.as_deref())?)?;
        Ok(Arc::new(opened.on(there.clone())))
    });
    let there = devices.clone();
    backends.add("pytorch", move || {
        let opened = PyTorch::open(known(directory.as_deref())?)?;
        Ok(Arc::new(opened.on(there.clone())))
    });
    backends
}

fn known(directory: Option<&Path>) -> Result<&Path, BackendError> {
    directory.ok_or_else(|| {
        BackendError(
            "neither --backend-directory, $NEREID_BACKEND_DIR nor $HOME says where back ends lie"
                .to_owned(),
        )
    })
}

fn listen(
    args: &ServeArgs,
    control: &Arc<ModelControl>,
    scraped: Option<ReactorHandle>,
) -> Result<Vec<(&'static str, Listener)>, ServeError> {
    let mut listeners = Vec::new();
    let bind = |what, address: &str, port: u16, reuse, serve| {
        let bound = resolve(address, port).and_then(|at| Listener::bind(at, reuse, serve));
        let listener = bound.map_err(|source| {
            let address = format!("{address}:{port}");
            ServeError::Listen { what, address, source }
        })?;
        Ok::<_, ServeError>((what, listener))
    };
    if args.allow_grpc {
        let settings = Arc::new(args.wires.grpc_settings()?);
        let service = GrpcService::new(control.clone(), settings.message_max);
        let tls = args.wires.grpc_tls()?;
        listeners.push(bind(
            "gRPC",
            &args.grpc_address,
            args.grpc_port,
            args.reuse_grpc_port,
            Arc::new(move |stream, _| {
                let (service, settings) = (service.clone(), settings.clone());
                match tls.clone() {
                    None => spawn(&"a gRPC connection", grpc::serve(stream, service, settings)),
                    Some(tls) => over_tls(stream, tls, &"a gRPC connection over TLS", |stream| {
                        grpc::serve(stream, service, settings)
                    }),
                }
            }),
        )?);
    }
    if args.allow_http {
        let control = control.clone();
        let settings = Arc::new(args.wires.http_settings(args.http_max_input_size)?);
        let tls = args.wires.http_tls()?;
        listeners.push(bind(
            "HTTP",
            &args.http_address,
            args.http_port,
            args.reuse_http_port,
            Arc::new(move |stream, _| {
                let (control, settings) = (control.clone(), settings.clone());
                match tls.clone() {
                    None => spawn(&"an HTTP connection", http::serve(stream, control, settings)),
                    Some(tls) => over_tls(stream, tls, &"an HTTP connection over TLS", |stream| {
                        http::serve(stream, control, settings)
                    }),
                }
            }),
        )?);
    }
    let others = [
        ("HTTP", args.allow_http, args.http_port),
        ("gRPC", args.allow_grpc, args.grpc_port),
        ("metrics", args.allow_metrics, args.metrics_port),
    ];
    args.cloud.check_ports(&others).map_err(ServeError::OtherFlags)?;
    for Endpoint { what, port, cloud } in args.cloud.endpoints()? {
        let control = control.clone();
        let settings = Arc::new(args.wires.http_settings(args.http_max_input_size)?);
        listeners.push(bind(
            what,
            &args.http_address,
            port,
            false,
            Arc::new(move |stream, _| {
                let (control, settings, cloud) = (control.clone(), settings.clone(), cloud.clone());
                let serve = http::serve_cloud(stream, control, settings, cloud);
                spawn(&"a connection of a cloud's", serve);
            }),
        )?);
    }
    if let Some(scraped) = scraped {
        let server = control.server().clone();
        let (what, listener) = bind(
            "metrics",
            args.metrics_address(),
            args.metrics_port,
            false,
            Arc::new(move |stream, _| {
                spawn(&"a metrics connection", http::serve_metrics(stream, server.clone()));
            }),
        )?;
        listeners.push((what, listener.on(scraped)));
    }
    Ok(listeners)
}

fn resolve(address: &str, port: u16) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    (address, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

/// Serves on for `delay` while saying that the server is not ready, so that whoever spreads requests
/// over servers goes elsewhere first. A second signal ends that.
fn leave(server: &Server, signals: &SigSet, delay: Duration) {
    if delay.is_zero() {
        return;
    }
    server.enter(ServerState::Leaving);
    let until = Instant::now() + delay;
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    match signals {
        Ok(signals) => {
            while Instant::now() < until && !matches!(signals.read_signal(), Ok(Some(_))) {
                thread::sleep(LEAVE_POLL);
            }
        }
        Err(error) => {
            log::warn!("a second signal will not be seen: {error}");
            thread::sleep(delay);
        }
    }
}

/// Closes the ports, answers what is in flight, and ends. Idle connections are closed at once;
/// requests still unanswered after `patience` are not waited for.
fn stop(control: &ModelControl, acceptor: Acceptor, reactors: Reactors, patience: Duration) {
    let server = control.server();
    server.enter(ServerState::Stopping);
    acceptor.stop();
    reactors.drain();
    let until = Instant::now() + patience;
    control.stop(patience);
    while reactors.connections() > 0 && Instant::now() < until {
        thread::sleep(DRAIN_POLL);
    }
    if reactors.connections() > 0 {
        log::warn!(
            "{} connection(s) did not end within {patience:?} and are cut off",
            reactors.connections()
        );
    }
    server.unload_all();
    control.loader().backends.stop(until.saturating_duration_since(Instant::now()));
    reactors.stop();
    server.tracer().stop();
}
