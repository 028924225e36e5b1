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
        let request = self.with(hidden);
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
        hidden: &[AdmittedInput],
        instance: &mut dyn Instance,
        host: &Arc<Host>,
    ) -> Result<(), WarmUpError> {
        let ran = self.run_batches(&self.with(hidden), (signature, ragged), instance, &host.pool);
        ran.map_err(|error| self.failed(error))
    }

    fn with(&self, hidden: &[AdmittedInput]) -> Admitted {
        let mut request = self.request.clone();
        request.inputs.extend(hidden.iter().cloned().map(Some));
        request
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
mod tests;
