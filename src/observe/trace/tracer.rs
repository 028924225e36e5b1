use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use arc_swap::ArcSwap;
use compact_str::CompactString;
use crossbeam_channel::{Sender, bounded};
use smallvec::SmallVec;

use super::{
    opentelemetry::{self, OpenTelemetry},
    record::{OuterTrace, Trace},
    settings::{Change, Fields, Level, Settings},
    writer::{self, Message},
};
use crate::inference::{Timestamp, TraceParent};

/// Traces that may wait to be written.
const WAITING_MAX: usize = 1024;

/// Settings that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Attempting to set invalid trace setting :{reason}")]
pub struct InvalidSettings {
    reason: &'static str,
}

/// Where traces go.
pub enum Output {
    /// Nowhere: nothing can be traced.
    None,
    /// Into this file of Triton's form, and files whose names begin with it.
    File(PathBuf),
    /// To a collector of OpenTelemetry's.
    OpenTelemetry(OpenTelemetry),
}

/// Decides which requests are traced, and has their traces written.
pub struct Tracer {
    file: Option<PathBuf>,
    /// Whether they become part of the clients' own traces.
    joins: bool,
    flags: Settings,
    /// Whether any request might be traced.
    active: AtomicBool,
    state: Mutex<State>,
    ids: Arc<AtomicU64>,
    sink: Sender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    server: Fields,
    server_sampler: Arc<Sampler>,
    models: BTreeMap<String, OfModel>,
}

#[derive(Default)]
struct OfModel {
    fields: Fields,
    /// One for each time that the model is loaded, old and new side by side.
    tracers: Vec<Weak<ModelTracer>>,
    /// Its own, while any setting is.
    sampler: Option<Arc<Sampler>>,
}

impl Tracer {
    /// Traces as `flags` say.
    ///
    /// # Errors
    /// When there is no thread for writing.
    pub fn start(output: Output, flags: Settings) -> io::Result<Arc<Self>> {
        let waiting_max = match &output {
            Output::OpenTelemetry(sender) => sender.queue_max.max(1),
            Output::None | Output::File(_) => WAITING_MAX,
        };
        let (sink, traces) = bounded(waiting_max);
        let joins = matches!(output, Output::OpenTelemetry(_));
        let (file, writer) = match output {
            Output::None => (None, None),
            Output::File(file) => (Some(file.clone()), Some(writer::start(file, traces)?)),
            Output::OpenTelemetry(sender) => (None, Some(opentelemetry::start(sender, traces)?)),
        };
        let state = State {
            server: Fields::default(),
            server_sampler: Arc::new(Sampler::new(flags)),
            models: BTreeMap::new(),
        };
        Ok(Arc::new(Self {
            file,
            joins,
            flags,
            active: AtomicBool::new(state.is_active()),
            state: Mutex::new(state),
            ids: Arc::new(AtomicU64::new(0)),
            sink,
            writer: Mutex::new(writer),
        }))
    }

