use std::{fmt::Write as _, sync::Arc};

use compact_str::CompactString;
use crossbeam_channel::Sender;
use half::{bf16, f16};
use smallvec::SmallVec;

use super::{settings::Level, writer::Message};
use crate::inference::{
    DataType, InferOutput, Rope, Shape, Timestamp, TraceParent, Wire, WireRecord, WireTimes,
};

/// A moment in a request's life, by Triton's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    GrpcWaitreadStart,
    GrpcWaitreadEnd,
    HttpRecvStart,
    HttpRecvEnd,
    RequestStart,
    QueueStart,
    CacheHit,
    CacheMiss,
    ComputeStart,
    ComputeInputEnd,
    ComputeOutputStart,
    ComputeEnd,
    InferResponseComplete,
    RequestEnd,
    GrpcSendStart,
    GrpcSendEnd,
    HttpSendStart,
    HttpSendEnd,
}

impl Event {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::GrpcWaitreadStart => "GRPC_WAITREAD_START",
            Self::GrpcWaitreadEnd => "GRPC_WAITREAD_END",
            Self::HttpRecvStart => "HTTP_RECV_START",
            Self::HttpRecvEnd => "HTTP_RECV_END",
            Self::GrpcSendStart => "GRPC_SEND_START",
            Self::GrpcSendEnd => "GRPC_SEND_END",
            Self::HttpSendStart => "HTTP_SEND_START",
            Self::HttpSendEnd => "HTTP_SEND_END",
            Self::RequestStart => "REQUEST_START",
            Self::QueueStart => "QUEUE_START",
            Self::CacheHit => "CACHE_HIT",
            Self::CacheMiss => "CACHE_MISS",
            Self::ComputeStart => "COMPUTE_START",
            Self::ComputeInputEnd => "COMPUTE_INPUT_END",
            Self::ComputeOutputStart => "COMPUTE_OUTPUT_START",
            Self::ComputeEnd => "COMPUTE_END",
            Self::InferResponseComplete => "INFER_RESPONSE_COMPLETE",
            Self::RequestEnd => "REQUEST_END",
        }
    }

    /// When a request begins and ends to be received, and its answer to be sent.
    const fn of_wire(wire: Wire) -> [(Self, Self); 2] {
        match wire {
            Wire::Grpc => [
                (Self::GrpcWaitreadStart, Self::GrpcWaitreadEnd),
                (Self::GrpcSendStart, Self::GrpcSendEnd),
            ],
            Wire::Http => {
                [(Self::HttpRecvStart, Self::HttpRecvEnd), (Self::HttpSendStart, Self::HttpSendEnd)]
            }
        }
    }

    /// Whether it is the client's request that it concerns, rather than the model.
    pub(super) const fn is_of_client(self) -> bool {
        matches!(
            self,
            Self::GrpcWaitreadStart
                | Self::GrpcWaitreadEnd
                | Self::HttpRecvStart
                | Self::HttpRecvEnd
                | Self::InferResponseComplete
                | Self::GrpcSendStart
                | Self::GrpcSendEnd
                | Self::HttpSendStart
                | Self::HttpSendEnd
        )
    }

    /// Whether it is of the time in which the model runs.
    pub(super) const fn is_of_compute(self) -> bool {
        matches!(
            self,
            Self::ComputeStart
                | Self::ComputeInputEnd
                | Self::ComputeOutputStart
                | Self::ComputeEnd
        )
    }
}

/// A tensor of a request, where it lies.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TracedTensor {
    pub name: Arc<str>,
    pub datatype: DataType,
    pub shape: Shape,
    pub data: Rope,
}

/// A trace as those of the requests that serve it know it.
#[derive(Clone)]
pub struct OuterTrace {
    pub(super) id: u64,
    pub(super) span: TraceParent,
    pub(super) level: Level,
    pub(super) log_frequency: u32,
    pub(super) joins: bool,
}

