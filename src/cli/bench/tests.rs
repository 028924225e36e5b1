//! The whole of `bench` against a server of a few lines that speaks gRPC.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use prost::Message;

use super::*;
use crate::{
    inference::DataType,
    proto::{
        InferParameter, ModelConfig, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
        ModelMetadataResponse, ModelStatistics, ModelStatisticsResponse, ModelStreamInferResponse,
        ModelTransactionPolicy, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
    },
    runtime::{self, Acceptor, Driver, DriverChoice, Listener, TcpStream},
};

/// A server of a model that answers each request with its inputs; three times and then that this
/// was all when it is decoupled.
struct Echo {
    decoupled: bool,
    /// Every so many requests one is refused.
    refuse_every: u64,
    requests: AtomicU64,
}

impl Echo {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let echo = self.clone();
            runtime::spawn(&"a test's request", async move {
                // Clients that leave in the middle are no failure of theirs.
                let _ = echo.answer(request, respond).await;
            });
        }
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let mut body = request.into_body();
        let mut answer = respond.send_response(Response::new(()), false)?;
        let mut received = BytesMut::new();
        let mut refused = false;
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            received.extend_from_slice(&chunk);
            while received.len() >= 5 {
                let length = u32::from_be_bytes(received[1..5].try_into().unwrap()) as usize;
                if received.len() < 5 + length {
                    break;
                }
                let message = received.split_to(5 + length).split_off(5).freeze();
                refused |= self.respond(&method, message, &mut answer)?;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", if refused { "14" } else { "0" }.parse().unwrap());
        trailers.insert("grpc-message", "full%2C sorry".parse().unwrap());
        answer.send_trailers(trailers)
    }

    /// Answers a message, or tells that it is refused.
    fn respond(
        &self,
        method: &str,
        message: Bytes,
        answer: &mut SendStream<Bytes>,
    ) -> Result<bool, h2::Error> {
        let count = self.requests.load(Ordering::Relaxed);
        let encoded = match method {
            "ModelMetadata" => ModelMetadataResponse {
                inputs: vec![TensorMetadata {
                    name: "IN".to_owned(),
                    datatype: DataType::Int32.to_string(),
                    shape: vec![-1, 4],
                }],
                ..Default::default()
            }
            .encode_to_vec(),
            "ModelConfig" => {
                let config = ModelConfig {
                    max_batch_size: 8,
                    model_transaction_policy: Some(ModelTransactionPolicy {
                        decoupled: self.decoupled,
                    }),
                    ..Default::default()
                };
                ModelConfigResponse { config: Some(config) }.encode_to_vec()
            }
            "ModelStatistics" => {
                let stats = ModelStatistics {
                    inference_count: 2 * count,
                    execution_count: count,
                    ..Default::default()
                };
                ModelStatisticsResponse { model_stats: vec![stats] }.encode_to_vec()
            }
            _ => {
                let count = self.requests.fetch_add(1, Ordering::Relaxed);
                let refused = count % self.refuse_every == self.refuse_every - 1;
                let request = ModelInferRequest::decode(message).unwrap();
                assert_eq!(
                    (request.inputs[0].name.as_str(), &request.inputs[0].shape[..]),
                    ("IN", &[2, 4][..])
                );
                match (method, refused) {
                    ("ModelInfer", true) => return Ok(true),
                    ("ModelInfer", false) => echoed(&request).encode_to_vec(),
                    _ => return self.stream(&request, refused, answer).map(|()| false),
                }
            }
        };
        answer.send_data(client::frame(&encoded), false)?;
        Ok(false)
    }

    fn stream(
        &self,
        request: &ModelInferRequest,
        refused: bool,
        answer: &mut SendStream<Bytes>,
    ) -> Result<(), h2::Error> {
        let mut send = |error: &str, response: Option<ModelInferResponse>| {
            let error_message = error.to_owned();
            let message = ModelStreamInferResponse { error_message, infer_response: response };
            answer.send_data(client::frame(&message.encode_to_vec()), false)
        };
        if refused {
            return send("full, sorry", None);
        }
        if !self.decoupled {
            return send("", Some(echoed(request)));
        }
        assert!(request.parameters.contains_key("triton_enable_empty_final_response"));
        for last in [false, false, false, true] {
            let mut response = if last { ModelInferResponse::default() } else { echoed(request) };
            let flag = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(last)) };
            response.parameters.insert("triton_final_response".to_owned(), flag);
            send("", Some(response))?;
        }
        Ok(())
    }
}

fn echoed(request: &ModelInferRequest) -> ModelInferResponse {
    let output = InferOutputTensor { name: "OUT".to_owned(), ..Default::default() };
    let raw_output_contents = request.raw_input_contents.clone();
    ModelInferResponse { outputs: vec![output], raw_output_contents, ..Default::default() }
}

