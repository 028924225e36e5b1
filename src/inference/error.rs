use std::fmt;

use super::{DataType, Shape};

/// The eight kinds of failure that the protocol knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    Unknown,
    Internal,
    NotFound,
    InvalidArgument,
    Unavailable,
    Unsupported,
    AlreadyExists,
    Cancelled,
}

impl Code {
    /// How Triton spells it in front of a message.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Internal => "Internal",
            Self::NotFound => "Not found",
            Self::InvalidArgument => "Invalid argument",
            Self::Unavailable => "Unavailable",
            Self::Unsupported => "Unsupported",
            Self::AlreadyExists => "Already exists",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// What went wrong with a request. The message is what the client reads: it names the thing at
/// fault, what was expected and what came. Texts that Triton's clients may match are Triton's own.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Error {
    #[error("Request for unknown model: '{model}' is not found")]
    UnknownModel { model: String },
    #[error("Request for unknown model: '{model}' version {version} is not found")]
    UnknownVersion { model: String, version: i64 },
    #[error("Request for unknown model: '{model}' has no available versions")]
    NoAvailableVersions { model: String },
    #[error("Request for unknown model: '{model}' version {version} is not at ready state")]
    VersionNotReady { model: String, version: i64 },
    #[error(
        "failed to get model version from specified version string '{version}' (details: stol), \
         version should be an integral value > 0"
    )]
    MalformedVersion { version: String },
    #[error(
        "invalid model version specified '{version}' , version should be an integral value > 0"
    )]
    NegativeVersion { version: String },
    #[error("requested model '{model}' is not available")]
    NoStatisticsOfModel { model: String },
    #[error("requested model version is not available for model '{model}'")]
    NoStatisticsOfVersion { model: String },
    #[error(
        "There are {count} identifiers of model '{model}' in global map, model namespace must be \
         provided to resolve ambiguity."
    )]
    AmbiguousModel { model: String, count: usize },
    #[error("explicit model load / unload is not allowed if polling is enabled")]
    NoModelControl,
    #[error(
        "failed to load '{model}', failed to poll from model repository{}",
        .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
    )]
    ModelNotPolled { model: String, reason: Option<String> },
    #[error("load failed for model '{model}': {reason}\n")]
    ModelNotLoaded { model: String, reason: String },
    #[error("{waiting} loads and unloads wait already, expected at most {limit}")]
    TooManyLoads { waiting: usize, limit: usize },
    #[error("{detail}")]
    AlreadyHosted { detail: String },
    #[error("server is not ready")]
    NotReady,
    #[error("server is stopping and takes no new requests")]
    Stopping,

    #[error("unknown datatype '{name}'")]
    UnknownDataType { name: String },
    #[error("unexpected inference input '{input}' for model '{model}'")]
    UnexpectedInput { input: String, model: String },
    #[error("unexpected inference output '{output}' for model '{model}'")]
    UnexpectedOutput { output: String, model: String },
    #[error("input '{input}' already exists in request")]
    DuplicateInput { input: String },
    #[error("output '{output}' already exists in request")]
    DuplicateOutput { output: String },
    #[error(
        "expected {} inputs for model '{model}'. \
         Got input(s) {got_names}, but missing required input(s) {missing_names}. \
         Please provide all required input(s).",
        count_said(*.required, *.most, *.got)
    )]
    InputCount {
        model: String,
        required: usize,
        most: usize,
        got: usize,
        got_names: NameList,
        missing_names: NameList,
    },
    #[error(
        "inference input '{input}' data-type is '{got}', but model '{model}' expects '{expected}'"
    )]
    DataTypeMismatch { input: String, model: String, expected: DataType, got: DataType },
    #[error(
        "unexpected shape for input '{input}' for model '{model}'. \
         Expected {expected}, got {got}. {}",
        if *.batched { BATCH_DIMENSION_NOTE } else { "" }
    )]
    ShapeMismatch { input: String, model: String, expected: Box<Shape>, got: Shape, batched: bool },
    #[error(
        "All input dimensions should be specified for input '{input}' for model '{model}', \
         got {shape}"
    )]
    UnspecifiedDimension { input: String, model: String, shape: Shape },
    #[error(
        "input '{input}' for model '{model}' has shape {shape}: the number of elements is too large"
    )]
    ElementCountOverflow { input: String, model: String, shape: Shape },
    #[error("input '{input}' has no shape but model requires batch dimension for '{model}'")]
    MissingBatchDimension { input: String, model: String },
    #[error("input '{input}' batch size does not match other inputs for '{model}'")]
    BatchSizeDisagrees { input: String, model: String },
    #[error("inference request batch-size must be <= {limit} for '{model}'")]
    BatchTooLarge { model: String, limit: u32 },
    #[error("inference request batch-size must be >= 1 for '{model}', got {got}")]
    BatchTooSmall { model: String, got: i64 },
    #[error(
        "input byte size mismatch for input '{input}' for model '{model}'. \
         Expected {expected}, got {got}"
    )]
    ByteSizeMismatch { input: String, model: String, expected: u64, got: u64 },
    #[error(
        "expected {expected} string elements for inference input '{input}' for model '{model}', \
         got {got}"
    )]
    MissingStrings { input: String, model: String, expected: u64, got: u64 },
    #[error(
        "unexpected number of string elements {} for inference input '{input}' for model \
         '{model}', expecting {expected}",
        .expected.saturating_add(1)
    )]
    SurplusString { input: String, model: String, expected: u64 },
    #[error(
        "incomplete string length indicator for inference input '{input}' for model '{model}', \
         expecting 4 bytes but only {got} bytes available. \
         Please make sure the string length indicator is in one buffer."
    )]
    TruncatedStringLength { input: String, model: String, got: usize },
    #[error(
        "incomplete string data for inference input '{input}' for model '{model}', \
         expecting string of length {expected} but only {got} bytes available"
    )]
    TruncatedString { input: String, model: String, expected: usize, got: usize },
    #[error("in ensemble '{ensemble}', {error}")]
    InEnsemble { ensemble: String, error: Box<Error> },
    #[error(
        "unexpected deadlock, at least one output is not set while no more ensemble steps can be made"
    )]
    EnsembleStuck,
    #[error("[request id: {}] {error}", if .id.is_empty() { "<id_unknown>" } else { .id })]
    InRequest { id: String, error: Box<Error> },
    #[error("{detail}")]
    MalformedRequest { detail: String },
    #[error("parameter '{name}' {detail}")]
    BadParameter { name: String, detail: String },
    #[error("{detail}")]
    Unsupported { detail: String },
    #[error("request of {got} bytes exceeds the limit of {limit} bytes")]
    RequestTooLarge { limit: usize, got: u64 },

    #[error(
        "inference request to model '{model}' must specify batch-size 1 due to requirements of \
         sequence batcher"
    )]
    BatchInSequence { model: String },
    #[error(
        "inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
    )]
    NoCorrelationId { model: String },
    #[error(
        "inference request for sequence {id} to model '{model}' must specify the START flag on the \
         first request of the sequence"
    )]
    SequenceNotStarted { model: String, id: String },
    #[error(
        "sequence {id} to model '{model}' has ended: its client has left while a request waited"
    )]
    SequenceLeft { model: String, id: String },
    #[error("string correlation ID cannot be longer than {limit} characters")]
    LongCorrelationId { limit: usize },
    #[error(
        "inference request for sequence '{id}' to model '{model}' must specify a number as its \
         correlation ID, which the model takes as {expected}"
    )]
    TextCorrelationId { model: String, id: String, expected: DataType },

    #[error("Unable to find {kind}shared memory region: '{name}'")]
    UnknownRegion { kind: &'static str, name: String },
    #[error(
        "The region named '{name}' is registered as {is} shared memory, not {asked} shared memory"
    )]
    RegionOfOtherKind { name: String, is: &'static str, asked: &'static str },
    #[error("shared memory region '{name}' already in manager")]
    RegionExists { name: String },
    #[error("Unable to open shared memory region: '{key}'")]
    UnopenableRegion { key: String },
    #[error(
        "shared memory size specified with the request for output '{output}' ({got} bytes) should \
         be at least {expected} bytes to hold the results"
    )]
    OutputRegionTooSmall { output: String, expected: usize, got: usize },

    #[error("Exceeds maximum queue size")]
    QueueFull,
    #[error("server is out of its budget of {limit} bytes for requests in flight")]
    OutOfBudget { limit: usize },
    #[error("Request timeout expired")]
    TimeoutExpired,
    #[error(
        "model '{model}' cannot be called: the call would wait for itself, because all its \
         {instances} instances wait for it"
    )]
    WaitsForItself { model: String, instances: usize },
    #[error("request deadline expired before the model ran")]
    DeadlineExpired,
    #[error("request was cancelled")]
    Cancelled,
    #[error("model '{model}' is being unloaded")]
    Unloading { model: String },
    #[error("model '{model}' is unavailable: {reason}")]
    ModelUnavailable { model: String, reason: String },

    #[error("{endpoint} doesn't support models with decoupled transaction policy")]
    DecoupledModel { endpoint: &'static str },
    #[error(
        "generate expects model to produce exactly 1 response, use generate stream for model that \
         generates various number of responses"
    )]
    NotOneResponse,
    #[error("the client left {limit} responses of model '{model}' unread")]
    UnreadResponses { model: String, limit: usize },

    #[error("{detail}")]
    Backend { detail: String },
    #[error("{detail}")]
    Model { code: Code, detail: String },
    #[error("{detail}")]
    Internal { detail: String },
}

