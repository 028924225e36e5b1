//! Traces as spans of OpenTelemetry: which spans a trace has, and the thread that sends them off in
//! batches.
//!
//! As with Triton, a request is a span `InferRequest`, below it lies one with the model's name, and below
//! that `compute`; what Triton's files call timestamps are events of the two lower ones.

use std::{
    collections::BTreeMap,
    io,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use prost::Message as _;

use super::{
    record::{Event, Trace},
    writer::Message,
};
use crate::{
    inference::Timestamp,
    otlp::{
        AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource,
        ResourceSpans, ScopeSpans, Span, any_value::Value, span,
    },
};

/// Sends a message to the collector, and says why if it does not arrive.
pub type Post = Box<dyn FnMut(Vec<u8>) -> Result<(), String> + Send>;

/// How traces are sent as OpenTelemetry's spans.
pub struct OpenTelemetry {
    /// What is told of the server.
    pub resource: BTreeMap<String, String>,
    /// Traces that may wait to be sent; beyond that they are dropped.
    pub queue_max: usize,
    /// How long a trace waits for others.
    pub schedule_delay: Duration,
    /// Traces that are sent together, at most.
    pub batch_max: usize,
    /// What sends them.
    pub post: Post,
}

/// Starts the thread that sends what arrives.
pub(super) fn start(
    sender: OpenTelemetry,
    traces: Receiver<Message>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("traces".to_owned()).spawn(move || {
        let mut sender = Sender { settings: sender, origin: unix_origin() };
        while let Ok(Message::Trace(first)) = traces.recv() {
            let mut batch = vec![first];
            let until = Instant::now() + sender.settings.schedule_delay;
            let mut ended = false;
            while batch.len() < sender.settings.batch_max.max(1) {
                match traces.recv_deadline(until) {
                    Ok(Message::Trace(trace)) => batch.push(trace),
                    Err(RecvTimeoutError::Timeout) => break,
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                        ended = true;
                        break;
                    }
                }
            }
            sender.send(&batch);
            if ended {
                return;
            }
        }
    })
}

/// What the zero of our clock is in nanoseconds since 1970.
fn unix_origin() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0).saturating_sub(Timestamp::now().as_nanos())
}

struct Sender {
    settings: OpenTelemetry,
    origin: u64,
}

