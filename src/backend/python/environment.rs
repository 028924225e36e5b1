//! Which interpreter runs a model, with which variables.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{backend::BackendError, proto::ModelConfig};

/// The parameter of a model's configuration that names its environment.
const PARAMETER: &str = "EXECUTION_ENV_PATH";
/// What stands for the model's folder at the beginning of the parameter's value.
const MODEL_DIRECTORY: &str = "$$TRITON_MODEL_DIRECTORY";
/// What is looked for in an environment, in this order.
const PROGRAMS: [&str; 2] = ["bin/python3", "bin/python"];

/// An interpreter and what it is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interpreter {
    /// The program.
    pub path: PathBuf,
    /// Variables that it gets besides the server's own.
    pub variables: Vec<(String, String)>,
}

impl Interpreter {
    /// The interpreter `program`, found as the shell would; its version comes with it.
    ///
    /// # Errors
    /// When there is none that runs.
    pub fn find(program: &str) -> Result<(Self, String), BackendError> {
        // A shim that looks for the interpreter anew each time is asked once.
        let asked = Command::new(program)
            .args(["-c", "import sys; print(sys.executable); print(sys.version.split()[0])"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let refuse = |reason: String| {
            BackendError(format!(
                "the Python interpreter '{program}' cannot be run: {reason}. Models of the back end \
                 'python' need CPython 3.9 or later with NumPy; name another interpreter by \
                 --backend-config=python,interpreter=PATH, or for one model by its parameter {PARAMETER}"
            ))
        };
        let output = asked.map_err(|error| refuse(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match (output.status.success(), &*text.lines().collect::<Vec<_>>()) {
            (true, [path, version]) if !path.is_empty() => {
                Ok((Self { path: path.into(), variables: Vec::new() }, (*version).to_owned()))
            }
            _ => Err(refuse(output.status.to_string())),
        }
    }

    fn in_folder(folder: &Path, model: &str) -> Result<Self, BackendError> {
        let Some(path) =
            PROGRAMS.map(|program| folder.join(program)).into_iter().find(|it| it.exists())
        else {
            return Err(BackendError(format!(
                "{PARAMETER} of model '{model}' names '{}', which has neither {} nor {}",
                folder.display(),
                PROGRAMS[0],
                PROGRAMS[1]
            )));
        };
        let folder = folder.display();
        let before = |folder: String, variable: &str| match env::var(variable) {
            Ok(rest) if !rest.is_empty() => format!("{folder}:{rest}"),
            _ => folder,
        };
        let variables = vec![
            ("PATH".to_owned(), before(format!("{folder}/bin"), "PATH")),
            ("LD_LIBRARY_PATH".to_owned(), before(format!("{folder}/lib"), "LD_LIBRARY_PATH")),
            ("VIRTUAL_ENV".to_owned(), folder.to_string()),
        ];
        Ok(Self { path, variables })
    }
}

/// The environments that models bring along, and where the packed ones were unpacked.
#[derive(Default)]
pub struct Environments {
    unpacked: Mutex<BTreeMap<PathBuf, Weak<Unpacked>>>,
}

/// A folder that is removed with this.
#[derive(Debug)]
pub struct Unpacked(PathBuf);

impl Unpacked {
    fn remove(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("'{}' cannot be removed: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The interpreter of a model, and the folder that has to be there as long as it runs.
pub type Found = (Interpreter, Option<Arc<Unpacked>>);

impl Environments {
    /// The interpreter that a model's configuration names, or `None`.
    ///
    /// # Errors
    /// When it names something that is no environment.
    pub fn of_model(
        &self,
        config: &ModelConfig,
        model_dir: &Path,
    ) -> Result<Option<Found>, BackendError> {
        let Some(parameter) = config.parameters.get(PARAMETER) else { return Ok(None) };
        let value = parameter.string_value.as_str();
        let path = match value.strip_prefix(MODEL_DIRECTORY) {
            Some(rest) => model_dir.join(rest.trim_start_matches('/')),
            None => PathBuf::from(value),
        };
        let model = &config.name;
        let refuse = |reason: &dyn std::fmt::Display| {
            BackendError(format!(
                "{PARAMETER} of model '{model}' names '{}', which cannot be used: {reason}",
                path.display()
            ))
        };
        let path = path.canonicalize().map_err(|error| refuse(&error))?;
        if path.is_dir() {
            return Ok(Some((Interpreter::in_folder(&path, model)?, None)));
        }
        let unpacked = self.unpack(&path).map_err(|error| refuse(&error))?;
        Ok(Some((Interpreter::in_folder(&unpacked.0, model)?, Some(unpacked))))
    }

    /// Removes what was unpacked, though models may not have let go of it: none runs any more.
    pub fn remove(&self) {
        let unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        unpacked.values().filter_map(Weak::upgrade).for_each(|unpacked| unpacked.remove());
    }

    /// Unpacks an archive, once for all models that use it at the same time.
    fn unpack(&self, archive: &Path) -> io::Result<Arc<Unpacked>> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = unpacked.get(archive).and_then(Weak::upgrade) {
            return Ok(folder);
        }
        let folder = new_folder()?;
        let keeper = Arc::new(Unpacked(folder.clone()));
        let output = Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(&folder)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("tar: {}", reason.trim_end())));
        }
        unpacked.insert(archive.to_owned(), Arc::downgrade(&keeper));
        Ok(keeper)
    }
}

/// A new folder that only this user can look into.
fn new_folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let name = format!("nereid-python-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = env::temp_dir().join(name);
    fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ModelParameter;

    fn config(value: &str) -> ModelConfig {
        let parameter = ModelParameter { string_value: value.to_owned() };
        ModelConfig {
            name: "m".to_owned(),
            parameters: [(PARAMETER.to_owned(), parameter)].into(),
            ..ModelConfig::default()
        }
    }

    fn environment(folder: &Path) {
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/python3"), "").unwrap();
    }

    #[test]
    fn a_folder_is_an_environment_if_it_has_an_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let found = |value: &str| Environments::default().of_model(&config(value), dir.path());
        environment(&dir.path().join("env"));
        for value in ["$$TRITON_MODEL_DIRECTORY/env", dir.path().join("env").to_str().unwrap()] {
            let (interpreter, unpacked) = found(value).unwrap().unwrap();
            let expected = dir.path().canonicalize().unwrap().join("env/bin/python3");
            assert_eq!(interpreter.path, expected);
            assert!(unpacked.is_none());
        }
        let none = found("$$TRITON_MODEL_DIRECTORY").unwrap_err().0;
        assert!(none.contains("neither bin/python3 nor bin/python"), "{none}");
        let absent = found("/nowhere").unwrap_err().0;
        assert!(absent.contains("'/nowhere'"), "{absent}");
        assert!(
            Environments::default()
                .of_model(&ModelConfig::default(), dir.path())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_packed_environment_is_unpacked_once_and_removed_after_its_last_use() {
        let dir = tempfile::tempdir().unwrap();
        environment(dir.path());
        let archive = dir.path().join("env.tar.gz");
        let packed = Command::new("tar")
            .args(["--create", "--gzip", "--file", "env.tar.gz", "bin"])
            .current_dir(dir.path())
            .status();
        assert!(packed.unwrap().success());
        let environments = Environments::default();
        let config = config(archive.to_str().unwrap());
        let (first, keeper) = environments.of_model(&config, dir.path()).unwrap().unwrap();
        let (second, again) = environments.of_model(&config, dir.path()).unwrap().unwrap();
        assert_eq!(first, second);
        assert!(first.path.is_file());
        drop((keeper, again));
        assert!(!first.path.exists());
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("env.tar.gz"), "nothing").unwrap();
        let config = config("$$TRITON_MODEL_DIRECTORY/env.tar.gz");
        let refused = Environments::default().of_model(&config, dir.path()).err().unwrap().0;
        assert!(refused.contains("tar: "), "{refused}");
    }
}
