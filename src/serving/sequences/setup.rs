use std::{fs, io, path::Path, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    inference::{AdmittedInput, CorrelationId, DataType, Error, Rope, Shape, Signature},
    repository::{
        InitialState, InitialStateData, SequenceBatching, SequenceControl, SequenceControlKind,
        SequenceState,
    },
    scheduler::{Carried, SequencePolicy},
    serving::{job::Job, lanes::ResidentInput},
};

/// The folder of a model that holds the files its states begin with.
const FOLDER: &str = "initial_state";
/// The longest correlation id that is a text, in bytes, as in Triton.
const TEXT_ID_MAX: usize = 128;
/// What a state may begin with, in bytes.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// What a sequence model needs to be served beyond what every model needs.
pub struct SequenceSetup {
    /// How its sequences share batches.
    pub policy: SequencePolicy,
    /// What the model takes and gives: the client's tensors and, behind them, those of the server.
    pub signature: Arc<Signature>,
    controls: Vec<Control>,
    pub(super) states: Vec<State>,
}

/// Why a sequence model cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SetupError {
    #[error("state '{state}' of model '{model}': cannot read {file}: {source}")]
    File { state: String, model: String, file: String, source: io::Error },
    #[error(
        "state '{state}' of model '{model}' begins with {expected} bytes by its dims, but {file} \
         has {got}"
    )]
    FileSize { state: String, model: String, file: String, expected: u64, got: usize },
    #[error(
        "state '{state}' of model '{model}' would begin with {bytes} bytes, more than \
         {STATE_BYTES_MAX}"
    )]
    TooLarge { state: String, model: String, bytes: u64 },
}

/// An input that tells the model of the sequence.
struct Control {
    kind: SequenceControlKind,
    datatype: DataType,
    no: AdmittedInput,
    yes: AdmittedInput,
}

/// A tensor that a sequence carries.
pub(super) struct State {
    /// Which input of the model it is.
    pub input: u16,
    /// Which output of the model it is.
    pub output: u16,
    /// Whether its type tells its length, so that it can lie on a device.
    pub has_length: bool,
    initial: AdmittedInput,
}

/// The values of a sequence's states, in their order.
#[derive(Clone)]
pub struct States(pub(super) SmallVec<[StateValue; 1]>);

/// What a state is between two requests.
#[derive(Clone)]
pub(super) struct StateValue {
    /// The tensor; without its bytes, if they lie on a device.
    pub tensor: AdmittedInput,
    /// Where they lie on the device of the sequence's instance, if they do.
    pub resides: Option<ResidentInput>,
}

impl Carried for States {
    fn fits_with(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, theirs)| mine.tensor.shape == theirs.tensor.shape)
    }
}

impl From<AdmittedInput> for StateValue {
    fn from(tensor: AdmittedInput) -> Self {
        Self { tensor, resides: None }
    }
}

/// What the server tells a model of one row.
pub(super) struct Told<'a> {
    pub id: &'a CorrelationId,
    pub start: bool,
    pub end: bool,
    pub ready: bool,
}

impl SequenceSetup {
    /// The set-up of a model whose clients see `signature`, with its files in `model_dir`.
    ///
    /// # Errors
    /// When what a state begins with cannot be had.
    pub fn new(
        batching: &SequenceBatching,
        signature: &Signature,
        model_dir: &Path,
    ) -> Result<Self, SetupError> {
        let batched = signature.max_batch_size > 0;
        let full = batching.model_signature(signature);
        let controls = batching.controls.iter().map(|control| Control::new(control, batched));
        let first = full.inputs.len() - batching.states.len();
        let states = (first..).zip(&batching.states).map(|(input, state)| {
            let output = full.outputs.iter().position(|spec| *spec.name == *state.output);
            let output = output.unwrap_or_default();
            Ok(State {
                input: u16::try_from(input).unwrap_or(u16::MAX),
                output: u16::try_from(output).unwrap_or(u16::MAX),
                has_length: state.datatype.size().is_some(),
                initial: initial(state, signature, model_dir)?,
            })
        });
        Ok(Self {
            policy: SequencePolicy {
                model: signature.model.to_string(),
                max_batch_size: signature.max_batch_size,
                strategy: batching.strategy.clone(),
                max_idle: batching.max_idle,
                iterative: batching.iterative,
            },
            controls: controls.collect(),
            states: states.collect::<Result<_, _>>()?,
            signature: Arc::new(full),
        })
    }

    /// What a sequence begins with.
    pub fn initial(&self) -> States {
        States(self.states.iter().map(|state| state.initial.clone().into()).collect())
    }

    /// Whether its sequences carry anything.
    pub fn has_states(&self) -> bool {
        !self.states.is_empty()
    }

    /// Whether anything that they carry can lie on a device.
    pub fn can_reside(&self) -> bool {
        self.states.iter().any(|state| state.has_length)
    }

