use std::{collections::BTreeMap, sync::Arc};

use crate::{
    backend::BackendError,
    inference::{Code, Error},
    repository::{self, ModelId},
    serving::{
        ensemble::NotComposed, sequences::SetupError, version::VersionError, warm_up::WarmUpError,
    },
};

/// Why a model is not loaded.
#[derive(Clone, Debug)]
pub enum LoadFailure {
    /// It could not be read, or breaks a rule before it comes to versions.
    Unreadable(repository::Error),
    /// Its policy chooses no version.
    NoVersions(repository::Error),
    /// It is an ensemble, and these of its models are not served.
    MissingModels(Vec<String>),
    /// It is an ensemble that cannot be served; the text says why.
    Ensemble(String),
    /// Versions failed. Those that did not are with `None`: a model is loaded whole or not at all.
    Versions(BTreeMap<i64, Option<VersionFailure>>),
}

/// Why a version failed to load, as the repository's index and the answer to a load say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFailure {
    /// Why.
    pub reason: String,
    /// Whether it was to have other instances, and is served with those that it has.
    pub is_served: bool,
}

impl From<NotComposed> for LoadFailure {
    fn from(why: NotComposed) -> Self {
        match why {
            NotComposed::Missing(models) => Self::MissingModels(models),
            NotComposed::Misfit(reason) => Self::Ensemble(reason),
        }
    }
}

impl From<repository::Error> for LoadFailure {
    fn from(error: repository::Error) -> Self {
        match error {
            repository::Error::NoVersions { .. } => Self::NoVersions(error),
            error => Self::Unreadable(error),
        }
    }
}

/// Why a version is not served.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum VersionFault {
    #[error("{0}")]
    Repository(#[from] repository::Error),
    #[error("{0}")]
    Backend(#[from] BackendError),
    #[error("{0}")]
    WarmUp(Arc<WarmUpError>),
    #[error("{0}")]
    Version(Arc<VersionError>),
    #[error("{0}")]
    Sequences(Arc<SetupError>),
    #[error(
        "unable to find backend '{name}' for model '{model}': this server has {known}, and there is no \
         {name}/model.py among its back ends"
    )]
    UnknownBackend { name: String, model: String, known: String },
    #[error("backend '{name}' for model '{model}' cannot be used: {reason}")]
    UnavailableBackend { name: String, model: String, reason: String },
    #[error("model '{model}' wants {feature}, which this server does not offer yet")]
    Unsupported { model: String, feature: &'static str },
}

impl VersionFault {
    fn code(&self) -> Code {
        match self {
            Self::Repository(error) => error.code(),
            Self::WarmUp(error) => error.refusal().map_or(Code::Internal, Error::code),
            Self::Version(error) if matches!(**error, VersionError::Limit(_)) => {
                Code::InvalidArgument
            }
            Self::Backend(_)
            | Self::Version(_)
            | Self::Sequences(_)
            | Self::UnavailableBackend { .. } => Code::Internal,
            Self::UnknownBackend { .. } => Code::InvalidArgument,
            Self::Unsupported { .. } => Code::Unsupported,
        }
    }

    /// What it means for a version, which is served nevertheless or not. The log is told too.
    pub(super) fn told(&self, id: &ModelId, version: i64, is_served: bool) -> VersionFailure {
        log::error!("failed to load '{id}' version {version}: {}", self.located());
        VersionFailure { reason: self.reason(), is_served }
    }

    fn reason(&self) -> String {
        match self {
            // As a client would be told.
            Self::WarmUp(error) if let Some(refusal) = error.refusal() => {
                format!("{}: {refusal}", self.code().words())
            }
            _ => format!("{}: {self}", self.code().words()),
        }
    }

    fn located(&self) -> String {
        match self {
            Self::Repository(error) => error.located(),
            other => other.to_string(),
        }
    }
}
