//! Models that answer their requests themselves, and requests of models to each other.

use bytes::Bytes;

use super::*;
use crate::{
    backend::{
        Answer, Asked, ModelRequest, ModelResponse, NearBatch, NearInstance, RequestInstance,
        ResponseError, ResponseTensor,
    },
    inference::{Code, Error, Parameter},
    proto::ModelTransactionPolicy,
    runtime::{End, ReactorHandle, try_current},
};

/// Hands each request to the test.
struct Passing(mpsc::Sender<ModelRequest>);

impl Model for Passing {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Requests(Box::new(Self(self.0.clone()))))
    }
}

impl RequestInstance for Passing {
    fn execute(&mut self, requests: Vec<ModelRequest>, _: &Host) {
        requests.into_iter().for_each(|request| self.0.send(request).unwrap());
    }
}

fn passing(decoupled: bool) -> (Stage, mpsc::Receiver<ModelRequest>) {
    let (pass, requests) = mpsc::channel();
    let policy = Some(ModelTransactionPolicy { decoupled });
    let config = proto::ModelConfig { model_transaction_policy: policy, ..Default::default() };
    let dynamic = Some(DynamicBatching::default());
    (Stage::set_up(Passing(pass), dynamic, config), requests)
}

fn response(value: u8) -> ModelResponse {
    let mut response = ModelResponse::default();
    response.parameters.insert("value", Parameter::Int(value.into()));
    response.outputs.push(ResponseTensor {
        output: 0,
        datatype: DataType::Uint8,
        shape: Shape::from([1, 2]),
        data: Bytes::from(vec![value; 2]),
    });
    response
}

fn failure(message: &str) -> ResponseError {
    ResponseError { code: Code::Unavailable, message: message.to_owned() }
}

type Heard = (Vec<Result<u8, Error>>, Option<End>);

impl Stage {
    /// Sends a request, and returns where all its replies and their end will come.
    fn listen(&self) -> mpsc::Receiver<Heard> {
        let (report, heard) = mpsc::channel();
        let server = self.server.clone();
        let asking = move || {
            let mut replies = server.infer(request(7), None).unwrap();
            spawn(&"a client", async move {
                let mut got = Vec::new();
                while let Some(reply) = replies.receive().await {
                    got.push(reply.map(|response| response.outputs[0].data[0]));
                }
                report.send((got, replies.end())).unwrap();
            });
        };
        self.reactors.handles()[0].send(Box::new(asking)).unwrap();
        heard
    }
}

fn request(value: u8) -> InferRequest {
    let shape = Shape::from([1, ROW as i64]);
    let input = InferInput::new("IN", DataType::Uint8, shape, vec![value; ROW]);
    let mut parameters = Parameters::default();
    parameters.insert("free", Parameter::Bool(true));
    let inputs = [input].into_iter().collect();
    InferRequest { model_name: "m".into(), inputs, parameters, ..InferRequest::default() }
}

#[test]
fn a_decoupled_model_gives_any_number_of_responses() {
    let (stage, requests) = passing(true);
    let next = || requests.recv_timeout(PATIENCE).unwrap();
    let heard = |from: mpsc::Receiver<Heard>| from.recv_timeout(PATIENCE).unwrap();

    let some = stage.listen();
    let mut request = next();
    assert_eq!(request.parameters.get("free"), Some(&Parameter::Bool(true)));
    assert_eq!(request.tensors.inputs[0].as_ref().unwrap().data.len(), ROW);
    request.responder.send(Ok(response(1)));
    request.responder.send(Err(failure("for now")));
    assert!(!request.responder.is_cancelled());
    // It may go to any thread.
    thread::spawn(move || request.responder.finish(Ok(response(3)))).join().unwrap();
    let failed = Error::Model { code: Code::Unavailable, detail: "for now".into() };
    assert_eq!(heard(some), (vec![Ok(1), Err(failed), Ok(3)], Some(End::Last)));

    let none = stage.listen();
    next().responder.close();
    assert_eq!(heard(none), (Vec::new(), Some(End::Closed)));

    let let_go = stage.listen();
    drop(next());
    let (replies, end) = heard(let_go);
    let text = replies[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("'m' let go of a request"), "{text}");
    assert_eq!(end, Some(End::Last));

    let totals = stage.totals_after(3);
    assert_eq!((totals.executions, totals.inferences), (3, 3));
    assert_eq!((totals.success.count, totals.fail.count), (1, 2));
    let version = stage.server.version("m", "").unwrap();
    let responses = version.statistics.to_proto("m", 1).response_stats;
    let count = |index: &str| {
        let counted = &responses[index];
        [&counted.success, &counted.fail, &counted.empty_response].map(|it| it.unwrap().count)
    };
    assert_eq!((count("0"), count("1"), count("2")), ([1, 0, 1], [0, 1, 0], [1, 0, 0]));
    stage.end();
}