impl Sender {
    fn send(&mut self, batch: &[Box<Trace>]) {
        let attributes = self.settings.resource.iter();
        let attributes = attributes.map(|(key, value)| text(key, value)).collect();
        let scope = InstrumentationScope {
            name: "triton-server".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let spans = batch.iter().flat_map(|trace| spans(trace, self.origin)).collect();
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        if let Err(reason) = (self.settings.post)(request.encode_to_vec()) {
            log::warn!("{} trace(s) could not be sent: {reason}", batch.len());
        }
    }
}

/// The spans of a trace, the outermost first.
fn spans(trace: &Trace, origin: u64) -> Vec<Span> {
    let time = |when: Timestamp| origin.wrapping_add(when.as_nanos());
    let moment = |wanted: Event| {
        trace.events.iter().find(|(event, _)| *event == wanted).map(|(_, when)| time(*when))
    };
    let during = |of: &dyn Fn(Event) -> bool| {
        let times =
            || trace.events.iter().filter(|(event, _)| of(*event)).map(|(_, when)| time(*when));
        let started = times().min().unwrap_or(origin);
        (started, times().max().unwrap_or(started))
    };
    let (started, ended) = during(&|event| !event.is_of_client());
    let span = |name: &str, parent: Option<u64>, start: u64, end: u64| Span {
        trace_id: trace.span.trace.to_be_bytes().to_vec().into(),
        span_id: fastrand::u64(1..).to_be_bytes().to_vec().into(),
        parent_span_id: parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default().into(),
        name: name.to_owned(),
        kind: span::SpanKind::Server.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        ..Span::default()
    };
    let id = |span: &Span| <[u8; 8]>::try_from(&span.span_id[..]).ok().map(u64::from_be_bytes);
    let parent = trace.parent.map(|parent| parent.span);
    // What serves another request is no request of a client.
    let mut request = trace.outer.is_none().then(|| {
        let (started, ended) = during(&|_| true);
        span("InferRequest", parent, started, ended)
    });
    let mut model = span(&trace.model, request.as_ref().map_or(parent, id), started, ended);
    model.span_id = trace.span.span.to_be_bytes().to_vec().into();
    model.attributes = vec![
        text("triton.model_name", &trace.model),
        number("triton.model_version", trace.version),
        number("triton.trace_id", trace.id.cast_signed()),
        number("triton.trace_parent_id", trace.outer.unwrap_or(0).cast_signed()),
    ];
    if !trace.request_id.is_empty() {
        model.attributes.push(text("triton.request_id", &trace.request_id));
    }
    let computed = moment(Event::ComputeStart).zip(moment(Event::ComputeEnd));
    let mut compute = computed.map(|(start, end)| span("compute", id(&model), start, end));
    for (event, when) in &trace.events {
        let noted = span::Event {
            time_unix_nano: time(*when),
            name: event.name().to_owned(),
            attributes: Vec::new(),
        };
        match (&mut request, &mut compute) {
            (Some(request), _) if event.is_of_client() => request.events.push(noted),
            (_, Some(compute)) if event.is_of_compute() => compute.events.push(noted),
            _ => model.events.push(noted),
        }
    }
    [request, Some(model), compute].into_iter().flatten().collect()
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::{
        super::{Level, Output, Settings, Tracer},
        *,
    };
    use crate::inference::TraceParent;

    #[test]
    fn a_trace_is_three_spans_one_below_the_other() {
        let (report, sent) = mpsc::channel();
        let post = Box::new(move |body: Vec<u8>| {
            report.send(ExportTraceServiceRequest::decode(&*body).unwrap()).unwrap();
            Err("it is noted and ignored".to_owned())
        });
        let sender = OpenTelemetry {
            resource: [("service.name".to_owned(), "test".to_owned())].into(),
            queue_max: 16,
            schedule_delay: Duration::from_millis(1),
            batch_max: 2,
            post,
        };
        // A request that belongs to a client's trace is traced whatever the rate.
        let settings = Settings { level: Level::TIMESTAMPS, rate: 1000, ..Settings::default() };
        let tracer = Tracer::start(Output::OpenTelemetry(sender), settings).unwrap();
        let (name, parent) = (Arc::from("m"), TraceParent { trace: 7, span: 9 });
        let model = tracer.of_model("m");
        assert!(model.begin(&name, 3, &"".into(), None).is_none());
        let mut trace = model.begin(&name, 3, &"id".into(), Some(parent)).unwrap();
        for (event, nanos) in [
            (Event::RequestStart, 1),
            (Event::QueueStart, 2),
            (Event::ComputeStart, 3),
            (Event::ComputeEnd, 5),
            (Event::RequestEnd, 6),
        ] {
            trace.at(event, Timestamp::from_nanos(nanos));
        }
        trace.finish();
        tracer.stop();
        let sent = sent.recv().unwrap();
        let resource = &sent.resource_spans[0];
        assert_eq!(resource.resource.as_ref().unwrap().attributes, [text("service.name", "test")]);
        let [request, model, compute] = &resource.scope_spans[0].spans[..] else { panic!() };
        let names = |span: &Span| {
            span.events.iter().map(|event| event.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((&*request.name, names(request)), ("InferRequest", String::new()));
        assert_eq!(&*model.name, "m");
        assert_eq!(names(model), "REQUEST_START QUEUE_START REQUEST_END");
        assert_eq!((&*compute.name, &*names(compute)), ("compute", "COMPUTE_START COMPUTE_END"));
        assert_eq!(request.parent_span_id, 9_u64.to_be_bytes()[..]);
        assert_eq!(model.parent_span_id, request.span_id);
        assert_eq!(compute.parent_span_id, model.span_id);
        for span in [request, model, compute] {
            assert_eq!(span.trace_id, 7_u128.to_be_bytes()[..]);
        }
        assert_eq!(model.end_time_unix_nano - model.start_time_unix_nano, 5);
        assert_eq!(compute.end_time_unix_nano - compute.start_time_unix_nano, 2);
        assert!(model.attributes.contains(&number("triton.model_version", 3)));
        assert!(model.attributes.contains(&text("triton.request_id", "id")));
    }
}
