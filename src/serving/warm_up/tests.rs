use super::*;
use crate::{
    backend::{BackendError, BatchOutputs},
    inference::TensorSpec,
};

/// Notes what it is run with.
#[derive(Default)]
struct Witness {
    seen: Vec<(u32, Shape, Bytes)>,
    fails: bool,
}

impl Instance for Witness {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let input = batch.inputs[0].as_ref().expect("the input is there");
        self.seen.push((batch.rows, input.shape.clone(), input.data.clone()));
        match self.fails {
            true => Err(BackendError("out of order".into())),
            false => Ok(BatchOutputs::new()),
        }
    }
}

fn signature(max_batch_size: u32, datatype: DataType) -> Signature {
    Signature {
        model: "m".into(),
        max_batch_size,
        inputs: vec![TensorSpec::new("IN", datatype, Shape::from([2]))],
        outputs: Vec::new(),
    }
}

fn sample(data_type: i32, dims: &[i64], data: Option<InputDataType>) -> ModelWarmup {
    let input = Input { data_type, dims: dims.to_vec(), input_data_type: data };
    ModelWarmup {
        name: "first".into(),
        batch_size: 3,
        inputs: [("IN".to_owned(), input)].into(),
        count: 2,
    }
}

fn read(
    sample: ModelWarmup,
    signature: &Signature,
    dir: &Path,
) -> Result<Vec<WarmUp>, WarmUpError> {
    let config = ModelConfig { model_warmup: vec![sample], ..ModelConfig::default() };
    WarmUp::read_all(&config, signature, dir)
}

const UINT16: i32 = 3;

#[test]
fn each_run_has_a_batch_of_as_many_requests_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FOLDER)).unwrap();
    fs::write(dir.path().join(FOLDER).join("data"), [1, 0, 2, 0, 9]).unwrap();
    let signature = signature(4, DataType::Uint16);
    let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
    for (data, row) in [
        (InputDataType::ZeroData(true), [0, 0, 0, 0]),
        (InputDataType::InputDataFile("data".into()), [1, 0, 2, 0]),
    ] {
        let samples = read(sample(UINT16, &[2], Some(data)), &signature, dir.path()).unwrap();
        let mut witness = Witness::default();
        let site = (&signature, &Ragged::default());
        let sample = &samples[0];
        sample.run_batches(&sample.request, site, &mut witness, &pool).unwrap();
        let expected = (3, Shape::from([3, 2]), Bytes::from([row; 3].concat()));
        assert_eq!(witness.seen, [expected.clone(), expected]);
    }
    let random = Some(InputDataType::RandomData(true));
    let samples = read(sample(UINT16, &[2], random), &signature, dir.path()).unwrap();
    let failing = Witness { fails: true, ..Witness::default() };
    let host = Arc::new(Host::without_models(pool));
    let mut failing = ModelInstance::Batches(Box::new(failing));
    let error =
        samples[0].run(&signature, &Ragged::default(), &[], &mut failing, &host).unwrap_err();
    assert!(error.to_string().contains("sample 'first'"), "{error}");
    assert!(error.to_string().contains("out of order"), "{error}");
}

/// Answers as it is told: with a response, with a failure, or not at all.
struct Answers(Option<Result<(), &'static str>>);

impl RequestInstance for Answers {
    fn execute(&mut self, requests: Vec<ModelRequest>, _: &Host) {
        for request in requests {
            match self.0 {
                Some(Ok(())) => request.responder.finish(Ok(ModelResponse::default())),
                Some(Err(message)) => {
                    let (code, message) = (crate::inference::Code::Internal, message.into());
                    request.responder.finish(Err(ResponseError { code, message }));
                }
                None => {}
            }
        }
    }
}

#[test]
fn an_instance_that_takes_requests_must_answer_them() {
    let signature = signature(4, DataType::Uint16);
    let data = Some(InputDataType::ZeroData(true));
    let samples = read(sample(UINT16, &[2], data), &signature, Path::new("")).unwrap();
    let host = Arc::new(Host::without_models(BufferPool::new(1 << 20, 1 << 20).unwrap()));
    for (answers, expected) in [
        (Some(Ok(())), None),
        (Some(Err("out of order")), Some("out of order")),
        (None, Some("without an answer")),
    ] {
        let mut instance = ModelInstance::Requests(Box::new(Answers(answers)));
        let error = samples[0].run(&signature, &Ragged::default(), &[], &mut instance, &host).err();
        let error = error.map(|error| error.to_string());
        assert_eq!(error.is_some(), expected.is_some());
        assert!(error.unwrap_or_default().contains(expected.unwrap_or_default()));
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FOLDER)).unwrap();
    fs::write(dir.path().join(FOLDER).join("short"), [1]).unwrap();
    let zero = || Some(InputDataType::ZeroData(true));
    let file = |name: &str| Some(InputDataType::InputDataFile(name.into()));
    let batched = signature(4, DataType::Uint16);
    for (sample, signature, expected) in [
        (sample(UINT16, &[-1], zero()), &batched, "no variable dimension"),
        (sample(UINT16, &[1 << 40], zero()), &batched, "2199023255552 bytes"),
        (sample(99, &[2], zero()), &batched, "data type 99"),
        (sample(UINT16, &[2], None), &batched, "none of zero_data"),
        (sample(UINT16, &[2], file("short")), &batched, "expects 4 bytes, but short has 1"),
        (sample(UINT16, &[2], file("absent")), &batched, "cannot read absent"),
        (sample(UINT16, &[3], zero()), &batched, "IN"),
        (sample(UINT16, &[2], zero()), &self::signature(2, DataType::Uint16), "batch_size 3"),
    ] {
        let error = read(sample, signature, dir.path()).err().expect("it cannot be run");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("sample 'first'"), "{error}");
    }
}

#[test]
fn random_fractions_lie_between_zero_and_one() {
    const COUNT: usize = 1000;
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    assert!(words(&random(DataType::Fp16, COUNT)).iter().all(|&half| half < 0x3c00));
    let brain = words(&random(DataType::Bf16, COUNT));
    assert!(brain.iter().all(|&upper| f32::from_bits(u32::from(upper) << 16) <= 1.0));
    assert_eq!(random(DataType::Bytes, COUNT), vec![0; 4 * COUNT]);
    assert_eq!(random(DataType::Int64, COUNT).len(), 8 * COUNT);
}