#[test]
fn another_model_gives_exactly_one() {
    let (stage, requests) = passing(false);
    let next = || requests.recv_timeout(PATIENCE).unwrap();
    let one = |from: mpsc::Receiver<Heard>| {
        let (mut replies, end) = from.recv_timeout(PATIENCE).unwrap();
        assert_eq!((replies.len(), end), (1, Some(End::Last)));
        replies.remove(0).map_err(|error| error.to_string())
    };
    let heard = stage.listen();
    let mut request = next();
    request.responder.send(Ok(response(1)));
    request.responder.finish(Ok(response(2)));
    assert_eq!(one(heard), Ok(1));

    let heard = stage.listen();
    next().responder.close();
    assert!(one(heard).unwrap_err().contains("without a response"));

    let heard = stage.listen();
    let mut wrong = response(1);
    wrong.outputs[0].shape = Shape::from([1, 3]);
    next().responder.finish(Ok(wrong));
    assert!(one(heard).unwrap_err().contains("output 'OUT' of model 'm' has 2 bytes"));
    stage.end();
}

#[test]
fn a_model_learns_that_its_client_has_left() {
    let (stage, requests) = passing(true);
    let _answer = stage.ask(7, 0);
    let mut request = requests.recv_timeout(PATIENCE).unwrap();
    assert!(!request.responder.is_cancelled());
    stage.leave(7);
    assert!(request.responder.is_cancelled());
    request.responder.send(Ok(response(1)));
    request.responder.close();
    stage.end();
}

/// Asks for its model from a thread that is no reactor, as a model would.
fn ask_from_inside(stage: &Stage) -> (Asked, mpsc::Receiver<Answer>) {
    let (report, answers) = mpsc::channel();
    let host = stage.server.version("m", "").unwrap().host.clone();
    // The test may have lost its interest.
    let answer = Box::new(move |answer| drop(report.send(answer)));
    (host.models.ask(request(1), None, answer).unwrap(), answers)
}

#[test]
fn models_ask_models_from_any_thread() {
    let (stage, requests) = passing(true);
    let (_asked, answers) = ask_from_inside(&stage);
    let mut request = requests.recv_timeout(PATIENCE).unwrap();
    request.responder.send(Ok(response(5)));
    let first = answers.recv_timeout(PATIENCE).unwrap();
    assert!(!first.is_last);
    assert_eq!(first.response.unwrap().unwrap().outputs[0].data[0], 5);
    request.responder.close();
    let last = answers.recv_timeout(PATIENCE).unwrap();
    assert!(last.is_last && last.response.is_none());

    // Who does not want the answer any more leaves like a client.
    let (asked, answers) = ask_from_inside(&stage);
    let request = requests.recv_timeout(PATIENCE).unwrap();
    drop(asked);
    let patience = Instant::now() + PATIENCE;
    while !request.responder.is_cancelled() {
        assert!(Instant::now() < patience, "the request was not abandoned");
        thread::yield_now();
    }
    drop(request);
    assert!(answers.recv_timeout(PATIENCE).is_err());
    stage.end();
}

/// Hands over a batch's requests, with what is told of the batch when its home has begun it itself.
type Begun = (Vec<ModelRequest>, Option<Box<dyn NearBatch>>);

/// Begins batches on its home as long as it says that it takes them, else on the instance's thread.
#[derive(Clone)]
struct Beside {
    pass: mpsc::Sender<Begun>,
    takes: Arc<AtomicBool>,
    kept: Arc<Mutex<Vec<Begun>>>,
}

impl Model for Beside {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Requests(Box::new(self.clone())))
    }
}

impl RequestInstance for Beside {
    fn execute(&mut self, requests: Vec<ModelRequest>, _: &Host) {
        assert!(try_current().is_none(), "a thread of its own");
        self.pass.send((requests, None)).unwrap();
    }

    fn attach(&mut self, _: &ReactorHandle) -> Option<Arc<dyn NearInstance>> {
        Some(Arc::new(self.clone()))
    }
}

impl NearInstance for Beside {
    fn takes(&self, inputs: &mut dyn Iterator<Item = usize>) -> bool {
        assert_eq!(inputs.collect::<Vec<_>>(), [ROW]);
        self.takes.load(Ordering::Relaxed)
    }

    fn running(&self) -> usize {
        0
    }

    fn begin(&self, requests: Vec<ModelRequest>, batch: Box<dyn NearBatch>) {
        assert!(try_current().is_some(), "its home");
        self.kept.lock().unwrap().push((requests, Some(batch)));
    }

    fn flush(&self) {
        self.kept.lock().unwrap().drain(..).for_each(|begun| self.pass.send(begun).unwrap());
    }
}

#[test]
fn what_needs_no_waiting_begins_at_home_and_ends_anywhere() {
    let (pass, begun) = mpsc::channel();
    let (takes, kept) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let model = Beside { pass, takes: takes.clone(), kept };
    let stage = Stage::set(model, None);
    // More than can be in flight, so that ends must be told.
    for number in 0..40 {
        let at_home = number % 4 != 0;
        takes.store(at_home, Ordering::Relaxed);
        let heard = stage.listen();
        let (requests, batch) = begun.recv_timeout(PATIENCE).unwrap();
        assert_eq!(batch.is_some(), at_home);
        for request in requests {
            request.responder.finish(Ok(response(number)));
        }
        if let Some(batch) = batch {
            batch.ended();
        }
        let (replies, end) = heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!((replies, end), (vec![Ok(number)], Some(End::Last)));
    }
    assert_eq!(stage.totals_after(40).executions, 40);
    stage.end();
}