/// Runs `bench` against an [`Echo`] and returns its JSON together with the requests that the
/// server saw.
fn bench(
    line: &str,
    driver: Driver,
    decoupled: bool,
    refuse_every: u64,
) -> Result<(serde_json::Value, u64), BenchError> {
    let settings = ReactorSettings {
        count: 1,
        driver: DriverChoice::Only(driver),
        idle_spin: Duration::ZERO,
        mailbox_capacity: MAILBOX,
    };
    let reactors = Reactors::start(&settings, &Topology::read().unwrap()).unwrap();
    let echo = Arc::new(Echo { decoupled, refuse_every, requests: AtomicU64::new(0) });
    let serving = echo.clone();
    let listener = Listener::bind(
        "127.0.0.1:0".parse().unwrap(),
        false,
        Arc::new(move |stream, _| {
            runtime::spawn(&"a test's connection", serving.clone().serve(stream));
        }),
    )
    .unwrap();
    let address = listener.address().unwrap();
    let acceptor = Acceptor::start(vec![listener], reactors.handles().to_vec(), 16).unwrap();
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = args::parse(&format!(
        "-m echo -i grpc -u {address} -b 2 -p 100 -r 3 -s 1000000 --quiet --io-driver {driver} \
         --json {} {line}",
        json.path().display()
    ));
    let outcome = run(args.unwrap());
    acceptor.stop();
    reactors.stop();
    outcome?;
    let json = serde_json::from_str(&fs::read_to_string(json.path()).unwrap()).unwrap();
    Ok((json, echo.requests.load(Ordering::Relaxed)))
}

const NEVER: u64 = u64::MAX;

#[test]
fn each_load_is_measured_on_each_event_loop() {
    for driver in [Driver::Epoll, Driver::IoUring] {
        for line in [
            "--concurrency-range 1:5:4 --connections 2",
            "--concurrency-range 3:4 --streaming",
            "--concurrency-range 2:3 --client-threads 2 --warmup-request-count 10",
        ] {
            let (json, seen) = bench(line, driver, false, NEVER).unwrap();
            let results = json["results"].as_array().unwrap();
            assert_eq!(results.len(), 2, "{driver} {line}");
            for result in results {
                let requests = result["requests"].as_u64().unwrap();
                assert!(requests > 0 && requests <= seen, "{driver} {line}: {requests} of {seen}");
                assert_eq!((&result["errors"], &result["stable"]), (&0.into(), &true.into()));
                assert_eq!(result["server"]["average_batch"], 2.0, "{driver} {line}");
            }
        }
    }
}

#[test]
fn a_rate_is_kept() {
    for driver in [Driver::Epoll, Driver::IoUring] {
        let line = "--request-rate-range 200 --max-in-flight 8";
        let (json, _) = bench(line, driver, false, NEVER).unwrap();
        let result = &json["results"][0];
        let (rate, delay) = (&result["infer_per_s"], &result["send_delay_p50_us"]);
        assert!((200.0..600.0).contains(&rate.as_f64().unwrap()), "{driver}: {rate}");
        assert!(delay.as_f64().unwrap() < 50_000.0, "{driver}: {delay}");
    }
}

#[test]
fn a_decoupled_request_ends_with_its_last_response() {
    let line = "--concurrency-range 2 --streaming";
    let (json, seen) = bench(line, Driver::Epoll, true, NEVER).unwrap();
    let result = &json["results"][0];
    assert!(result["requests"].as_u64().unwrap() <= seen);
    assert_eq!(result["errors"], 0);
    let error = bench("--concurrency-range 2", Driver::Epoll, true, NEVER).unwrap_err();
    assert!(matches!(error, BenchError::Model { .. }), "{error}");
}

#[test]
fn refused_requests_are_errors_and_nothing_but_them_is_a_failure() {
    for (line, message) in [("", "UNAVAILABLE: full, sorry"), ("--streaming", "full, sorry")] {
        let (json, _) = bench(line, Driver::Epoll, false, 3).unwrap();
        let result = &json["results"][0];
        let (answers, errors) =
            (result["requests"].as_f64().unwrap(), result["errors"].as_f64().unwrap());
        assert!((answers / errors - 2.0).abs() < 0.2, "{line}: {answers} and {errors}");
        assert_eq!(result["error_messages"][message].as_f64(), Some(errors), "{line}");
        let error = bench(line, Driver::Epoll, false, 1).unwrap_err().to_string();
        assert!(error.starts_with("no request was answered at concurrency 1: "), "{error}");
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn options_are_held_against_the_model() {
    let error = bench("--shape OUT:4", Driver::Epoll, false, NEVER);
    assert!(matches!(error, Err(BenchError::Model { .. })));
    let error = bench("--shape IN:5", Driver::Epoll, false, NEVER).unwrap_err().to_string();
    assert!(error.contains("dimensions [5], expected [4]"), "{error}");
}
