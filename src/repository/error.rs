use std::{fmt, path::PathBuf};

use crate::inference::Code;

/// A place in a text file, both numbers counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Why a model of a repository cannot be served. Texts that Triton's users know are Triton's own.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Error {
    /// A configuration that is not of the text format or names what the format does not have.
    #[error("{location}: {message}")]
    Text { location: Location, message: String },
    /// A configuration that is well-formed and wrong; `location` says where, when it is known.
    #[error("{message}")]
    Invalid { message: String, location: Option<Location> },
    #[error("repository agent '{agent}' of model '{model}': {message}")]
    Agent { model: String, agent: String, code: Code, message: String },
    /// What an object store could not be asked; `object` is the model or object that it was about.
    #[error(
        "cannot read '{url}'{}: {reason}",
        object.as_ref().map(|object| format!(", object '{object}'")).unwrap_or_default()
    )]
    Store { url: String, object: Option<String>, reason: String },
    #[error("model repository '{location}' is malformed: expected {expected}")]
    BadLocation { location: String, expected: &'static str },
    #[error("cannot take models from '{}': {reason}", path.display())]
    NotRegistrable { path: PathBuf, reason: String },
    #[error("model repository '{}' is already registered", path.display())]
    RegisteredAlready { path: PathBuf },
    #[error("there is a model repository with a model of the name '{model}' already")]
    NameTaken { model: String },
    #[error("cannot read '{}': {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// A version policy that takes none of the versions that are there.
    #[error("at least one version must be available under the version policy of model '{model}'")]
    NoVersions { model: String, location: Option<Location> },
    #[error("{message}: '{name}'")]
    BadOverride { name: String, message: &'static str },
    #[error("Load parameter 'config' must be specified for model file override")]
    OverrideWithoutConfig,
    #[error("failed to poll model '{model}': model not found in any model repository.")]
    UnknownModel { model: String },
    #[error("failed to poll model '{model}': not unique across all model repositories")]
    NotUnique { model: String },
    #[error(
        "model name {name:?} is not a folder's name: \
         expected one path component of UTF-8 without '/' or NUL, other than '.' and '..'"
    )]
    BadModelName { name: String },
    #[error(
        "{field} '{value}' of model '{model}' leaves the model's folder: \
         expected a relative path without '..'"
    )]
    PathEscapes { field: &'static str, value: String, model: String, location: Option<Location> },
}

impl Error {
    /// The protocol's code for this failure.
    pub fn code(&self) -> Code {
        match self {
            Self::Agent { code, .. } => *code,
            Self::UnknownModel { .. } => Code::NotFound,
            Self::RegisteredAlready { .. } | Self::NameTaken { .. } => Code::AlreadyExists,
            Self::Unreadable { .. } | Self::Store { .. } => Code::Internal,
            Self::Text { .. }
            | Self::Invalid { .. }
            | Self::NoVersions { .. }
            | Self::BadOverride { .. }
            | Self::OverrideWithoutConfig
            | Self::NotUnique { .. }
            | Self::BadModelName { .. }
            | Self::BadLocation { .. }
            | Self::NotRegistrable { .. }
            | Self::PathEscapes { .. } => Code::InvalidArgument,
        }
    }

    /// Where in a file the fault lies, when that is known.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Self::Text { location, .. } => Some(location),
            Self::Invalid { location, .. }
            | Self::NoVersions { location, .. }
            | Self::PathEscapes { location, .. } => location.as_ref(),
            _ => None,
        }
    }

    /// The message without the location that [`Error::Text`] shows in front of it.
    pub fn message(&self) -> String {
        match self {
            Self::Text { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }

    /// The message with the place of the fault in front, when that is known.
    pub fn located(&self) -> String {
        match self.location() {
            Some(location) => format!("{location}: {}", self.message()),
            None => self.to_string(),
        }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), location: None }
    }

    pub(super) fn unreadable(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Unreadable { path: path.into(), reason: reason.to_string() }
    }
}

/// A rule that a configuration breaks: what to tell, and which field to point at, such as
/// `input[1].dims`. It becomes an [`Error`] where the file is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub field: String,
    pub message: String,
}

impl Fault {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}
