//! The agent `checksum`: files must be what the configuration says that they are.
//!
//! Each parameter is `MD5:<path>`, as with Triton's agent of this name, or `SHA256:<path>`, the path in the
//! model's folder; its value is the sum in hexadecimal.

use std::path::Path;

use md5::Md5;
use sha2::Sha256;

use super::{Action, Agent, AgentError, AgentModel, AgentSession};
use crate::{
    inference::Code,
    repository::{digest, layout},
};

pub(super) struct Checksum;

impl Agent for Checksum {
    fn begin(&self, _: &AgentModel) -> Result<Box<dyn AgentSession>, AgentError> {
        Ok(Box::new(Checksum))
    }
}

impl AgentSession for Checksum {
    fn act(&mut self, action: Action, model: &mut AgentModel) -> Result<(), AgentError> {
        if action != Action::Load {
            return Ok(());
        }
        model.parameters().iter().try_for_each(|(key, sum)| check(model.location(), key, sum))
    }
}

fn check(dir: &Path, key: &str, expected: &str) -> Result<(), AgentError> {
    let (algorithm, file) = key
        .split_once(':')
        .ok_or_else(|| AgentError::invalid(format!("failed to parse key: {key}")))?;
    if !layout::stays_inside(file) {
        return Err(AgentError::invalid(format!("'{file}' leaves the model's folder")));
    }
    let name = algorithm.to_ascii_uppercase();
    let sum = match name.as_str() {
        "MD5" => digest::of_file::<Md5>,
        "SHA256" => digest::of_file::<Sha256>,
        _ => {
            return Err(AgentError {
                code: Code::Unsupported,
                message: format!("Unsupported checksum algorithm: {algorithm}"),
            });
        }
    };
    let got = sum(&dir.join(file)).map_err(|error| {
        let reason = layout::describe(&error);
        AgentError::invalid(format!("failed to open text file for read {file}: {reason}"))
    })?;
    match got.eq_ignore_ascii_case(expected) {
        true => Ok(()),
        false => Err(AgentError::invalid(format!(
            "Mismatched {name} hash for file {file}, expect: {expected}, got: {got}"
        ))),
    }
}
