//! What a configuration asks of the scheduler, in types that need no further checking.

use std::{collections::BTreeMap, time::Duration};

use super::{batching, error::Fault};
use crate::{
    inference::{DataType, Shape, Signature, TensorSpec},
    proto::{
        ModelConfig, ModelDynamicBatching, ModelEnsembling, ModelQueuePolicy,
        ModelSequenceBatching,
        model_config::SchedulingChoice,
        model_queue_policy,
        model_sequence_batching::{
            self, Control, StrategyChoice, control::Kind, initial_state::StateData,
        },
    },
};

/// How the requests of a model become batches.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduling {
    /// Each request runs alone, in the order of arrival.
    Plain,
    /// Requests are joined into batches.
    Dynamic(DynamicBatching),
    /// Requests of one sequence stay on one instance.
    Sequence(SequenceBatching),
    /// Requests run through the steps of other models.
    Ensemble(Ensemble),
}

/// Settings of the dynamic batcher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicBatching {
    /// Batch sizes worth waiting for, ascending.
    pub preferred_sizes: Vec<u32>,
    /// How long a request may wait for others to join it.
    pub max_queue_delay: Duration,
    /// In place of that, the 99th percentile of latency to keep with a delay chosen while serving.
    pub delay_target_p99: Option<Duration>,
    /// Whether responses leave in the order in which requests came.
    pub preserve_ordering: bool,
    /// The number of priority levels, 1 being the highest; 0 when priorities are not used.
    pub priority_levels: u64,
    /// The level of a request that gives none.
    pub default_priority: u64,
    /// The policy of levels that have none of their own.
    pub default_policy: QueuePolicy,
    /// Policies by level.
    pub priority_policies: BTreeMap<u64, QueuePolicy>,
}

impl DynamicBatching {
    /// The policy of a level's queue.
    pub fn policy(&self, priority: u64) -> &QueuePolicy {
        self.priority_policies.get(&priority).unwrap_or(&self.default_policy)
    }
}

/// The bounds of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePolicy {
    /// What happens to a request that waited too long.
    pub timeout_action: TimeoutAction,
    /// How long a request may wait; `None` for ever.
    pub default_timeout: Option<Duration>,
    /// Whether a request may give a shorter time of its own.
    pub allow_timeout_override: bool,
    /// How many requests may wait; `None` for no bound.
    pub max_queue_size: Option<u32>,
}

/// What happens to a request that waited too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It fails.
    #[default]
    Reject,
    /// It runs after all that did not.
    Delay,
}

/// Settings of the sequence batcher.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceBatching {
    /// How sequences share the rows of a batch.
    pub strategy: SequenceStrategy,
    /// A sequence without a request for this long is over.
    pub max_idle: Duration,
    /// Inputs that tell the model about the sequence.
    pub controls: Vec<SequenceControl>,
    /// Tensors that are carried from request to request.
    pub states: Vec<SequenceState>,
    /// Whether a request runs again until the model gives its last response.
    pub iterative: bool,
}

/// How sequences share the rows of a batch.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum SequenceStrategy {
    /// Each sequence keeps a row of its own.
    Direct { max_queue_delay: Duration, minimum_slot_utilization: f32 },
    /// Each sequence keeps an instance, of which each has so many (0 for as many as a batch has rows), and
    /// the oldest requests form the next batch.
    Oldest {
        max_candidates: u32,
        preferred_sizes: Vec<u32>,
        max_queue_delay: Duration,
        preserve_ordering: bool,
    },
}

impl SequenceStrategy {
    /// Whether what an instance is asked of several sequences is answered in the order in which it was asked.
    pub fn preserves_ordering(&self) -> bool {
        matches!(self, Self::Oldest { preserve_ordering: true, .. })
    }
}

/// An input that tells the model about the sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceControl {
    /// The input's name.
    pub input: String,
    /// What it tells.
    pub kind: SequenceControlKind,
    /// Its element type.
    pub datatype: DataType,
    /// The element for "no" and for "yes", little-endian; both empty for the correlation id.
    pub false_true: [Vec<u8>; 2],
}

/// What a [`SequenceControl`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SequenceControlKind {
    Start,
    Ready,
    End,
    CorrelationId,
}

/// A tensor that is carried from request to request of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceState {
    /// The input that takes it.
    pub input: String,
    /// The output that gives it.
    pub output: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its dimensions without the batch dimension.
    pub dims: Shape,
    /// What it is when the sequence starts.
    pub initial: Option<InitialState>,
}

/// The first value of a [`SequenceState`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct InitialState {
    pub name: String,
    pub datatype: DataType,
    pub dims: Shape,
    pub data: InitialStateData,
}

