//! `nereid check`: validates model repositories without serving them.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;

use super::serve;
use crate::{
    backend::{ModelSource, directory},
    device::Devices,
    repository::{self, Agents, Inspect, ModelIo, Options, Severity},
    serving::Backends,
};

/// What to check, and how strictly.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Model repositories
    #[arg(value_name = "REPOSITORY", required_unless_present = "model_repository")]
    repositories: Vec<PathBuf>,
    /// A model repository, named as it is for serving; may be given several times
    #[arg(long, alias = "model-store", value_name = "DIR")]
    model_repository: Vec<PathBuf>,
    /// Take every configuration as it is, completing nothing from the model
    #[arg(long)]
    disable_auto_complete_config: bool,
    /// Prefer configs/<NAME>.pbtxt to config.pbtxt
    #[arg(long, value_name = "NAME")]
    model_config_name: Option<String>,
    /// Where back ends lie [default: $NEREID_BACKEND_DIR or ~/.local/share/nereid/backends]
    #[arg(long, value_name = "DIR")]
    backend_directory: Option<PathBuf>,
}

/// Prints what it finds as `file:line:column: severity: message`, and fails if anything is wrong.
pub fn run(args: &CheckArgs) -> ExitCode {
    let options = Arc::new(Options {
        auto_complete: !args.disable_auto_complete_config,
        config_name: args.model_config_name.clone(),
        ..Options::default()
    });
    let directory = args.backend_directory.clone().or_else(directory::default);
    // Nothing is run, so nothing is needed to run on.
    let devices = Arc::new(Devices::none("models are only checked"));
    let backends = serve::find_backends(directory, &options, &devices);
    let repositories = [&args.repositories[..], &args.model_repository].concat();
    let findings =
        repository::check(&repositories, &Agents::built_in(), &options, &mut Installed(&backends));
    findings.iter().for_each(|finding| println!("{finding}"));
    for (name, opened) in backends.opened() {
        if let Err(reason) = opened {
            println!("note: models of back end '{name}' were not looked into: {reason}");
        }
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    println!("{errors} error(s), {} warning(s)", findings.len() - errors);
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The back ends that are installed here.
struct Installed<'a>(&'a Backends);

impl Inspect for Installed<'_> {
    fn inspect(&mut self, source: &ModelSource) -> Result<Option<ModelIo>, String> {
        match self.0.find(&source.config) {
            Some(Ok(backend)) => backend.inspect(source).map_err(|reason| reason.0),
            // Not installed here: that is no fault of the repository.
            Some(Err(_)) => Ok(None),
            None => Err(format!(
                "this server has no back end '{}', only {}",
                source.config.backend,
                self.0.names().collect::<Vec<_>>().join(", ")
            )),
        }
    }

    fn model_file(&mut self, source: &ModelSource) -> PathBuf {
        match self.0.find(&source.config) {
            Some(Ok(backend)) => backend.model_file(source),
            _ => source.model_path.clone(),
        }
    }
}
