//! Requests of a model's own making, with which each instance is run before it serves.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use smallvec::SmallVec;

use super::batch;
use crate::{
    backend::{
        Batch, Host, Instance, ModelInstance, ModelRequest, ModelResponse, RequestInstance,
        Respond, Responder, ResponseError,
    },
    inference::{
        Admitted, AdmittedInput, DataType, Error, InferInput, InferRequest, Shape, Signature,
    },
    memory::BufferPool,
    proto::{
        self, ModelConfig, ModelWarmup,
        model_warmup::{Input, input::InputDataType},
    },
    repository::Ragged,
};

/// The folder of a model that holds the files its warm-up requests name.
const FOLDER: &str = "warmup";
/// What an instance holds at most for one warm-up input.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// Why a model could not be warmed up; it is then not served.
#[derive(Debug, thiserror::Error)]
#[error("failed to run warmup sample '{sample}': {reason}")]
pub struct WarmUpError {
    sample: String,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("input '{input}' has dims {dims}, but a warmup input must have no variable dimension")]
    Variable { input: String, dims: Shape },
    #[error("input '{input}' would need {bytes} bytes, more than {INPUT_BYTES_MAX}")]
    TooLarge { input: String, bytes: u64 },
    #[error("input '{input}' has data type {data_type}, which is none")]
    NoDataType { input: String, data_type: i32 },
    #[error("input '{input}' has none of zero_data, random_data and input_data_file")]
    NoData { input: String },
    #[error("cannot read {file} for input '{input}': {source}")]
    File { input: String, file: String, source: io::Error },
    #[error("input '{input}' expects {expected} bytes, but {file} has {got}")]
    ShortFile { input: String, file: String, expected: u64, got: usize },
    #[error("batch_size {got} is more than the max_batch_size {most} of the model")]
    BatchSize { got: u32, most: u32 },
    #[error("{0}")]
    Refused(Error),
    #[error("{0}")]
    Failed(Error),
}

impl WarmUpError {
    /// Why the model would refuse the sample of a client too, if it would.
    pub fn refusal(&self) -> Option<&Error> {
        match &self.reason {
            Reason::Refused(error) => Some(error),
            _ => None,
        }
    }
}

/// One sample of a configuration's `model_warmup`, ready to run.
pub struct WarmUp {
    name: String,
    runs: u32,
    requests: u32,
    request: Admitted,
}

impl WarmUp {
    /// The samples of a configuration, their files read from the model's folder.
    ///
    /// # Errors
    /// Names the sample and the input that cannot be had or does not fit the model.
    pub fn read_all(
        config: &ModelConfig,
        signature: &Signature,
        model_dir: &Path,
    ) -> Result<Vec<Self>, WarmUpError> {
        let samples = config.model_warmup.iter();
        samples
            .map(|sample| {
                Self::read(sample, signature, model_dir)
                    .map_err(|reason| WarmUpError { sample: sample.name.clone(), reason })
            })
            .collect()
    }

    fn read(sample: &ModelWarmup, signature: &Signature, model_dir: &Path) -> Result<Self, Reason> {
        let most = signature.max_batch_size.max(1);
        if sample.batch_size > most {
            return Err(Reason::BatchSize {
                got: sample.batch_size,
                most: signature.max_batch_size,
            });
        }
        let batched = signature.max_batch_size > 0;
        // Others are tensors that no request has, such as the controls of sequences.
        let is_input = |name: &str| signature.inputs.iter().any(|input| *input.name == *name);
        let inputs = sample.inputs.iter().filter(|(name, _)| is_input(name));
        let inputs: Result<_, Reason> = inputs
            .map(|(name, input)| {
                let datatype = proto::DataType::try_from(input.data_type)
                    .ok()
                    .and_then(DataType::from_config)
                    .ok_or_else(|| Reason::NoDataType {
                        input: name.clone(),
                        data_type: input.data_type,
                    })?;
                let dims = Shape::from(input.dims.as_slice());
                let data = data(name, input, datatype, &dims, model_dir)?;
                let shape = if batched { dims.with_batch(1) } else { dims };
                Ok(InferInput::new(name.as_str(), datatype, shape, data))
            })
            .collect();
        let mut request = InferRequest { inputs: inputs?, ..InferRequest::default() };
        Ok(Self {
            name: sample.name.clone(),
            runs: sample.count.max(1),
            requests: sample.batch_size.max(1),
            request: signature.admit(&mut request).map_err(Reason::Refused)?,
        })
    }

    /// Runs the sample on an instance as often as its `count` says. `hidden` are the inputs of a row that
    /// do not come from clients.
    ///
    /// # Errors
    /// When the back end fails.
    pub fn run(
        &self,
        signature: &Signature,
        ragged: &Ragged,
        hidden: &[AdmittedInput],
        instance: &mut ModelInstance,
        host: &Arc<Host>,
    ) -> Result<(), WarmUpError> {
        let mut request = self.request.clone();
        request.inputs.extend(hidden.iter().cloned().map(Some));
        let ran = match instance {
            ModelInstance::Batches(instance) => {
                self.run_batches(&request, (signature, ragged), &mut **instance, &host.pool)
            }
            ModelInstance::Requests(instance) => {
                self.run_requests(&request, signature, &mut **instance, host)
            }
        };
        ran.map_err(|error| self.failed(error))
    }

    /// The same on an instance that is lent and takes whole batches.
    ///
    /// # Errors
    /// When the back end fails.
    pub fn run_on(
        &self,
        signature: &Signature,
        ragged: &Ragged,
        instance: &mut dyn Instance,
        host: &Arc<Host>,
    ) -> Result<(), WarmUpError> {
        let ran = self.run_batches(&self.request, (signature, ragged), instance, &host.pool);
        ran.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Error) -> WarmUpError {
        WarmUpError { sample: self.name.clone(), reason: Reason::Failed(error) }
    }