/// Where an [`InitialState`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialStateData {
    /// Zeros, or empty strings.
    Zero,
    /// A file of the model's `initial_state` folder.
    File(String),
}

/// What an instance holds while it runs, so that instances that share it take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The resource's name.
    pub name: String,
    /// Whether all devices share it; else each has as much of its own.
    pub global: bool,
    /// How much of it.
    pub count: u32,
}

/// How an instance takes turns with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// All that it needs at once.
    pub resources: Vec<Resource>,
    /// How many times each of its runs counts; 0 as 1.
    pub priority: u32,
}

/// The steps of an ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensemble {
    /// In the configuration's order, which need not be that of execution.
    pub steps: Vec<EnsembleStep>,
    /// How many requests a step may have in flight; `None` for no bound.
    pub max_inflight: Option<u32>,
}

/// One model of an [`Ensemble`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsembleStep {
    /// The model's name.
    pub model: String,
    /// The repository that the model is from, where names are not unique; empty for the ensemble's own,
    /// or the only one that has such a model.
    pub namespace: String,
    /// Its version; `None` for the latest.
    pub version: Option<i64>,
    /// The ensemble's tensor for each of the model's inputs.
    pub inputs: BTreeMap<String, String>,
    /// The ensemble's tensor for each of the model's outputs that is used.
    pub outputs: BTreeMap<String, String>,
}

impl Scheduling {
    /// The settings of a normalised, validated configuration.
    pub(super) fn new(config: &ModelConfig) -> Result<Self, Fault> {
        let delay_target_p99 = batching::delay_target_p99(config)?;
        Ok(match &config.scheduling_choice {
            None => Self::Plain,
            Some(SchedulingChoice::DynamicBatching(batching)) => {
                Self::Dynamic(DynamicBatching { delay_target_p99, ..batching.into() })
            }
            Some(SchedulingChoice::SequenceBatching(batching)) => {
                let read = SequenceBatching::new(batching);
                Self::Sequence(read.map_err(|message| {
                    Fault::new("sequence_batching", format!("{message} for {}", config.name))
                })?)
            }
            Some(SchedulingChoice::EnsembleScheduling(ensemble)) => Self::Ensemble(ensemble.into()),
        })
    }
}

impl From<&ModelDynamicBatching> for DynamicBatching {
    fn from(batching: &ModelDynamicBatching) -> Self {
        Self {
            preferred_sizes: sizes(&batching.preferred_batch_size),
            max_queue_delay: Duration::from_micros(batching.max_queue_delay_microseconds),
            delay_target_p99: None,
            preserve_ordering: batching.preserve_ordering,
            priority_levels: batching.priority_levels,
            default_priority: batching.default_priority_level,
            default_policy: batching
                .default_queue_policy
                .as_ref()
                .map(Into::into)
                .unwrap_or_default(),
            priority_policies: batching
                .priority_queue_policy
                .iter()
                .map(|(&level, policy)| (level, policy.into()))
                .collect(),
        }
    }
}

impl From<&ModelQueuePolicy> for QueuePolicy {
    fn from(policy: &ModelQueuePolicy) -> Self {
        let timeout_us = policy.default_timeout_microseconds;
        Self {
            timeout_action: match policy.timeout_action() {
                model_queue_policy::TimeoutAction::Reject => TimeoutAction::Reject,
                model_queue_policy::TimeoutAction::Delay => TimeoutAction::Delay,
            },
            default_timeout: (timeout_us > 0).then(|| Duration::from_micros(timeout_us)),
            allow_timeout_override: policy.allow_timeout_override,
            max_queue_size: (policy.max_queue_size > 0).then_some(policy.max_queue_size),
        }
    }
}

impl SequenceBatching {
    /// The signature that the model has, when `client` is what clients see of it: behind their inputs
    /// the controls and the states, behind their outputs the states that are not among them.
    pub fn model_signature(&self, client: &Signature) -> Signature {
        let mut full = client.clone();
        let controls = self
            .controls
            .iter()
            .map(|control| TensorSpec::new(&control.input, control.datatype, Shape::from([1])));
        let states = self
            .states
            .iter()
            .map(|state| TensorSpec::new(&state.input, state.datatype, state.dims.clone()));
        full.inputs.extend(controls.chain(states));
        for state in &self.states {
            if full.outputs.iter().all(|spec| *spec.name != *state.output) {
                let spec = TensorSpec::new(&state.output, state.datatype, state.dims.clone());
                full.outputs.push(spec);
            }
        }
        full
    }

