//! Models that users write in Python: `model.py` with a class `TritonPythonModel`, as for Triton.
//!
//! Every instance has a process of its own, so that a model can neither hold up nor end the server.
//! The process runs the interpreter of the user's environment, with the package of `python/` and its
//! native half, which this program carries along. The two speak over a socket (`wire/`); large tensors lie in memory
//! that both have mapped (`arena.rs`). `supervisor.rs` keeps the process running, `session.rs` is what is
//! under way in one process, `services.rs` what the server does for it.
//!
//! This room may start processes; it knows nothing of how requests come in or are scheduled.

mod arena;
mod environment;
mod inbox;
mod instance;
mod json;
mod line;
mod near;
mod output;
mod placement;
mod process;
mod script;
mod services;
mod session;
mod settings;
mod sources;
mod supervisor;
pub mod wire;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

pub use self::script::of_backend as script;
use self::{
    environment::{Environments, Interpreter, Unpacked},
    instance::PythonInstance,
    script::{Script, Scripts},
    services::Services,
    settings::Settings,
    sources::Files,
    supervisor::{Seat, Spare},
};
use super::{
    Backend, BackendError, Host, Model, ModelInstance, ModelRequest, ModelSource, Placement,
    PlacementDevice, ResponseError,
};
use crate::{
    inference::{Code, Signature},
    proto::ModelConfig,
    repository,
};

/// The back end `python`, or one that is a script for it.
pub struct Python {
    scripts: Scripts,
    /// The settings of the back end, which a model's own may add to.
    settings: BTreeMap<String, String>,
    interpreter: Interpreter,
    version: String,
    environments: Environments,
    files: Arc<Files>,
    seats: Seats,
    spares: Spares,
}

/// Processes that have completed configurations, each for the first instance of its model.
type Spares = Arc<Mutex<Vec<(SpareFor, Spare)>>>;

/// Which instances a process can be for: the file that they run and the folder of the version.
type SpareFor = (String, String);

/// The instances of all models.
type Seats = Arc<Mutex<Vec<Weak<Seat>>>>;

impl Python {
    /// With the interpreter that the settings of `--backend-config=python,…` name, or `python3`, and the
    /// platform handlers in the directory of back ends.
    ///
    /// # Errors
    /// When there is no such interpreter.
    pub fn open(
        directory: Option<&Path>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Self, BackendError> {
        Self::start(Scripts::of_python(directory), settings)
    }

    /// One whose models all run `script`.
    ///
    /// # Errors
    /// When there is no such interpreter.
    pub fn open_script(
        script: PathBuf,
        settings: &BTreeMap<String, String>,
    ) -> Result<Self, BackendError> {
        Self::start(Scripts::Shared(script), settings)
    }

    fn start(scripts: Scripts, settings: &BTreeMap<String, String>) -> Result<Self, BackendError> {
        let interpreter = Settings::read(settings)?.interpreter;
        let (interpreter, version) = Interpreter::find(&interpreter)?;
        let files = Files::create()
            .map_err(|error| BackendError(format!("no memory for the Python package: {error}")))?;
        Ok(Self {
            scripts,
            settings: settings.clone(),
            interpreter,
            version,
            environments: Environments::default(),
            files: Arc::new(files),
            seats: Seats::default(),
            spares: Spares::default(),
        })
    }

    fn model(&self, source: &ModelSource) -> Result<PythonModel, BackendError> {
        let mut settings = self.settings.clone();
        settings.extend(BTreeMap::clone(&source.settings));
        let settings = Settings::read(&settings)?;
        let own = self.environments.of_model(&source.config, &source.model_dir)?;
        let (interpreter, environment) = own.unwrap_or_else(|| (self.interpreter.clone(), None));
        let Script { path, is_own } = self.scripts.find(source)?;
        Ok(PythonModel {
            script: text_of(&path),
            is_own,
            source: source.clone(),
            settings,
            interpreter,
            environment,
            files: self.files.clone(),
            seats: Mutex::default(),
            all_seats: self.seats.clone(),
            spares: self.spares.clone(),
        })
    }
}

impl Backend for Python {
    fn name(&self) -> &'static str {
        "python"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        (!self.is_script()).then_some(script::FILE)
    }