    /// The mode, by Triton's name.
    pub fn mode(&self) -> &'static str {
        if self.joins { "opentelemetry" } else { "triton" }
    }

    /// The file that traces go to, if they go to one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The settings of a model, or of the server.
    pub fn settings(&self, model: Option<&str>) -> Settings {
        self.lock().sampler(model).settings()
    }

    /// Changes the settings of a model, or of the server and with them those of all models that have
    /// no settings of their own. Returns the new ones.
    ///
    /// # Errors
    /// When requests could not be traced by the new ones. Nothing is changed then.
    pub fn change(&self, model: Option<&str>, change: Change) -> Result<Settings, InvalidSettings> {
        let mut state = self.lock();
        match model {
            None => {
                let fields = state.server.changed(change);
                let settings = fields.over(self.flags);
                self.check(settings)?;
                state.server = fields;
                let keeps_count = change.count.is_none();
                state.server_sampler = state.server_sampler.renewed(settings, keeps_count);
            }
            Some(model) => {
                let fields = state.of_model(model).fields.changed(change);
                self.check(fields.over(state.server.over(self.flags)))?;
                state.of_model(model).fields = fields;
            }
        }
        let server = state.server.over(self.flags);
        let server_sampler = state.server_sampler.clone();
        for (name, of_model) in &mut state.models {
            let keeps_count = model != Some(name) || change.count.is_none();
            of_model.settle(server, &server_sampler, keeps_count);
        }
        self.active.store(state.is_active(), Ordering::Relaxed);
        let settings = state.sampler(model).settings();
        Ok(settings)
    }

    /// The time, if any request might be traced.
    #[inline]
    pub fn now(&self) -> Option<Timestamp> {
        self.active.load(Ordering::Relaxed).then(Timestamp::now)
    }

    fn check(&self, settings: Settings) -> Result<(), InvalidSettings> {
        let reason = match settings {
            Settings { level: Level::OFF, .. } => return Ok(()),
            Settings { rate: 0, .. } => "sample rate must be non-zero",
            _ if self.file.is_none() && !self.joins => "trace file name is not given",
            _ => return Ok(()),
        };
        Err(InvalidSettings { reason })
    }

    /// What a model that is being loaded asks whether to trace a request.
    pub fn of_model(&self, model: &str) -> Arc<ModelTracer> {
        let mut state = self.lock();
        let sampler = state.sampler(Some(model)).clone();
        let tracer = Arc::new(ModelTracer {
            active: AtomicBool::new(sampler.is_active()),
            sampler: ArcSwap::new(sampler),
            joins: self.joins,
            ids: self.ids.clone(),
            sink: self.sink.clone(),
        });
        state.models.retain(|_, of_model| {
            of_model.tracers.retain(|tracer| tracer.strong_count() > 0);
            !of_model.tracers.is_empty() || of_model.fields != Fields::default()
        });
        state.of_model(model).tracers.push(Arc::downgrade(&tracer));
        tracer
    }

    /// Ends writing, when all that was handed in has been written.
    pub fn stop(&self) {
        let writer = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(writer) = writer {
            let _ = self.sink.send(Message::Stop);
            let _ = writer.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn of_model(&mut self, model: &str) -> &mut OfModel {
        self.models.entry(model.to_owned()).or_default()
    }

    fn is_active(&self) -> bool {
        let models = self.models.values().filter_map(|of_model| of_model.sampler.as_ref());
        models.chain([&self.server_sampler]).any(|sampler| sampler.is_active())
    }

    fn sampler(&self, model: Option<&str>) -> &Arc<Sampler> {
        let own = model.and_then(|model| self.models.get(model)?.sampler.as_ref());
        own.unwrap_or(&self.server_sampler)
    }
}

impl OfModel {
    /// Has the model's requests sampled by its own settings if it has any, else with the server's.
    fn settle(&mut self, server: Settings, server_sampler: &Arc<Sampler>, keeps_count: bool) {
        self.sampler = (self.fields != Fields::default()).then(|| {
            let settings = self.fields.over(server);
            match &self.sampler {
                Some(sampler) => sampler.renewed(settings, keeps_count),
                None => Arc::new(Sampler::new(settings)),
            }
        });
        let sampler = self.sampler.as_ref().unwrap_or(server_sampler);
        for tracer in self.tracers.iter().filter_map(Weak::upgrade) {
            tracer.sampler.store(sampler.clone());
            tracer.active.store(sampler.is_active(), Ordering::Relaxed);
        }
    }
}

/// Chooses requests by one set of settings.
struct Sampler {
    settings: Settings,
    seen: AtomicU64,
    /// How many more are chosen; negative for no limit.
    remaining: AtomicI64,
}

impl Sampler {
    fn new(settings: Settings) -> Self {
        let remaining = AtomicI64::new(settings.count.into());
        Self { settings, seen: AtomicU64::new(0), remaining }
    }

    /// One for new settings, which goes on counting unless the count is among what is new.
    fn renewed(self: &Arc<Self>, settings: Settings, keeps_count: bool) -> Arc<Self> {
        if self.settings == settings && keeps_count {
            return self.clone();
        }
        let new = Self::new(settings);
        if keeps_count && self.settings.count == settings.count {
            new.remaining.store(self.remaining.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Arc::new(new)
    }

    fn is_active(&self) -> bool {
        self.settings.level != Level::OFF
    }

    fn settings(&self) -> Settings {
        let remaining = self.remaining.load(Ordering::Relaxed);
        Settings { count: i32::try_from(remaining).unwrap_or(-1), ..self.settings }
    }

    fn chooses(&self) -> bool {
        let nth = self.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let is_due = nth.checked_rem(u64::from(self.settings.rate)) == Some(0);
        is_due
            && self
                .remaining
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |remaining| match remaining {
                    0 => None,
                    ..0 => Some(remaining),
                    _ => Some(remaining - 1),
                })
                .is_ok()
    }
}

/// What the requests of a model are traced by.
pub struct ModelTracer {
    active: AtomicBool,
    sampler: ArcSwap<Sampler>,
    joins: bool,
    ids: Arc<AtomicU64>,
    sink: Sender<Message>,
}

impl ModelTracer {
    /// A trace for a request, if it is to be traced. One that belongs to a client's trace is, where traces
    /// join those.
    #[inline]
    pub fn begin(
        &self,
        model: &Arc<str>,
        version: i64,
        request_id: &CompactString,
        parent: Option<TraceParent>,
    ) -> Option<Box<Trace>> {
        if !self.active.load(Ordering::Relaxed) {
            return None;
        }
        self.sample(model, version, request_id, parent)
    }

    /// A trace for a request that serves another, which is traced.
    pub fn begin_within(
        &self,
        outer: &OuterTrace,
        model: &Arc<str>,
        version: i64,
        request_id: &CompactString,
    ) -> Box<Trace> {
        let OuterTrace { id, span, level, log_frequency, joins } = *outer;
        Box::new(Trace {
            id: self.ids.fetch_add(1, Ordering::Relaxed) + 1,
            outer: Some(id),
            parent: Some(span),
            span: TraceParent { span: fastrand::u64(1..), ..span },
            model: model.clone(),
            version,
            request_id: request_id.clone(),
            level,
            log_frequency,
            joins,
            events: SmallVec::new(),
            wire: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            sink: self.sink.clone(),
        })
    }

    #[cold]
    fn sample(
        &self,
        model: &Arc<str>,
        version: i64,
        request_id: &CompactString,
        parent: Option<TraceParent>,
    ) -> Option<Box<Trace>> {
        let sampler = self.sampler.load();
        let parent = parent.filter(|_| self.joins);
        (parent.is_some() || sampler.chooses()).then(|| {
            Box::new(Trace {
                id: self.ids.fetch_add(1, Ordering::Relaxed) + 1,
                outer: None,
                parent,
                span: TraceParent {
                    trace: parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace),
                    span: fastrand::u64(1..),
                },
                model: model.clone(),
                version,
                request_id: request_id.clone(),
                level: sampler.settings.level,
                log_frequency: sampler.settings.log_frequency,
                joins: self.joins,
                events: SmallVec::new(),
                wire: None,
                inputs: Vec::new(),
                outputs: Vec::new(),
                sink: self.sink.clone(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(folder: &Path, settings: Settings) -> Arc<Tracer> {
        Tracer::start(Output::File(folder.join("trace.json")), settings).unwrap()
    }

    fn sampled(tracer: &ModelTracer, requests: usize) -> usize {
        let name: Arc<str> = "m".into();
        (0..requests).filter(|_| tracer.begin(&name, 1, &"".into(), None).is_some()).count()
    }

    #[test]
    fn one_of_so_many_is_traced_until_the_count_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let all = Settings { level: Level::TIMESTAMPS, rate: 3, count: 4, log_frequency: 0 };
        let tracer = tracer(folder.path(), all);
        let model = tracer.of_model("m");
        assert_eq!(sampled(&model, 9), 3);
        assert_eq!(tracer.settings(None).count, 1);
        // A new rate leaves the rest of the count.
        let change = Change { rate: Some(Some(1)), ..Change::default() };
        assert_eq!(tracer.change(None, change).unwrap().count, 1);
        assert_eq!(sampled(&model, 9), 1);
        tracer.change(None, Change { count: Some(Some(-1)), ..Change::default() }).unwrap();
        assert_eq!(sampled(&model, 9), 9);
        tracer.stop();
    }

    #[test]
    fn a_model_may_have_settings_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let tracer = tracer(folder.path(), Settings { rate: 1, ..Settings::default() });
        let (model, other) = (tracer.of_model("m"), tracer.of_model("n"));
        assert_eq!((sampled(&model, 2), tracer.now()), (0, None));
        let on = Change { level: Some(Some(Level::TENSORS)), ..Change::default() };
        tracer.change(Some("m"), on).unwrap();
        // Nobody knows yet which model a request is for.
        assert!(tracer.now().is_some());
        assert_eq!((sampled(&model, 2), sampled(&other, 2)), (2, 0));
        // One that is loaded later has the settings of its name.
        assert_eq!(sampled(&tracer.of_model("m"), 2), 2);
        let rate = Change { rate: Some(Some(2)), ..Change::default() };
        tracer.change(None, rate).unwrap();
        assert_eq!(tracer.settings(Some("m")).rate, 2);
        assert_eq!(tracer.settings(Some("n")).level, Level::OFF);
        tracer.change(Some("m"), Change { level: Some(None), ..Change::default() }).unwrap();
        assert_eq!((sampled(&model, 2), tracer.now()), (0, None));
        tracer.stop();
    }

    #[test]
    fn settings_by_which_nothing_could_be_traced_are_refused() {
        let none = Tracer::start(Output::None, Settings::default()).unwrap();
        let on = Change { level: Some(Some(Level::TIMESTAMPS)), ..Change::default() };
        let refused = none.change(None, on).unwrap_err().to_string();
        assert!(refused.ends_with(":trace file name is not given"), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        let tracer = tracer(folder.path(), Settings::default());
        let never = Change { rate: Some(Some(0)), ..on };
        let refused = tracer.change(None, never).unwrap_err().to_string();
        assert!(refused.ends_with(":sample rate must be non-zero"), "{refused}");
        assert_eq!(tracer.settings(None), Settings::default());
        tracer.stop();
    }
}