    fn new(batching: &ModelSequenceBatching) -> Result<Self, String> {
        let strategy = match &batching.strategy_choice {
            Some(StrategyChoice::Oldest(oldest)) => SequenceStrategy::Oldest {
                max_candidates: u32::try_from(oldest.max_candidate_sequences).unwrap_or(0),
                preferred_sizes: sizes(&oldest.preferred_batch_size),
                max_queue_delay: Duration::from_micros(oldest.max_queue_delay_microseconds),
                preserve_ordering: oldest.preserve_ordering,
            },
            Some(StrategyChoice::Direct(direct)) => SequenceStrategy::Direct {
                max_queue_delay: Duration::from_micros(direct.max_queue_delay_microseconds),
                minimum_slot_utilization: direct.minimum_slot_utilization,
            },
            None => SequenceStrategy::Direct {
                max_queue_delay: Duration::ZERO,
                minimum_slot_utilization: 0.0,
            },
        };
        let controls = batching.control_input.iter().flat_map(|input| {
            input.control.iter().map(|control| sequence_control(&input.name, control))
        });
        Ok(Self {
            strategy,
            max_idle: Duration::from_micros(batching.max_sequence_idle_microseconds),
            controls: controls.collect::<Result<_, _>>()?,
            states: batching.state.iter().map(sequence_state).collect::<Result<_, _>>()?,
            iterative: batching.iterative_sequence,
        })
    }
}

fn sequence_control(input: &str, control: &Control) -> Result<SequenceControl, String> {
    let kind = match Kind::try_from(control.kind) {
        Ok(Kind::ControlSequenceStart) => SequenceControlKind::Start,
        Ok(Kind::ControlSequenceReady) => SequenceControlKind::Ready,
        Ok(Kind::ControlSequenceEnd) => SequenceControlKind::End,
        Ok(Kind::ControlSequenceCorrid) => SequenceControlKind::CorrelationId,
        Err(_) => {
            return Err(format!("sequence control '{input}' has unknown kind {}", control.kind));
        }
    };
    let (datatype, false_true) = match (
        control.int32_false_true.as_slice(),
        control.fp32_false_true.as_slice(),
        control.bool_false_true.as_slice(),
    ) {
        ([no, yes], ..) => (DataType::Int32, [no, yes].map(|value| value.to_le_bytes().to_vec())),
        (_, [no, yes], _) => (DataType::Fp32, [no, yes].map(|value| value.to_le_bytes().to_vec())),
        (.., [no, yes]) => (DataType::Bool, [no, yes].map(|&value| vec![u8::from(value)])),
        _ => {
            let datatype = DataType::from_config(control.data_type())
                .ok_or_else(|| format!("sequence control '{input}' must specify 'data_type'"))?;
            (datatype, [Vec::new(), Vec::new()])
        }
    };
    Ok(SequenceControl { input: input.to_owned(), kind, datatype, false_true })
}

fn sequence_state(state: &model_sequence_batching::State) -> Result<SequenceState, String> {
    let untyped = || format!("sequence state '{}' must specify 'data_type'", state.input_name);
    let initial = state.initial_state.first().map(|initial| {
        Ok::<_, String>(InitialState {
            name: initial.name.clone(),
            datatype: DataType::from_config(initial.data_type()).ok_or_else(untyped)?,
            dims: Shape::from(initial.dims.as_slice()),
            data: match &initial.state_data {
                Some(StateData::DataFile(file)) => InitialStateData::File(file.clone()),
                Some(StateData::ZeroData(_)) | None => InitialStateData::Zero,
            },
        })
    });
    Ok(SequenceState {
        input: state.input_name.clone(),
        output: state.output_name.clone(),
        datatype: DataType::from_config(state.data_type()).ok_or_else(untyped)?,
        dims: Shape::from(state.dims.as_slice()),
        initial: initial.transpose()?,
    })
}

impl From<&ModelEnsembling> for Ensemble {
    fn from(ensemble: &ModelEnsembling) -> Self {
        let steps = ensemble.step.iter().map(|step| EnsembleStep {
            model: step.model_name.clone(),
            namespace: step.model_namespace.clone(),
            version: (step.model_version > 0).then_some(step.model_version),
            inputs: step.input_map.clone(),
            outputs: step.output_map.clone(),
        });
        Self {
            steps: steps.collect(),
            max_inflight: (ensemble.max_inflight_requests > 0)
                .then_some(ensemble.max_inflight_requests),
        }
    }
}

/// Ascending and once each; validation has seen that they are positive.
fn sizes(preferred: &[i32]) -> Vec<u32> {
    let mut sizes: Vec<u32> =
        preferred.iter().filter_map(|&size| u32::try_from(size).ok()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