    fn run_batches(
        &self,
        request: &Admitted,
        (signature, ragged): (&Signature, &Ragged),
        instance: &mut dyn Instance,
        pool: &BufferPool,
    ) -> Result<(), Error> {
        let requests: SmallVec<[&Admitted; 8]> = (0..self.requests).map(|_| request).collect();
        let wanted: SmallVec<[bool; 4]> = SmallVec::from_elem(true, signature.outputs.len());
        for _ in 0..self.runs {
            let inputs = batch::assemble(signature, ragged, &requests, Default::default(), pool)?;
            let (inputs, wanted) = (&inputs[..], &wanted[..]);
            let batch = Batch { rows: self.requests, inputs, wanted, pool, places: None };
            instance.execute(&batch).map_err(|error| Error::Backend { detail: error.0 })?;
        }
        Ok(())
    }

    fn run_requests(
        &self,
        request: &Admitted,
        signature: &Signature,
        instance: &mut dyn RequestInstance,
        host: &Arc<Host>,
    ) -> Result<(), Error> {
        let mut tensors = request.clone();
        batch::reshape(signature, &mut tensors);
        for _ in 0..self.runs {
            let (report, ended) = mpsc::channel();
            let request = |_| ModelRequest {
                id: Default::default(),
                tensors: tensors.clone(),
                parameters: Default::default(),
                sequence: None,
                callers: None,
                priority: 0,
                queue_timeout: None,
                deadline: None,
                trace: None,
                responder: Responder::new(Box::new(Ended {
                    report: report.clone(),
                    failure: None,
                })),
            };
            let requests = (0..self.requests).map(request).collect();
            drop(report);
            instance.execute(requests, host);
            for outcome in ended {
                outcome?;
            }
        }
        Ok(())
    }
}

/// Answers nobody, and reports how the answer ended.
struct Ended {
    report: mpsc::Sender<Result<(), Error>>,
    failure: Option<Error>,
}

impl Respond for Ended {
    fn send(&mut self, response: Result<ModelResponse, ResponseError>) {
        if let Err(ResponseError { code, message }) = response {
            self.failure.get_or_insert(Error::Model { code, detail: message });
        }
    }

    fn finish(mut self: Box<Self>, last: Option<Result<ModelResponse, ResponseError>>) {
        if let Some(last) = last {
            self.send(last);
        }
        // Nobody listens after a failure.
        let _ = self.report.send(self.failure.map_or(Ok(()), Err));
    }

    fn drop_unfinished(self: Box<Self>) {
        let _ = self.report.send(Err(Error::unanswered()));
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The elements of one row of an input.
fn data(
    name: &str,
    input: &Input,
    datatype: DataType,
    dims: &Shape,
    model_dir: &Path,
) -> Result<Bytes, Reason> {
    let input_name = || name.to_owned();
    let elements = dims
        .element_count()
        .ok_or_else(|| Reason::Variable { input: input_name(), dims: dims.clone() })?;
    // Of a string there is at least its length.
    let size = datatype.size().unwrap_or(size_of::<u32>()) as u64;
    let bytes = elements.saturating_mul(size);
    if bytes > INPUT_BYTES_MAX {
        return Err(Reason::TooLarge { input: input_name(), bytes });
    }
    match &input.input_data_type {
        Some(InputDataType::ZeroData(_)) => Ok(vec![0; bytes as usize].into()),
        Some(InputDataType::RandomData(_)) => Ok(random(datatype, elements as usize)),
        Some(InputDataType::InputDataFile(file)) => {
            let path = model_dir.join(FOLDER).join(file);
            let mut read: Bytes = fs::read(&path)
                .map_err(|source| Reason::File { input: input_name(), file: file.clone(), source })?
                .into();
            if datatype.size().is_some() {
                if (read.len() as u64) < bytes {
                    return Err(Reason::ShortFile {
                        input: input_name(),
                        file: file.clone(),
                        expected: bytes,
                        got: read.len(),
                    });
                }
                read.truncate(bytes as usize);
            }
            Ok(read)
        }
        None => Err(Reason::NoData { input: input_name() }),
    }
}

/// Random integers, fractions between 0 and 1, and, as in Triton, empty strings.
fn random(datatype: DataType, elements: usize) -> Bytes {
    let mut random = fastrand::Rng::new();
    match datatype {
        DataType::Bytes => vec![0; elements * size_of::<u32>()].into(),
        DataType::Bool => (0..elements).map(|_| random.u8(..2)).collect(),
        DataType::Fp64 => (0..elements).flat_map(|_| random.f64().to_le_bytes()).collect(),
        DataType::Fp32 => (0..elements).flat_map(|_| random.f32().to_le_bytes()).collect(),
        DataType::Bf16 => {
            // Its bits are the upper half of a 32-bit float's.
            let upper = |value: f32| [value.to_le_bytes()[2], value.to_le_bytes()[3]];
            (0..elements).flat_map(|_| upper(random.f32())).collect()
        }
        DataType::Fp16 => {
            // Bit patterns below that of 1.0 are the fractions between 0 and 1.
            const ONE: u16 = 0x3c00;
            (0..elements).flat_map(|_| random.u16(..ONE).to_le_bytes()).collect()
        }
        _ => {
            let mut bytes = vec![0; elements * datatype.size().unwrap_or(1)];
            random.fill(&mut bytes);
            bytes.into()
        }
    }
}

#[cfg(test)]
mod tests {
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
            let error =
                samples[0].run(&signature, &Ragged::default(), &[], &mut instance, &host).err();
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
}
