//! A decoupled model that gives its input back, one element a response: for trying out clients of
//! such models, and for tests. Its tensors are those of Triton's back end of that name.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    Backend, BackendError, Host, Model, ModelInstance, ModelRequest, ModelResponse, ModelSource,
    Placement, RequestInstance, Responder, ResponseError, ResponseTensor,
};
use crate::inference::{Admitted, Code, DataType, Shape, Signature, TensorSpec};

/// Requests that one instance answers at a time; the next waits until one has its last response.
const ANSWERING_MAX: usize = 4096;

/// Of `IN` each element is a response, `OUT`, with its index, `IDX`, after as many milliseconds as
/// the element of `DELAY` says. The instance is busy for `WAIT` milliseconds; it answers on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repeat;

/// Where the tensors are in the signature.
#[derive(Clone, Copy)]
struct Repeater {
    values: usize,
    delays: usize,
    wait: usize,
    value: u16,
    index: u16,
}

impl Backend for Repeat {
    fn name(&self) -> &'static str {
        "repeat"
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let refuse = |expected: &str| {
            Err(BackendError(format!(
                "model '{}' of back end 'repeat' must have {expected}",
                source.name
            )))
        };
        let decoupled =
            source.config.model_transaction_policy.is_some_and(|policy| policy.decoupled);
        if !decoupled || source.signature.max_batch_size > 0 {
            return refuse("model_transaction_policy { decoupled: true } and max_batch_size 0");
        }
        match Repeater::find(&source.signature) {
            Some(repeater) => Ok(Arc::new(repeater)),
            None => refuse(
                "the inputs IN of TYPE_INT32, DELAY and WAIT of TYPE_UINT32, and the outputs OUT of \
                 TYPE_INT32 and IDX of TYPE_UINT32",
            ),
        }
    }
}

impl Repeater {
    fn find(signature: &Signature) -> Option<Self> {
        let place = |tensors: &[TensorSpec], name: &str, datatype| {
            tensors.iter().position(|spec| *spec.name == *name && spec.datatype == datatype)
        };
        let input = |name, datatype| place(&signature.inputs, name, datatype);
        let output = |name, datatype| place(&signature.outputs, name, datatype)?.try_into().ok();
        Some(Self {
            values: input("IN", DataType::Int32)?,
            delays: input("DELAY", DataType::Uint32)?,
            wait: input("WAIT", DataType::Uint32)?,
            value: output("OUT", DataType::Int32)?,
            index: output("IDX", DataType::Uint32)?,
        })
    }
}

impl Model for Repeater {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        let (answers, receive) = bounded(ANSWERING_MAX);
        let repeater = *self;
        thread::Builder::new()
            .name(format!("{}-answers", placement.name))
            .spawn(move || answer(repeater, &receive))
            .map_err(|error| BackendError(format!("cannot start a thread: {error}")))?;
        Ok(ModelInstance::Requests(Box::new(Accepting { repeater, answers })))
    }
}

/// An instance: hands requests to the thread that answers them.
struct Accepting {
    repeater: Repeater,
    answers: Sender<Answering>,
}

impl RequestInstance for Accepting {
    fn execute(&mut self, requests: Vec<ModelRequest>, _: &Host) {
        for ModelRequest { tensors, responder, .. } in requests {
            let values = elements(&tensors, self.repeater.values);
            let delays = elements(&tensors, self.repeater.delays);
            let wait = elements(&tensors, self.repeater.wait).first().copied().unwrap_or(0);
            if values.len() != delays.len() {
                responder.finish(Err(ResponseError {
                    code: Code::InvalidArgument,
                    message: format!(
                        "expected IN and DELAY to have the same number of elements, got {} and {}",
                        values.len(),
                        delays.len()
                    ),
                }));
                continue;
            }
            let rest = values.into_iter().zip(delays).collect::<Vec<_>>().into_iter();
            let answering = Answering { next: Instant::now(), sent: 0, rest, responder };
            // The other end is there as long as this is.
            if let Err(refused) = self.answers.send(answering) {
                drop(refused);
            }
            thread::sleep(Duration::from_millis(wait.into()));
        }
    }
}

