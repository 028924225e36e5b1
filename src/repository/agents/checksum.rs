//! The agent `checksum`: files must be what the configuration says that they are.
//!
//! Each parameter is `MD5:<path>`, as with Triton's agent of this name, or `SHA256:<path>`, the path in the
//! model's folder; its value is the sum in hexadecimal.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::Path,
};

use md5::{Digest, Md5};
use sha2::Sha256;

use super::{Action, Agent, AgentError, AgentModel, AgentSession};
use crate::{inference::Code, repository::layout};

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
        "MD5" => sum::<Md5>,
        "SHA256" => sum::<Sha256>,
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

/// The sum of a file's bytes, which need not fit into memory.
fn sum<D: Digest>(path: &Path) -> io::Result<String> {
    // Asked before opening, because opening a named pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let (mut file, mut digest) = (File::open(path)?, D::new());
    let mut part = vec![0; 64 << 10];
    loop {
        match file.read(&mut part)? {
            0 => break,
            read => digest.update(&part[..read]),
        }
    }
    let mut text = String::new();
    for byte in digest.finalize() {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
