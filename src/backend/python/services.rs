//! What the server does for a model's process: calls of other models, loads, metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustc_hash::FxHashMap;

use super::{
    json,
    session::Session,
    wire::{self, Call, Correlation, Gone, Question, Writer, questions},
};
use crate::{
    backend::{Done, Host},
    inference::{CorrelationId, Error, InferInput, InferRequest, RequestedOutput, Sequence},
    observe::custom::{Family, Metric, MetricKind},
    repository::Overrides,
};

/// Everything that the processes of an instance can use of the server; nothing while one only
/// completes a configuration.
#[derive(Default)]
pub struct Services {
    host: Option<Arc<Host>>,
    held: Mutex<Held>,
}

/// The metrics that the process holds, by its numbers.
#[derive(Default)]
struct Held {
    next: u64,
    families: FxHashMap<u64, Arc<Family>>,
    metrics: FxHashMap<u64, Metric>,
}

impl Services {
    /// Those of `host`.
    pub fn new(host: &Arc<Host>) -> Self {
        Self { host: Some(host.clone()), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> Result<&Arc<Host>, Error> {
        self.host.as_ref().ok_or(Error::NotReady)
    }

    /// Calls another model for the process.
    pub fn call(&self, session: &Arc<Session>, call: Call) {
        let (number, model) = (call.number, call.model.clone());
        session.begin_call(number);
        let (is_decoupled, within) = (call.is_decoupled, call.within);
        let asked = self.request(session, call).and_then(|request| {
            let models = &self.host()?.models;
            if !is_decoupled && models.is_decoupled(&model, &request.model_version) {
                return Err(decoupled(&model));
            }
            let trace = session.trace_of(within);
            let (session, model) = (session.clone(), model.clone());
            let answer = Box::new(move |answer| session.answer_call(number, &model, answer));
            models.ask(request, trace, answer)
        });
        match asked {
            Ok(asked) => session.hold_call(number, asked),
            Err(error) => session.refuse_call(number, &model, error),
        }
    }

    fn request(&self, session: &Session, call: Call) -> Result<InferRequest, Error> {
        let mut request = InferRequest {
            model_name: call.model,
            model_version: match call.version {
                ..0 => "".into(),
                version => version.to_string().into(),
            },
            id: call.id,
            parameters: json::to_parameters(&call.parameters),
            queue_timeout: (call.timeout_us > 0).then(|| Duration::from_micros(call.timeout_us)),
            sequence: sequence(call.correlation, call.flags),
            callers: if call.while_executing { session.callers() } else { None },
            ..InferRequest::default()
        };
        for tensor in call.inputs {
            let data = session.data(&tensor).map_err(|error| internal(&error))?;
            let wire::Tensor { name, datatype, shape, .. } = tensor;
            request.inputs.push(InferInput::new(name, datatype, shape, data));
        }
        for name in call.outputs {
            request.outputs.push(RequestedOutput { name, ..RequestedOutput::default() });
        }
        Ok(request)
    }

    /// Answers a question of the process, now or later.
    pub fn answer(&self, session: &Arc<Session>, question: Question) {
        let number = question.number;
        let outcome = match question.what {
            questions::LOAD_MODEL | questions::UNLOAD_MODEL => {
                match self.control(session, question) {
                    Ok(()) => return,
                    Err(error) => Err(error.to_string()),
                }
            }
            questions::IS_CANCELLED => {
                Ok(session.is_cancelled(question.numbers.first().copied().unwrap_or(0)).into())
            }
            questions::IS_MODEL_READY => self.is_model_ready(&question.texts),
            _ => self.metric(&question),
        };
        reply(session, number, outcome);
    }

    fn is_model_ready(&self, texts: &[String]) -> Result<u64, String> {
        let [model, version] = texts else { return Err(malformed()) };
        let models = &self.host().map_err(|error| error.to_string())?.models;
        Ok(models.is_ready(model, version).into())
    }

    /// Loads or unloads a model; the process is answered when that is done.
    fn control(&self, session: &Arc<Session>, question: Question) -> Result<(), Error> {
        let control = self.host()?.control.get().ok_or(Error::NoModelControl)?;
        let number = question.number;
        let session = session.clone();
        let done: Done = Box::new(move |outcome| {
            reply(&session, number, outcome.map(|()| 0).map_err(|error| error.to_string()));
        });
        let mut texts = question.texts.into_iter();
        let model = texts.next().ok_or_else(|| Error::malformed(malformed()))?;
        if question.what == questions::UNLOAD_MODEL {
            let with_models = question.numbers.first().is_some_and(|&number| number != 0);
            control.unload(model, with_models, done);
            return Ok(());
        }
        let mut overrides = Overrides {
            config: texts.next().filter(|config| !config.is_empty()),
            ..Overrides::default()
        };
        while let (Some(path), Some(content)) = (texts.next(), texts.next()) {
            let content = STANDARD.decode(content).map_err(|error| internal(&error))?;
            let path = path.strip_prefix("file:").unwrap_or(&path).to_owned();
            overrides.files.push((path, content.into()));
        }
        control.load(model, overrides, done);
        Ok(())
    }

    fn metric(&self, question: &Question) -> Result<u64, String> {
        let number = question.numbers.first().copied().unwrap_or_default();
        let value = question.values.first().copied().unwrap_or_default();
        let mut held = self.held();
        if question.what == questions::NEW_FAMILY {
            let [name, help] = &*question.texts else { return Err(malformed()) };
            let kind = match number {
                0 => MetricKind::Counter,
                1 => MetricKind::Gauge,
                _ => MetricKind::Histogram,
            };
            let host = self.host().map_err(|error| error.to_string())?;
            let family =
                host.metrics.family(name, help, kind).map_err(|error| error.to_string())?;
            return Ok(held.hold(|held, number| held.families.insert(number, family)));
        }
        if question.what == questions::NEW_METRIC {
            let family = held.families.get(&number).ok_or_else(malformed)?.clone();
            let labels: BTreeMap<String, String> = question
                .texts
                .first()
                .and_then(|text| serde_json::from_str(text).ok())
                .ok_or_else(malformed)?;
            let metric =
                family.metric(labels, &question.values).map_err(|error| error.to_string())?;
            return Ok(held.hold(|held, number| held.metrics.insert(number, metric)));
        }
        let metric = held.metrics.get(&number).ok_or_else(malformed)?;
        match question.what {
            questions::METRIC_INCREMENT => metric.increment(value).map(|()| 0),
            questions::METRIC_SET => metric.set(value).map(|()| 0),
            questions::METRIC_OBSERVE => metric.observe(value).map(|()| 0),
            questions::METRIC_VALUE => metric.value().map(f64::to_bits),
            _ => return Err(malformed()),
        }
        .map_err(|error| error.to_string())
    }

    /// Forgets metrics that the process has let go of.
    pub fn gone(&self, what: Gone, numbers: &[u64]) {
        let mut held = self.held();
        for number in numbers {
            match what {
                Gone::Metrics => drop(held.metrics.remove(number)),
                Gone::Families => drop(held.families.remove(number)),
                Gone::Memory | Gone::Requests => {}
            }
        }
    }

    /// Forgets all that a process held, because it has ended.
    pub fn forget(&self) {
        let held = std::mem::take(&mut *self.held());
        drop(held);
    }
}

impl Held {
    fn hold<T>(&mut self, insert: impl FnOnce(&mut Self, u64) -> T) -> u64 {
        self.next += 1;
        let number = self.next;
        insert(self, number);
        number
    }
}

fn reply(session: &Session, question: u64, outcome: Result<u64, String>) {
    let mut writer = Writer::default();
    match outcome {
        Ok(number) => writer.reply(question, number),
        Err(message) => writer.refuse(question, &message),
    }
    session.line.send(writer);
}

fn malformed() -> String {
    "the question is malformed".to_owned()
}

fn internal(error: &dyn std::fmt::Display) -> Error {
    Error::Internal { detail: error.to_string() }
}

fn decoupled(model: &str) -> Error {
    let detail = format!(
        "Model {model} is using the decoupled. The current BLS request call doesn't support models \
         using the decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or \
         'async_exec' calls for decoupled models.'"
    );
    Error::Unsupported { detail }
}

fn sequence(correlation: Correlation, flags: u32) -> Option<Box<Sequence>> {
    let id = match correlation {
        Correlation::Number(number) => CorrelationId::Number(number),
        Correlation::Text(text) => CorrelationId::Text(text),
    };
    let (start, end) = (flags & 1 != 0, flags & 2 != 0);
    (!id.is_none() || start || end).then(|| Box::new(Sequence { id, start, end }))
}
