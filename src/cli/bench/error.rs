use std::{io, path::PathBuf};

use crate::runtime;

/// A measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Nobody accepts connections at the address.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// HOST:PORT.
        authority: String,
        /// Why.
        source: io::Error,
    },
    /// The server did not tell what is needed.
    #[error("cannot get the {what} of model '{model}' from {authority}: {detail}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// The model.
        model: String,
        /// HOST:PORT.
        authority: String,
        /// Why.
        detail: String,
    },
    /// The options do not fit each other.
    #[error("{0}")]
    Options(String),
    /// The options do not fit the model.
    #[error("model '{model}': {detail}")]
    Model {
        /// The model.
        model: String,
        /// What is wrong.
        detail: String,
    },
    /// Tensors could not be shared with the server.
    #[error("cannot share tensors with the server: {detail}")]
    SharedMemory {
        /// Why.
        detail: String,
    },
    /// No request was answered well.
    #[error("no request was answered at {load}: {detail}")]
    NoAnswers {
        /// The load.
        load: String,
        /// What the server said most often.
        detail: String,
    },
    /// The server's process cannot be observed.
    #[error("cannot read the CPU time of process {pid}: {source}")]
    ServerCpu {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// The results cannot be written.
    #[error("cannot write results to {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The client's own threads could not be had.
    #[error("cannot start the client: {0}")]
    Client(String),
}

impl From<runtime::StartError> for BenchError {
    fn from(error: runtime::StartError) -> Self {
        Self::Client(error.to_string())
    }
}
