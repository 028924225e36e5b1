//! What HTTP bodies cost to read and to write, beside twins that do as little as can be done
//! (`memcpy`) or what one would do first (a `serde_json::Value`).

use std::{fmt::Write as _, hint::black_box};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nereid::{
    inference::{DataType, InferOutput, InferResponse, Parameters, Rope},
    ingress::http::{
        infer_request::{ResponseForm, parse},
        infer_response::encode,
    },
};

const MANY: usize = 150_000;

/// Floats with as many digits as a model's outputs have.
fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index as f32) * 0.737_1).sin() * 3.0).collect()
}

fn json_request(values: &[f32]) -> Vec<u8> {
    let mut data = String::new();
    for value in values {
        let separator = if data.is_empty() { "" } else { "," };
        let _ = write!(data, "{separator}{value}");
    }
    format!(
        r#"{{"id":"1","inputs":[{{"name":"INPUT0","shape":[1,{}],"datatype":"FP32","data":[{data}]}}],"outputs":[{{"name":"OUTPUT0","parameters":{{"binary_data":false}}}}]}}"#,
        values.len()
    )
    .into_bytes()
}

fn binary_request(tail: usize) -> (Vec<u8>, usize) {
    let json = format!(
        r#"{{"inputs":[{{"name":"INPUT0","shape":[1,{}],"datatype":"FP32","parameters":{{"binary_data_size":{tail}}}}}],"outputs":[{{"name":"OUTPUT0","parameters":{{"binary_data":true}}}}]}}"#,
        tail / 4
    );
    let length = json.len();
    let mut body = json.into_bytes();
    body.resize(length + tail, 7);
    (body, length)
}

/// The elements by way of a tree.
fn by_value(body: &[u8]) -> Vec<u8> {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap();
    let data = value["inputs"][0]["data"].as_array().unwrap();
    data.iter().flat_map(|value| (value.as_f64().unwrap() as f32).to_le_bytes()).collect()
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse/binary 64 B");
    let (body, length) = binary_request(64);
    let body = Rope::from(body);
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("nereid", |bencher| {
        bencher.iter(|| parse("identity", "", black_box(&body), length).unwrap());
    });
    let whole = body.clone().into_bytes();
    group.bench_function("serde_json::Value of the head", |bencher| {
        bencher.iter(|| {
            serde_json::from_slice::<serde_json::Value>(black_box(&whole[..length])).unwrap()
        });
    });
    group.bench_function("memcpy of the body", |bencher| {
        bencher.iter(|| black_box(&whole[..]).to_vec());
    });
    group.finish();

    for count in [16, MANY] {
        let body = Rope::from(json_request(&floats(count)));
        let whole = body.clone().into_bytes();
        let mut group = criterion.benchmark_group(format!("parse/JSON {count} floats"));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("nereid", |bencher| {
            bencher.iter(|| parse("identity", "", black_box(&body), body.len()).unwrap());
        });
        group.bench_function("serde_json::Value", |bencher| {
            bencher.iter(|| by_value(black_box(&whole)));
        });
        group.bench_function("memcpy of the body", |bencher| {
            bencher.iter(|| black_box(&whole[..]).to_vec());
        });
        group.finish();
    }
}

fn response(values: &[f32]) -> InferResponse {
    InferResponse {
        model_name: "identity".into(),
        model_version: 1,
        id: "1".into(),
        parameters: Parameters::default(),
        outputs: [InferOutput {
            name: "OUTPUT0".into(),
            datatype: DataType::Fp32,
            shape: [1, values.len() as i64].into(),
            data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into(),
        }]
        .into_iter()
        .collect(),
    }
}

fn responses(criterion: &mut Criterion) {
    for count in [16, MANY] {
        let values = floats(count);
        let answer = response(&values);
        let data: Bytes = answer.outputs[0].data.clone();

        let mut group = criterion.benchmark_group(format!("encode/binary {} B", data.len()));
        group.throughput(Throughput::Bytes(data.len() as u64));
        let form = ResponseForm { binary_by_default: true, ..ResponseForm::default() };
        group.bench_function("nereid", |bencher| {
            bencher.iter(|| encode(black_box(&answer), &form).unwrap());
        });
        group.bench_function("memcpy of the tensor", |bencher| {
            bencher.iter(|| black_box(&data[..]).to_vec());
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("encode/JSON {count} floats"));
        let form = ResponseForm::default();
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function("nereid", |bencher| {
            bencher.iter(|| encode(black_box(&answer), &form).unwrap());
        });
        group.bench_function("serde_json::Value", |bencher| {
            bencher.iter(|| {
                let value = serde_json::json!({
                    "id": "1", "model_name": "identity", "model_version": "1",
                    "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": [1, count],
                        "data": black_box(&values)}]
                });
                serde_json::to_vec(&value).unwrap()
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = http_codec;
    config = Criterion::default().sample_size(30);
    targets = requests, responses
}
criterion_main!(http_codec);
