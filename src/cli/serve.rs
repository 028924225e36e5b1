//! `nereid serve`: starts the server, keeps it until it is told to stop, and stops it in order.

mod accepted;
mod args;
mod cloud_args;
mod device_args;
mod events;
mod listeners;
mod observe_args;
mod ring;
mod sharing_args;
mod startup;
mod tls_handshake;
mod wires;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};

pub use self::{accepted::names as accepted_names, args::ServeArgs};
use self::{
    events::{Event, Events},
    listeners::listen,
    wires::WireError,
};
use crate::{
    backend::{
        Backend, BackendError, Identity, Ops, Repeat,
        cuda::Cuda,
        onnxruntime::OnnxRuntime,
        python::{self, Python},
        pytorch::PyTorch,
    },
    device::{DeviceError, Devices},
    ingress::http,
    memory::{BufferPool, Regions, keep_freed_memory},
    observe::{logging, trace::Tracer},
    repository::{self, Agents, Options, Repository},
    runtime::{Acceptor, Reactors, StartError, end_at_once, raise_descriptor_limit},
    serving::{
        Backends, Caches, Fleet, Limiter, Loader, ModelControl, Observers, Places, Server,
        ServerState, Startup,
    },
};

/// How often the end of the last connections is looked for while the server stops.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("--model-repository is missing: the folder of the models to serve")]
    NoRepository,
    #[error("cannot write the log to '{file}' (--log-file): {source}", file = file.display())]
    Log { file: PathBuf, source: io::Error },
    #[error("cannot block signals: {0}")]
    Signals(nix::Error),
    #[error("cannot start a thread for the program's own events: {0}")]
    Events(io::Error),
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
    match serve(&Arc::new(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Arc<ServeArgs>) -> Result<(), ServeError> {
    if args.model_repository.is_empty() {
        return Err(ServeError::NoRepository);
    }
    let startup = args.startup().map_err(ServeError::Flags)?;
    let (trace_output, traces) = args.observe.traces().map_err(ServeError::OtherFlags)?;
    logging::start(&args.log_settings()).map_err(|source| ServeError::Log {
        file: args.log_file.clone().unwrap_or_default(),
        source,
    })?;
    // Before any thread starts, so that all of them leave these signals to the one that hears them.
    let stop_signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    stop_signals.thread_block().map_err(ServeError::Signals)?;
    let events = Events::hearing(stop_signals).map_err(ServeError::Events)?;
    keep_freed_memory();

    let topology = args.topology().map_err(ServeError::Topology)?;
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
    equip(args, &server, &devices, &events)?;

    let control = control(args, server.clone(), &devices)?;
    let listeners = listen(args, &control, scraped)?;
    startup::log_listeners(&listeners);
    let warnings = args.accepted.warnings().chain(args.devices.warnings(&devices));
    warnings.for_each(|warning| log::warn!("{warning}"));
    let acceptor = Acceptor::start(
        listeners.into_iter().map(|(_, listener)| listener).collect(),
        reactors.handles().iter().take(count).cloned().collect(),
        raise_descriptor_limit(),
    )
    .map_err(ServeError::Accept)?;

    let starting = (args.clone(), control.clone());
    let start = move |tell: mpsc::Sender<Event>| {
        let (args, control) = starting;
        // Nobody is told when the program was told to stop before.
        let _ = tell.send(Event::Started(load(&args, &control, &startup)));
    };
    events.expect("start", start).map_err(ServeError::Events)?;
    let Ending { outcome, is_loading } =
        serve_until_told(&server, &events, Duration::from_secs(args.shutdown_delay_secs));
    if let Some(file) = &args.devices.timeline_file {
        write_timeline(&server, file);
    }
    let patience = Duration::from_secs(args.exit_timeout_secs);
    let loading = if is_loading { Duration::ZERO } else { patience };
    if !stop(&control, acceptor, reactors, loading, patience) {
        if let Err(error) = &outcome {
            eprintln!("error: {error}");
        }
        end_at_once(outcome.is_ok());
    }
    outcome
}

/// Gives the server what only some are to have.
fn equip(
    args: &ServeArgs,
    server: &Arc<Server>,
    devices: &Arc<Devices>,
    events: &Events,
) -> Result<(), ServeError> {
    if let Some(settings) = args.sharing.cache().map_err(ServeError::OtherFlags)? {
        let caches = Caches::start(&settings, server.reactors()).map_err(ServeError::Redis)?;
        server.keep_answers_in(caches);
    }
    if let Some(limits) = args.sharing.limits() {
        server.share_resources_by(Limiter::new(limits));
    }
    if let Some(name) = &args.id {
        server.call_it(name.clone());
    }
    if let Some(fleet) = fleet(args, devices, server, events) {
        server.run_on(fleet);
    }
    Ok(())
}

/// How it came that the server is to stop.
struct Ending {
    outcome: Result<(), ServeError>,
    /// Whether models of the start are still being loaded.
    is_loading: bool,
}

/// Serves until something ends that. A signal is heard while models are being loaded too, since that can
/// take minutes.
fn serve_until_told(server: &Server, events: &Events, delay: Duration) -> Ending {
    let mut is_loading = true;
    let outcome = loop {
        match events.next() {
            Event::Started(Ok(())) => {
                is_loading = false;
                server.enter(ServerState::Ready);
            }
            Event::Started(failed) => {
                is_loading = false;
                break failed;
            }
            Event::Signal(signal) => {
                log::info!("{signal}: stopping");
                break Ok(());
            }
            Event::DeviceLost(error) => break Err(ServeError::DeviceLost(error)),
        }
    };
    leave(server, events, delay);
    Ending { outcome, is_loading }
}

/// The lanes on the devices. That one is lost shows in the server's readiness and, if that is wanted, ends
/// the server.
fn fleet(
    args: &ServeArgs,
    devices: &Arc<Devices>,
    server: &Arc<Server>,
    events: &Events,
) -> Option<Arc<Fleet>> {
    let (strict, exits) = (args.strict_readiness, args.devices.exit_on_device_loss);
    let (there, tell) = (Arc::downgrade(server), events.teller());
    let on_loss = move |error: &DeviceError| {
        log::error!("{error}; only a new start brings it back");
        if strict && let Some(server) = there.upgrade() {
            server.set_impaired();
        }
        if exits {
            // Nobody is told when the server is ending anyway.
            let _ = tell.send(Event::DeviceLost(error.clone()));
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
    let handlers = directory.clone();
    backends.add("python", move || Ok(Arc::new(Python::open(handlers.as_deref(), &python)?)));
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

/// Serves on for `delay` while saying that the server is not ready, so that whoever spreads requests
/// over servers goes elsewhere first. A second signal ends that. Who never was ready has nobody to tell.
fn leave(server: &Server, events: &Events, delay: Duration) {
    if server.state() == ServerState::Ready && !delay.is_zero() {
        server.enter(ServerState::Leaving);
        events.rest(delay);
    }
}

/// Closes the ports, answers what is in flight, and ends. Idle connections are closed at once; loads that
/// have begun are not waited for after `loading`, nor requests after `patience`. Tells whether no load was
/// left to itself.
fn stop(
    control: &ModelControl,
    acceptor: Acceptor,
    reactors: Reactors,
    loading: Duration,
    patience: Duration,
) -> bool {
    let server = control.server();
    server.enter(ServerState::Stopping);
    acceptor.stop();
    reactors.drain();
    let until = Instant::now() + patience;
    let is_done = control.stop(loading);
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
    is_done
}