impl Error {
    /// The protocol's code for this failure.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownModel { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownRegion { .. }
            | Self::RegionOfOtherKind { .. } => Code::NotFound,
            Self::RegionExists { .. } | Self::AlreadyHosted { .. } => Code::AlreadyExists,
            Self::NoAvailableVersions { .. }
            | Self::VersionNotReady { .. }
            | Self::NotReady
            | Self::NoModelControl
            | Self::TooManyLoads { .. }
            | Self::Stopping
            | Self::QueueFull
            | Self::OutOfBudget { .. }
            | Self::WaitsForItself { .. }
            | Self::TimeoutExpired
            | Self::DeadlineExpired
            | Self::UnreadResponses { .. }
            | Self::Unloading { .. }
            | Self::ModelUnavailable { .. } => Code::Unavailable,
            Self::InRequest { error, .. } | Self::InEnsemble { error, .. } => error.code(),
            Self::Model { code, .. } => *code,
            Self::AmbiguousModel { .. }
            | Self::ModelNotLoaded { .. }
            | Self::MalformedVersion { .. }
            | Self::NegativeVersion { .. }
            | Self::NoStatisticsOfModel { .. }
            | Self::NoStatisticsOfVersion { .. }
            | Self::UnknownDataType { .. }
            | Self::UnexpectedInput { .. }
            | Self::UnexpectedOutput { .. }
            | Self::DuplicateInput { .. }
            | Self::DuplicateOutput { .. }
            | Self::InputCount { .. }
            | Self::DataTypeMismatch { .. }
            | Self::ShapeMismatch { .. }
            | Self::UnspecifiedDimension { .. }
            | Self::ElementCountOverflow { .. }
            | Self::MissingBatchDimension { .. }
            | Self::BatchSizeDisagrees { .. }
            | Self::BatchTooLarge { .. }
            | Self::BatchTooSmall { .. }
            | Self::ByteSizeMismatch { .. }
            | Self::MissingStrings { .. }
            | Self::SurplusString { .. }
            | Self::TruncatedStringLength { .. }
            | Self::TruncatedString { .. }
            | Self::MalformedRequest { .. }
            | Self::BadParameter { .. }
            | Self::NotOneResponse
            | Self::EnsembleStuck
            | Self::BatchInSequence { .. }
            | Self::NoCorrelationId { .. }
            | Self::SequenceNotStarted { .. }
            | Self::TextCorrelationId { .. }
            | Self::RequestTooLarge { .. } => Code::InvalidArgument,
            Self::Unsupported { .. }
            | Self::DecoupledModel { .. }
            | Self::LongCorrelationId { .. } => Code::Unsupported,
            Self::Cancelled | Self::SequenceLeft { .. } => Code::Cancelled,
            Self::ModelNotPolled { .. }
            | Self::UnopenableRegion { .. }
            | Self::OutputRegionTooSmall { .. }
            | Self::Backend { .. }
            | Self::Internal { .. } => Code::Internal,
        }
    }

    /// This failure of the request `id`, which may be empty. Triton names the request in all that it
    /// finds when it holds one against its model, save names that the model does not know.
    pub fn in_request(self, id: &str) -> Self {
        match self {
            Self::UnexpectedInput { .. } | Self::UnexpectedOutput { .. } => self,
            error => Self::InRequest { id: id.to_owned(), error: Box::new(error) },
        }
    }

    /// A request whose answer was dropped.
    pub fn unanswered() -> Self {
        Self::Internal { detail: "the request was dropped without an answer".to_owned() }
    }

    /// A request that is not of the protocol's form.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::MalformedRequest { detail: detail.into() }
    }
}

const BATCH_DIMENSION_NOTE: &str = "NOTE: Setting a non-zero max_batch_size in the model config \
    requires a batch dimension to be prepended to each input shape. If you want to specify the full \
    shape including the batch dim in your input dims config, try setting max_batch_size to zero. \
    See the model configuration docs for more info on max_batch_size.";

fn count_said(required: usize, most: usize, got: usize) -> String {
    if required == most {
        format!("{most} inputs but got {got}")
    } else {
        format!("number of inputs between {required} and {most} but got {got}")
    }
}

/// Tensor names as error texts list them: `['A','B']`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameList(pub Vec<String>);

impl fmt::Display for NameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, name) in self.0.iter().enumerate() {
            write!(f, "{}'{name}'", if index > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}
