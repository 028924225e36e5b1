//! Everything about repositories that can be found wrong without serving them.

mod ensembles;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Agents, Definition, Entry, Error, ModelIo, ModelSource, Options, Repository, Written,
    draft::{DataFile, data_files},
    layout,
};

/// Something wrong or odd in a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The file or folder.
    pub path: PathBuf,
    /// The line, from 1, when it is known.
    pub line: Option<usize>,
    /// The column, from 1, when it is known.
    pub column: Option<usize>,
    /// Whether it keeps the model from being served.
    pub severity: Severity,
    /// What it is.
    pub message: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The model is served all the same.
    Warning,
    /// The model cannot be served.
    Error,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, ": {severity}: {}", self.message)
    }
}

/// How a caller lets back ends look at models.
pub trait Inspect {
    /// What the model's file says of its tensors: `Ok(None)` where the back end cannot tell, or is not
    /// installed and shall not be missed.
    ///
    /// # Errors
    /// Why it could not be read.
    fn inspect(&mut self, source: &ModelSource) -> Result<Option<ModelIo>, String>;

    /// The file that must be there for the model to be served.
    fn model_file(&mut self, source: &ModelSource) -> PathBuf {
        source.model_path.clone()
    }
}

/// Checks every model of the repositories in `roots`, then the ensembles across them. Findings come
/// in the order of the models' names. Repository agents are called as for a load that fails.
pub fn check(
    roots: &[PathBuf],
    agents: &Agents,
    options: &Arc<Options>,
    inspect: &mut dyn Inspect,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let opened = Repository::new(roots.to_vec(), false);
    let (repository, entries) = match opened.and_then(|it| it.scan().map(|entries| (it, entries))) {
        Ok(found) => found,
        Err(error) => {
            return vec![finding(roots.first().map_or(Path::new(""), PathBuf::as_path), &error)];
        }
    };
    if entries.is_empty() {
        for root in roots {
            findings.push(warning(root, "the repository has no models".to_owned()));
        }
    }
    let mut definitions = BTreeMap::new();
    for entry in &entries {
        let checked = repository
            .fetch(entry)
            .and_then(|()| check_model(entry, roots, agents, options, inspect, &mut findings));
        match checked {
            Ok(definition) => {
                definitions.insert(entry.id.name.as_str(), Some(definition));
            }
            Err(error) => {
                findings.push(finding(place(entry, roots), &error));
                definitions.insert(entry.id.name.as_str(), None);
            }
        }
    }
    ensembles::check(&definitions, &mut findings);
    findings
}

fn check_model(
    entry: &Entry,
    roots: &[PathBuf],
    agents: &Agents,
    options: &Arc<Options>,
    inspect: &mut dyn Inspect,
    findings: &mut Vec<Finding>,
) -> Result<Definition, Error> {
    if let Some(error) = &entry.error {
        return Err(error.clone());
    }
    // Held until all has been looked at, for the folder may be the agents' own.
    let written = Written::read(&entry.dir, options)?;
    let (draft, _agents) = agents.draft(&entry.id.name, &entry.dir, written, options)?;
    for message in draft.warnings() {
        findings.push(warning(place(entry, roots), message.clone()));
    }
    let io = match draft.source_for_inspect() {
        Some(source) if source.model_path.exists() => inspect
            .inspect(&source)
            .map_err(|error| Error::unreadable(&source.model_path, error))?,
        _ => None,
    };
    let definition = draft.complete(io.as_ref())?;
    if definition.backend_name().is_some() {
        for &version in &definition.versions {
            let file = inspect.model_file(&definition.source(version));
            if let Err(error) = fs::metadata(&file) {
                let reason = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        format!("unable to find '{}' for model '{}'", file.display(), entry.id.name)
                    }
                    _ => error.to_string(),
                };
                findings.push(Finding { severity: Severity::Error, ..warning(&file, reason) });
            }
        }
    }
    for DataFile { field, folder, file, .. } in data_files(&definition.config) {
        let path = definition.dir.join(folder).join(file);
        if !path.is_file() {
            let message = format!("no such file, which {field} of model '{}' names", entry.id.name);
            findings.push(Finding { severity: Severity::Error, ..warning(&path, message) });
        }
    }
    Ok(definition)
}

/// The folder to blame for a model; of a name in several repositories, the first.
fn place<'a>(entry: &'a Entry, roots: &'a [PathBuf]) -> &'a Path {
    if entry.dir.as_os_str().is_empty() {
        roots.first().map_or(Path::new(""), PathBuf::as_path)
    } else {
        &entry.dir
    }
}

fn warning(path: &Path, message: String) -> Finding {
    Finding {
        path: path.to_owned(),
        line: None,
        column: None,
        severity: Severity::Warning,
        message,
    }
}

fn finding(model_dir: &Path, error: &Error) -> Finding {
    let (path, message) = match error {
        Error::Unreadable { path, reason } => (path.clone(), reason.clone()),
        _ => {
            let config = model_dir.join(layout::CONFIG_FILE);
            let path = if config.is_file() { config } else { model_dir.to_owned() };
            (path, error.message())
        }
    };
    match error.location() {
        Some(location) => Finding {
            path: location.file.clone(),
            line: Some(location.line),
            column: Some(location.column),
            severity: Severity::Error,
            message,
        },
        None => Finding { path, line: None, column: None, severity: Severity::Error, message },
    }
}