    fn is_script(&self) -> bool {
        matches!(self.scripts, Scripts::Shared(_))
    }

    fn model_file(&self, source: &ModelSource) -> PathBuf {
        self.scripts.of_model(source).path.into_owned()
    }

    fn complete(&self, source: &ModelSource) -> Result<Option<ModelConfig>, BackendError> {
        let model = self.model(source)?;
        let outline = Arc::new(model.outline(&first_instance(&source.config), "CPU", "0"));
        let config = repository::to_json(&source.config);
        let (completed, spare) = Seat::complete(&outline, config)?;
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = outline.spare_for();
        spares.retain(|(other, spare)| *other != wanted && !spare.has_ended());
        spares.push((wanted, spare));
        repository::from_json(&completed).map(Some).map_err(|error| BackendError(error.to_string()))
    }

    fn stop(&self, patience: Duration) {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let seats = std::mem::take(&mut *self.seats.lock().unwrap_or_else(PoisonError::into_inner));
        let seats: Vec<_> = seats.iter().filter_map(Weak::upgrade).collect();
        seats.iter().for_each(|seat| seat.stop());
        let until = Instant::now() + patience;
        for seat in seats {
            seat.wait(until.saturating_duration_since(Instant::now()));
        }
        self.environments.remove();
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let model = self.model(source)?;
        if let Some(handler) = self.scripts.handler(source).filter(|_| model.is_own) {
            let (handler, platform) = (handler.display(), &source.config.platform);
            log::warn!("Unable to find model(handler) '{handler}' for platform field '{platform}'");
        }
        Ok(Arc::new(model))
    }
}

/// The name of a model's first instance, before its configuration is complete.
fn first_instance(config: &ModelConfig) -> String {
    match config.instance_group.first() {
        None => format!("{}_0", config.name),
        Some(group) if group.name.is_empty() => format!("{}_0_0", config.name),
        Some(group) => format!("{}_0", group.name),
    }
}

/// One version of a Python model.
struct PythonModel {
    source: ModelSource,
    /// The file that is run.
    script: String,
    /// Whether it is the model's own.
    is_own: bool,
    settings: Settings,
    interpreter: Interpreter,
    /// The folder of a packed environment, as long as it is used.
    environment: Option<Arc<Unpacked>>,
    files: Arc<Files>,
    seats: Mutex<Vec<Weak<Seat>>>,
    all_seats: Seats,
    spares: Spares,
}