    /// Whether the server can tell the model of this request.
    ///
    /// # Errors
    /// When its correlation id is of the wrong kind, or too long.
    pub fn check(&self, job: &Job) -> Result<(), Error> {
        let Some(sequence) = &job.sequence else { return Ok(()) };
        let CorrelationId::Text(text) = &sequence.id else { return Ok(()) };
        if text.len() > TEXT_ID_MAX {
            return Err(Error::LongCorrelationId { limit: TEXT_ID_MAX });
        }
        let numeric = |control: &&Control| {
            control.kind == SequenceControlKind::CorrelationId
                && control.datatype != DataType::Bytes
        };
        match self.controls.iter().find(numeric) {
            Some(control) => Err(Error::TextCorrelationId {
                model: self.policy.model.clone(),
                id: text.to_string(),
                expected: control.datatype,
            }),
            None => Ok(()),
        }
    }

    /// The inputs of one row that do not come from the client, in their order: controls, then states.
    pub(super) fn hidden_inputs<'a>(
        &'a self,
        told: &'a Told<'a>,
        states: &'a States,
    ) -> impl Iterator<Item = AdmittedInput> + 'a {
        let controls = self.controls.iter().map(|control| control.value(told));
        controls.chain(states.0.iter().map(|state| state.tensor.clone()))
    }

    /// The number of inputs that do not come from the client.
    pub(super) fn hidden_count(&self) -> usize {
        self.controls.len() + self.states.len()
    }

    /// What a warm-up gives in their place: the first request of a sequence.
    pub fn warm_up_inputs(&self) -> Vec<AdmittedInput> {
        let id = CorrelationId::Number(1);
        let told = Told { id: &id, start: true, end: true, ready: true };
        self.hidden_inputs(&told, &self.initial()).collect()
    }
}

impl Control {
    fn new(control: &SequenceControl, batched: bool) -> Self {
        let [no, yes] = control.false_true.clone().map(|bytes| tensor(bytes, batched));
        Self { kind: control.kind, datatype: control.datatype, no, yes }
    }

    fn value(&self, told: &Told<'_>) -> AdmittedInput {
        let says = match self.kind {
            SequenceControlKind::Start => told.start,
            SequenceControlKind::End => told.end,
            SequenceControlKind::Ready => told.ready,
            SequenceControlKind::CorrelationId => {
                let bytes = correlation_id(self.datatype, told.id);
                return AdmittedInput { shape: self.no.shape.clone(), data: bytes.into() };
            }
        };
        if says { self.yes.clone() } else { self.no.clone() }
    }
}

/// A tensor of one element.
fn tensor(bytes: Vec<u8>, batched: bool) -> AdmittedInput {
    let shape = if batched { Shape::from([1, 1]) } else { Shape::from([1]) };
    AdmittedInput { shape, data: bytes.into() }
}

/// A correlation id as an element: a number in as many of its low bytes as fit, a text with its length.
fn correlation_id(datatype: DataType, id: &CorrelationId) -> Vec<u8> {
    match (datatype.size(), id) {
        (Some(size), CorrelationId::Number(number)) => {
            number.to_le_bytes().into_iter().take(size).collect()
        }
        (Some(size), CorrelationId::Text(_)) => vec![0; size],
        (None, id) => {
            let text = id.to_string();
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            [&length.to_le_bytes(), text.as_bytes()].concat()
        }
    }
}

/// The value that a state begins with. Sizes that the configuration leaves open are 1.
fn initial(
    state: &SequenceState,
    signature: &Signature,
    model_dir: &Path,
) -> Result<AdmittedInput, SetupError> {
    let names = || (state.input.clone(), signature.model.to_string());
    let dims = state.initial.as_ref().map_or(&state.dims, |initial| &initial.dims);
    let dims: Shape = dims.iter().map(|&dim| if dim < 0 { 1 } else { dim }).collect();
    // Of a string there is at least its length.
    let size = state.datatype.size().unwrap_or(size_of::<u32>()) as u64;
    let bytes = dims.element_count().and_then(|count| count.checked_mul(size)).unwrap_or(u64::MAX);
    if bytes > STATE_BYTES_MAX {
        let (state, model) = names();
        return Err(SetupError::TooLarge { state, model, bytes });
    }
    let data = match &state.initial {
        Some(InitialState { data: InitialStateData::File(file), .. }) => {
            let read = fs::read(model_dir.join(FOLDER).join(file)).map_err(|source| {
                let (state, model) = names();
                SetupError::File { state, model, file: file.clone(), source }
            })?;
            let fits = match state.datatype.size() {
                Some(_) => read.len() as u64 == bytes,
                None => read.len() as u64 >= bytes,
            };
            if !fits {
                let ((state, model), got) = (names(), read.len());
                let file = file.clone();
                return Err(SetupError::FileSize { state, model, file, expected: bytes, got });
            }
            Rope::from(Bytes::from(read))
        }
        _ => Rope::zeros(bytes as usize),
    };
    let shape = if signature.max_batch_size > 0 { dims.with_batch(1) } else { dims };
    Ok(AdmittedInput { shape, data })
}
