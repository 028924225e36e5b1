//! The agent `decrypt`: files whose name ends in `.age` are served as what they are when decrypted.
//!
//! The parameter `identity_file` names a file with age identities, `identity_env` an environment variable
//! that holds one; one of the two is needed. The decrypted model lies in a folder of its own until it is
//! unloaded, so it never lies beside the encrypted one.

use std::{
    collections::HashSet,
    env,
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use age::{Decryptor, Identity, IdentityFile, armor::ArmoredReader};

use super::{Action, Agent, AgentError, AgentModel, AgentSession};
use crate::{inference::Code, repository::layout};

/// How the names of encrypted files end.
const SUFFIX: &str = ".age";
const IDENTITY_FILE: &str = "identity_file";
const IDENTITY_ENV: &str = "identity_env";

type Identities = Vec<Box<dyn Identity + Send + Sync>>;

pub(super) struct Decrypt;

impl Agent for Decrypt {
    fn begin(&self, _: &AgentModel) -> Result<Box<dyn AgentSession>, AgentError> {
        Ok(Box::new(Decrypt))
    }
}

impl AgentSession for Decrypt {
    fn act(&mut self, action: Action, model: &mut AgentModel) -> Result<(), AgentError> {
        if action != Action::Load {
            // The folder goes when the agent's care ends.
            return Ok(());
        }
        let identities = identities(model)?;
        let from = model.location().to_owned();
        let to = model.acquire_location()?.to_owned();
        decrypt_folder(&from, &to, &identities)?;
        model.replace_location(to)
    }
}

/// What the model's parameters name. No message tells what a file or variable holds.
fn identities(model: &AgentModel) -> Result<Identities, AgentError> {
    let unknown = |(key, _): &&(String, String)| ![IDENTITY_FILE, IDENTITY_ENV].contains(&&**key);
    if let Some((key, _)) = model.parameters().iter().find(unknown) {
        return Err(AgentError::invalid(format!(
            "unknown parameter '{key}', expected '{IDENTITY_FILE}' or '{IDENTITY_ENV}'"
        )));
    }
    let (named, read) = match (model.parameter(IDENTITY_FILE), model.parameter(IDENTITY_ENV)) {
        (Some(file), None) => {
            let named = format!("identity file '{file}'");
            let content = fs::read(file).map_err(|error| {
                AgentError::invalid(format!("cannot read {named}: {}", layout::describe(&error)))
            })?;
            (named, content)
        }
        (None, Some(variable)) => {
            let named = format!("environment variable '{variable}'");
            let content = env::var(variable)
                .map_err(|_| AgentError::invalid(format!("{named} is not set to a text")))?;
            (named, content.into_bytes())
        }
        _ => {
            return Err(AgentError::invalid(format!(
                "expected one of the parameters '{IDENTITY_FILE}' and '{IDENTITY_ENV}'"
            )));
        }
    };
    let malformed = || AgentError::invalid(format!("{named} holds no age identity"));
    let found: Identities = IdentityFile::from_buffer(read.as_slice())
        .ok()
        .and_then(|file| file.into_identities().ok())
        .ok_or_else(malformed)?;
    if found.is_empty() { Err(malformed()) } else { Ok(found) }
}

/// Fills `to` with what is in `from`, through symbolic links.
fn decrypt_folder(from: &Path, to: &Path, identities: &Identities) -> Result<(), AgentError> {
    // Links can lead back to where they lie.
    let mut seen = HashSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let source = from.join(&folder);
        let failed = |error: io::Error| failed(&source, layout::describe(&error));
        let metadata = fs::metadata(&source).map_err(failed)?;
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        fs::create_dir_all(to.join(&folder)).map_err(failed)?;
        for found in fs::read_dir(&source).map_err(failed)? {
            let name = found.map_err(failed)?.file_name();
            let path = folder.join(&name);
            match fs::metadata(from.join(&path)) {
                // A link that leads nowhere, or what is neither file nor folder: no part of a model.
                Err(_) => {}
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) if metadata.is_file() => match decrypted_name(&path) {
                    Some(plain) => {
                        decrypt_file(&from.join(&path), &to.join(plain), identities)?;
                    }
                    // An encrypted file takes the place of a plain one of its name.
                    None if from.join(encrypted_name(&path)).exists() => {}
                    None => {
                        fs::copy(from.join(&path), to.join(&path)).map_err(failed)?;
                    }
                },
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

fn decrypted_name(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    (!name.is_empty()).then(|| path.with_file_name(name))
}

fn encrypted_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn decrypt_file(from: &Path, to: &Path, identities: &Identities) -> Result<(), AgentError> {
    let opened = File::open(from).map_err(|error| failed(from, layout::describe(&error)))?;
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(BufReader::new(opened)))
        .map_err(|error| failed(from, error.to_string()))?;
    let known = identities.iter().map(|identity| &**identity as &dyn Identity);
    let mut plain = decryptor.decrypt(known).map_err(|error| failed(from, error.to_string()))?;
    let mut written = File::create(to).map_err(|error| failed(to, layout::describe(&error)))?;
    io::copy(&mut plain, &mut written).map_err(|error| failed(from, layout::describe(&error)))?;
    Ok(())
}

fn failed(path: &Path, reason: String) -> AgentError {
    AgentError {
        code: Code::Internal,
        message: format!("cannot decrypt '{}': {reason}", path.display()),
    }
}