impl PythonModel {
    fn outline(&self, instance: &str, kind: &'static str, device: &str) -> Outline {
        let ModelSource { name, version, model_dir, version_dir, config, signature, .. } =
            &self.source;
        let is_decoupled =
            config.model_transaction_policy.as_ref().is_some_and(|policy| policy.decoupled);
        Outline {
            model: name.to_string(),
            instance: instance.to_owned(),
            version: *version,
            kind,
            device: device.to_owned(),
            model_dir: text_of(model_dir),
            version_dir: text_of(version_dir),
            script: self.script.clone(),
            is_own: self.is_own,
            config: config.clone(),
            signature: signature.clone(),
            is_decoupled,
            interpreter: self.interpreter.clone(),
            _environment: self.environment.clone(),
            files: self.files.clone(),
            memory_bytes: self.settings.memory_bytes,
            start_limit: self.settings.start_limit,
        }
    }
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Model for PythonModel {
    fn instance(
        &self,
        placement: &Placement,
        host: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        let (kind, device) = match placement.device {
            PlacementDevice::Cpu => ("CPU", "0".to_owned()),
            PlacementDevice::Gpu(ordinal) => ("GPU", ordinal.to_string()),
            PlacementDevice::Model => ("MODEL", "0".to_owned()),
        };
        let outline = Arc::new(self.outline(&placement.name, kind, &device));
        let spare = {
            let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = outline.spare_for();
            let found = spares.iter().position(|(of, _)| *of == wanted);
            found.map(|found| spares.swap_remove(found).1)
        };
        let (seat, supervisor) = Seat::take(outline.clone(), Services::new(host), spare)?;
        for seats in [&self.seats, &*self.all_seats] {
            let mut seats = seats.lock().unwrap_or_else(PoisonError::into_inner);
            seats.retain(|seat| seat.strong_count() > 0);
            seats.push(Arc::downgrade(&seat));
        }
        Ok(ModelInstance::Requests(Box::new(PythonInstance::new(outline, seat, supervisor))))
    }

    fn is_ready(&self) -> bool {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.iter().filter_map(Weak::upgrade).all(|seat| seat.is_ready())
    }

    /// What its processes have resident, what they share with others included.
    fn memory_bytes(&self) -> Option<u64> {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = seats.iter().filter_map(Weak::upgrade).filter_map(|seat| seat.session());
        Some(sessions.filter_map(|session| process::resident_bytes(session.process)).sum())
    }
}

/// What a process needs to know of its instance, and what messages say of it.
pub struct Outline {
    model: String,
    instance: String,
    version: i64,
    kind: &'static str,
    device: String,
    model_dir: String,
    version_dir: String,
    script: String,
    is_own: bool,
    config: Arc<ModelConfig>,
    signature: Arc<Signature>,
    is_decoupled: bool,
    interpreter: Interpreter,
    _environment: Option<Arc<Unpacked>>,
    files: Arc<Files>,
    memory_bytes: usize,
    start_limit: Duration,
}

impl Outline {
    /// What the process is told first: to complete a configuration, or else to run the model.
    fn start_message(&self, complete: Option<&str>) -> String {
        let mut start = serde_json::json!({
            "name": self.instance,
            "model_path": self.script,
            "model_dir": self.version_dir,
            // A model's own file is a module of the package that is its version's folder.
            "version": if self.is_own { self.version.to_string() } else { String::new() },
            "decoupled": self.is_decoupled,
            "args": {
                "model_config": repository::to_json(&self.config),
                "model_instance_kind": self.kind,
                "model_instance_name": self.instance,
                "model_instance_device_id": self.device,
                "model_repository": self.model_dir,
                "model_version": self.version.to_string(),
                "model_name": self.model,
            },
        });
        if let (Some(config), Some(start)) = (complete, start.as_object_mut()) {
            start.insert("complete".to_owned(), config.into());
        }
        start.to_string()
    }

    /// Which of the processes that have completed configurations can be this instance's.
    fn spare_for(&self) -> SpareFor {
        (self.script.clone(), self.version_dir.clone())
    }

    /// The index of an output.
    fn output(&self, name: &str) -> Option<u16> {
        let index = self.signature.output(name)?;
        u16::try_from(index).ok()
    }

    /// Tells clients that no process serves.
    fn refuse(&self, requests: impl IntoIterator<Item = ModelRequest>) {
        let message = self.is_unhealthy();
        for request in requests {
            let message = message.clone();
            request.responder.finish(Err(ResponseError { code: Code::Unavailable, message }));
        }
    }

    /// How messages name the process.
    fn process(&self) -> String {
        format!("the process of instance '{}' of model '{}'", self.instance, self.model)
    }

    /// Why requests fail while there is no process.
    fn is_unhealthy(&self) -> String {
        format!("Stub process '{}' is not healthy.", self.instance)
    }

    /// Why requests fail whose execution has failed.
    fn failed(&self, message: &str) -> String {
        format!(
            "Failed to process the request(s) for model '{}', message: {message}",
            self.instance
        )
    }

    fn let_go(&self) -> String {
        self.failed("the model let go of the request without a final response")
    }
}