impl OuterTrace {
    /// What a model hands on, so that what others note becomes part of the trace: the headers of W3C Trace
    /// Context as a JSON object; `None` where traces are no spans.
    pub fn context(&self) -> Option<String> {
        self.joins.then(|| format!(r#"{{"traceparent":"{}"}}"#, self.span))
    }
}

/// What is noted of one request.
pub struct Trace {
    pub(super) id: u64,
    /// The number of the trace of the request that this one serves.
    pub(super) outer: Option<u64>,
    pub(super) model: Arc<str>,
    pub(super) version: i64,
    pub(super) request_id: CompactString,
    /// The span that its span lies in, which is a client's or that of the outer request.
    pub(super) parent: Option<TraceParent>,
    /// Its span.
    pub(super) span: TraceParent,
    pub(super) level: Level,
    pub(super) log_frequency: u32,
    /// Whether it can be a part of a client's trace.
    pub(super) joins: bool,
    /// In the order of their times once it is handed in.
    pub(super) events: SmallVec<[(Event, Timestamp); 8]>,
    /// When its request came and its answer went, if an ingress notes that.
    pub(super) wire: Option<WireTimes>,
    pub(super) inputs: Vec<TracedTensor>,
    pub(super) outputs: Vec<TracedTensor>,
    pub(super) sink: Sender<Message>,
}

impl Trace {
    /// What the traces of requests that serve this one need.
    pub fn as_outer(&self) -> OuterTrace {
        let Self { id, span, level, log_frequency, joins, .. } = *self;
        OuterTrace { id, span, level, log_frequency, joins }
    }

    /// Whether tensors are noted.
    pub fn wants_tensors(&self) -> bool {
        self.level.has(Level::TENSORS)
    }

    /// Notes when something happened.
    pub fn at(&mut self, event: Event, when: Timestamp) {
        if self.level.has(Level::TIMESTAMPS) {
            self.events.push((event, when));
        }
    }

    /// Notes an input as it was queued.
    pub fn input(&mut self, tensor: TracedTensor) {
        self.inputs.push(tensor);
    }

    /// Notes outputs as the back end gave them, where tensors are noted.
    pub fn outputs(&mut self, outputs: &[InferOutput]) {
        if self.wants_tensors() {
            self.outputs.extend(outputs.iter().map(|output| TracedTensor {
                name: output.name.clone(),
                datatype: output.datatype,
                shape: output.shape.clone(),
                data: output.data.clone().into(),
            }));
        }
    }

    /// Has the times of the wire noted.
    pub fn came_by(&mut self, wire: WireTimes) {
        self.wire = Some(wire);
    }

    /// Notes that the answer is there, and hands it in. What serves another request answers no client.
    pub fn answered(mut self: Box<Self>, when: Timestamp) {
        if self.outer.is_none() {
            self.at(Event::InferResponseComplete, when);
        }
        self.at(Event::RequestEnd, when);
        self.finish();
    }

    /// Hands it in, once the answer is sent where that is noted.
    pub fn finish(mut self: Box<Self>) {
        match self.wire.take() {
            None => self.hand_in(),
            Some(wire) => wire.afterwards(move |record| {
                self.note(record);
                self.hand_in();
            }),
        }
    }

    fn note(&mut self, record: WireRecord) {
        let WireRecord { wire, received, sent } = record;
        let [receiving, sending] = Event::of_wire(wire);
        let times = [(receiving, Some(received)), (sending, sent)];
        for ((start, end), (began, ended)) in
            times.into_iter().filter_map(|(events, times)| Some((events, times?)))
        {
            self.at(start, began);
            self.at(end, ended);
        }
        self.events.sort_by_key(|(_, when)| *when);
    }

    /// Gives it to the thread that writes traces; dropped when too many wait there.
    fn hand_in(self: Box<Self>) {
        let sink = self.sink.clone();
        if sink.try_send(Message::Trace(self)).is_err() {
            log::debug!("a trace was dropped: too many wait to be written");
        }
    }

    /// Appends its records, with commas between them. `origin` is what the zero of our clock is in
    /// nanoseconds of the system's monotonic clock, in which Triton gives times.
    pub(super) fn write(&self, json: &mut String, origin: u64) {
        let id = self.id;
        // Writing to a string does not fail.
        let _ = write!(
            json,
            r#"{{"id":{id},"model_name":{},"model_version":{}"#,
            quoted(&self.model),
            self.version
        );
        if !self.request_id.is_empty() {
            let _ = write!(json, r#","request_id":{}"#, quoted(&self.request_id));
        }
        if let Some(outer) = self.outer {
            let _ = write!(json, r#","parent_id":{outer}"#);
        }
        json.push('}');
        let mut events = self.events.iter().peekable();
        let mut stamps = |json: &mut String, until: Option<Event>| {
            while let Some((event, when)) =
                events.next_if(|(event, _)| until.is_none_or(|until| *event != until))
            {
                let ns = origin.wrapping_add(when.as_nanos());
                let name = event.name();
                let _ =
                    write!(json, r#",{{"id":{id},"timestamps":[{{"name":"{name}","ns":{ns}}}]}}"#);
            }
        };
        stamps(json, Some(Event::ComputeStart));
        let activities =
            [("TENSOR_QUEUE_INPUT", &self.inputs), ("TENSOR_BACKEND_OUTPUT", &self.outputs)];
        for (activity, tensors) in activities {
            for tensor in tensors {
                let _ = write!(
                    json,
                    r#",{{"id":{id},"activity":"{activity}","tensor":{{"name":{},"data":{},"shape":"{}","dtype":"{}"}}}}"#,
                    quoted(&tensor.name),
                    quoted(&elements(tensor)),
                    listed(tensor.shape.iter()),
                    tensor.datatype.protocol_name(),
                );
            }
        }
        stamps(json, None);
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn listed(items: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let mut text = String::new();
    for (index, item) in items.enumerate() {
        let _ = write!(text, "{}{item}", if index > 0 { "," } else { "" });
    }
    text
}

/// The elements with commas between them; strings in quotes.
fn elements(tensor: &TracedTensor) -> String {
    let data = tensor.data.clone().into_bytes();
    macro_rules! list {
        ($number:ty) => {
            listed(data.as_chunks().0.iter().map(|&bytes| <$number>::from_le_bytes(bytes)))
        };
    }
    match tensor.datatype {
        DataType::Bool => listed(data.iter().map(|&byte| u8::from(byte != 0))),
        DataType::Uint8 => list!(u8),
        DataType::Uint16 => list!(u16),
        DataType::Uint32 => list!(u32),
        DataType::Uint64 => list!(u64),
        DataType::Int8 => list!(i8),
        DataType::Int16 => list!(i16),
        DataType::Int32 => list!(i32),
        DataType::Int64 => list!(i64),
        DataType::Fp16 => list!(f16),
        DataType::Bf16 => list!(bf16),
        DataType::Fp32 => list!(f32),
        DataType::Fp64 => list!(f64),
        DataType::Bytes => strings(&data),
    }
}

fn strings(mut rest: &[u8]) -> String {
    let mut found = Vec::new();
    while let Some((prefix, tail)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*prefix) as usize;
        let Some((string, tail)) = tail.split_at_checked(length) else { break };
        found.push(format!("\"{}\"", String::from_utf8_lossy(string)));
        rest = tail;
    }
    found.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: DataType, shape: Shape, data: &[u8]) -> TracedTensor {
        TracedTensor { name: "IN".into(), datatype, shape, data: data.to_vec().into() }
    }

    #[test]
    fn records_have_tritons_shape() {
        let (sink, _traces) = crossbeam_channel::bounded(1);
        let mut trace = Trace {
            id: 5,
            outer: Some(3),
            model: "m".into(),
            version: 2,
            request_id: "a\"b".into(),
            parent: None,
            span: TraceParent { trace: 1, span: 1 },
            level: Level::TIMESTAMPS | Level::TENSORS,
            log_frequency: 0,
            joins: false,
            events: SmallVec::new(),
            wire: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            sink,
        };
        trace.at(Event::RequestStart, Timestamp::from_nanos(7));
        trace.at(Event::ComputeStart, Timestamp::from_nanos(9));
        trace.input(tensor(DataType::Fp32, Shape::from([1, 2]), bytemuck::bytes_of(&[1_f32, 2.5])));
        trace.outputs.push(tensor(DataType::Bytes, Shape::from([2]), b"\x01\0\0\0a\x02\0\0\0bc"));
        let mut json = String::new();
        trace.write(&mut json, 100);
        let expected = [
            r#"{"id":5,"model_name":"m","model_version":2,"request_id":"a\"b","parent_id":3}"#,
            r#"{"id":5,"timestamps":[{"name":"REQUEST_START","ns":107}]}"#,
            r#"{"id":5,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"IN","data":"1,2.5","shape":"1,2","dtype":"FP32"}}"#,
            r#"{"id":5,"activity":"TENSOR_BACKEND_OUTPUT","tensor":{"name":"IN","data":"\"a\",\"bc\"","shape":"2","dtype":"BYTES"}}"#,
            r#"{"id":5,"timestamps":[{"name":"COMPUTE_START","ns":109}]}"#,
        ];
        assert_eq!(json, expected.join(","));
    }

    #[test]
    fn elements_are_read_by_their_type() {
        for (datatype, data, expected) in [
            (DataType::Bool, &[1, 0, 3][..], "1,0,1"),
            (DataType::Int8, &[0xff, 2], "-1,2"),
            (DataType::Uint16, &[1, 1, 9], "257"),
            (DataType::Fp16, &[0, 0x3c], "1"),
            (DataType::Bytes, &[9, 0, 0, 0, 1], ""),
            (DataType::Int64, &[], ""),
        ] {
            assert_eq!(elements(&tensor(datatype, Shape::from([1]), data)), expected, "{datatype}");
        }
    }
}