/// The elements of an input of four bytes each.
fn elements(tensors: &Admitted, input: usize) -> Vec<u32> {
    let Some(Some(input)) = tensors.inputs.get(input) else { return Vec::new() };
    let bytes = input.data.clone().into_bytes();
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

/// A request whose responses are still to come, ordered by when the next one is.
struct Answering {
    next: Instant,
    sent: u32,
    /// Values, each with the milliseconds to wait before it is sent.
    rest: std::vec::IntoIter<(u32, u32)>,
    responder: Responder,
}

impl PartialEq for Answering {
    fn eq(&self, other: &Self) -> bool {
        self.next == other.next
    }
}

impl Eq for Answering {}

impl PartialOrd for Answering {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Answering {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.next.cmp(&other.next)
    }
}

/// Answers requests until the instance is gone and all are answered.
fn answer(repeater: Repeater, requests: &Receiver<Answering>) {
    let mut waiting: BinaryHeap<Reverse<Answering>> = BinaryHeap::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        let arrived = match waiting.peek() {
            _ if waiting.len() >= ANSWERING_MAX => Err(RecvTimeoutError::Timeout),
            Some(Reverse(first)) if open => requests.recv_deadline(first.next),
            Some(_) => Err(RecvTimeoutError::Timeout),
            None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match arrived {
            Ok(answering) => waiting.extend(wait(answering).map(Reverse)),
            Err(RecvTimeoutError::Disconnected) => open = false,
            Err(RecvTimeoutError::Timeout) => {
                let Some(Reverse(mut due)) = waiting.pop() else { continue };
                thread::sleep(due.next.saturating_duration_since(Instant::now()));
                if let Some((value, _)) = due.rest.next() {
                    due.responder.send(Ok(repeater.response(value, due.sent)));
                    due.sent += 1;
                }
                waiting.extend(wait(due).map(Reverse));
            }
        }
    }
}

/// Sets when the next response is due; ends the answer if there is none, or nobody to read it.
fn wait(mut answering: Answering) -> Option<Answering> {
    match answering.rest.as_slice().first() {
        Some(&(_, delay)) if !answering.responder.is_cancelled() => {
            answering.next = Instant::now() + Duration::from_millis(delay.into());
            Some(answering)
        }
        _ => {
            answering.responder.close();
            None
        }
    }
}

impl Repeater {
    fn response(&self, value: u32, index: u32) -> ModelResponse {
        let tensor = |output, datatype, element: u32| ResponseTensor {
            output,
            datatype,
            shape: Shape::from([1]),
            data: Bytes::copy_from_slice(&element.to_le_bytes()),
        };
        ModelResponse {
            outputs: [
                tensor(self.value, DataType::Int32, value),
                tensor(self.index, DataType::Uint32, index),
            ]
            .into_iter()
            .collect(),
            ..ModelResponse::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::mpsc};

    use super::*;
    use crate::{
        backend::{PlacementDevice, Respond},
        inference::AdmittedInput,
        memory::BufferPool,
        proto::{ModelConfig, ModelTransactionPolicy},
    };

    /// Tells the test what was answered.
    struct Tell(mpsc::Sender<Told>);

    type Told = Result<(u32, u32), String>;

    impl Respond for Tell {
        fn send(&mut self, response: Result<ModelResponse, ResponseError>) {
            let element = |tensor: &ResponseTensor| {
                u32::from_le_bytes(tensor.data[..].try_into().expect("four bytes"))
            };
            let told = response
                .map(|it| (element(&it.outputs[0]), element(&it.outputs[1])))
                .map_err(|error| error.message);
            // The test may have seen enough and be over.
            let _ = self.0.send(told);
        }

        fn finish(mut self: Box<Self>, last: Option<Result<ModelResponse, ResponseError>>) {
            if let Some(last) = last {
                self.send(last);
            }
        }

        fn drop_unfinished(self: Box<Self>) {
            self.0.send(Err("dropped".to_owned())).expect("the test listens");
        }

        fn is_cancelled(&self) -> bool {
            false
        }
    }

    fn source(decoupled: bool) -> ModelSource {
        let spec = |name, datatype, size| TensorSpec::new(name, datatype, Shape::from([size]));
        let signature = Signature {
            model: "m".into(),
            max_batch_size: 0,
            inputs: vec![
                spec("IN", DataType::Int32, -1),
                spec("DELAY", DataType::Uint32, -1),
                spec("WAIT", DataType::Uint32, 1),
            ],
            outputs: vec![spec("OUT", DataType::Int32, 1), spec("IDX", DataType::Uint32, 1)],
        };
        let policy = Some(ModelTransactionPolicy { decoupled });
        ModelSource {
            name: "m".into(),
            version: 1,
            model_dir: Default::default(),
            version_dir: Default::default(),
            model_path: Default::default(),
            config: Arc::new(ModelConfig {
                model_transaction_policy: policy,
                ..Default::default()
            }),
            signature: Arc::new(signature),
            settings: Arc::new(BTreeMap::new()),
        }
    }

    fn request(tensors: [&[u32]; 3]) -> (ModelRequest, mpsc::Receiver<Told>) {
        let input = |elements: &[u32]| AdmittedInput {
            shape: Shape::from([elements.len() as i64]),
            data: elements.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>().into(),
        };
        let (tell, told) = mpsc::channel();
        let request = ModelRequest {
            id: Default::default(),
            tensors: Admitted {
                batch_size: 1,
                inputs: tensors.iter().map(|elements| Some(input(elements))).collect(),
                outputs: [0, 1].into_iter().collect(),
                classes: Default::default(),
            },
            parameters: Default::default(),
            sequence: None,
            callers: None,
            priority: 0,
            queue_timeout: None,
            deadline: None,
            trace: None,
            responder: Responder::new(Box::new(Tell(tell))),
        };
        (request, told)
    }

    #[test]
    fn each_element_is_a_response_and_the_soonest_comes_first() {
        let model = Repeat.load(&source(true)).unwrap();
        let host = Arc::new(Host::without_models(BufferPool::new(1 << 16, 1 << 16).unwrap()));
        let placement = Placement {
            name: "m_0".into(),
            device: PlacementDevice::Cpu,
            host_policy: "cpu".into(),
        };
        let Ok(ModelInstance::Requests(mut instance)) = model.instance(&placement, &host) else {
            panic!("it takes requests");
        };
        let (slow, slowly) = request([&[7, 8], &[60_000, 0], &[0]]);
        let (fast, quickly) = request([&[9, 10, 11], &[1, 0, 1], &[1]]);
        let (none, nothing) = request([&[], &[], &[0]]);
        let (uneven, refusal) = request([&[1], &[], &[0]]);
        instance.execute(vec![slow, fast, none, uneven], &host);
        let all: Vec<_> = quickly.iter().map(Result::unwrap).collect();
        assert_eq!(all, [(9, 0), (10, 1), (11, 2)]);
        assert_eq!(nothing.iter().count(), 0);
        let refusal: Vec<_> = refusal.iter().map(Result::unwrap_err).collect();
        assert!(refusal[0].contains("got 1 and 0"), "{refusal:?}");
        assert_eq!(slowly.try_recv(), Err(mpsc::TryRecvError::Empty));
        assert!(Repeat.load(&source(false)).is_err());
    }
}
