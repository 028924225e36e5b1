use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;

use super::{error::Error, json, layout::describe};
use crate::proto::ModelConfig;

/// The most bytes that the path of a file may have.
const PATH_BYTES_MAX: usize = 1024;
/// Names tried for a folder before giving up.
const FOLDER_TRIES: usize = 16;

/// What a load request gives in place of what is in the repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// A configuration as JSON.
    pub config: Option<String>,
    /// Files by their path in the model's folder, such as `1/model.onnx`. If there are any, they are
    /// the whole model.
    pub files: Vec<(String, Bytes)>,
}

impl Overrides {
    /// How much memory they take.
    pub fn bytes(&self) -> usize {
        let files = self.files.iter().map(|(path, content)| path.len() + content.len());
        files.sum::<usize>() + self.config.as_ref().map_or(0, String::len)
    }

    /// The configuration, if there is one.
    ///
    /// # Errors
    /// It is not a configuration, or there are files without one, or a file's path leads out of the
    /// model's folder.
    pub fn config(&self) -> Result<Option<ModelConfig>, Error> {
        for (path, _) in &self.files {
            check_path(path)?;
        }
        match &self.config {
            Some(config) => json::from_json(config).map(Some),
            None if self.files.is_empty() => Ok(None),
            None => Err(Error::OverrideWithoutConfig),
        }
    }
}

/// Only names: no path that is absolute, leads up, or means a folder.
fn check_path(path: &str) -> Result<(), Error> {
    let refused =
        |message| Err(Error::BadOverride { name: path.escape_default().to_string(), message });
    if path.is_empty() {
        return refused("a model file override has no path");
    }
    if path.len() > PATH_BYTES_MAX {
        return refused("the path of a model file override is longer than 1024 bytes");
    }
    let only_names = path
        .split('/')
        .all(|part| matches!(Path::new(part).components().next(), Some(Component::Normal(_))));
    if !only_names || path.contains('\0') {
        return refused(
            "the path of a model file override must stay in the model's folder, without '.', '..', \
             empty parts or NUL",
        );
    }
    Ok(())
}

/// A model's folder that is not in any repository, readable by this user only. It is gone when this
/// is dropped.
#[derive(Debug)]
pub struct OverrideFolder(PathBuf);

impl OverrideFolder {
    /// Writes the files of `overrides` into a new folder among the system's temporary ones.
    ///
    /// # Errors
    /// The system does not allow it, or two paths do not go together.
    pub fn write(overrides: &Overrides) -> Result<Self, Error> {
        let folder = Self::create(&std::env::temp_dir())?;
        for (name, content) in &overrides.files {
            check_path(name)?;
            let path = folder.0.join(name);
            let written = path
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                // Never over another: `a` and `A` are one file on some file systems.
                .and_then(|()| fs::File::create_new(&path))
                .and_then(|mut file| io::Write::write_all(&mut file, content));
            written.map_err(|error| Error::unreadable(&path, describe(&error)))?;
        }
        Ok(folder)
    }

    fn create(parent: &Path) -> Result<Self, Error> {
        let mut failure = None;
        for _ in 0..FOLDER_TRIES {
            let path = parent.join(format!("nereid-model-{:016x}", fastrand::u64(..)));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) => failure = Some((path, error)),
            }
        }
        Err(match failure {
            Some((path, error)) => Error::unreadable(path, describe(&error)),
            None => Error::unreadable(parent, "no folder could be made in it"),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OverrideFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove the folder '{}': {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overrides(paths: &[&str]) -> Overrides {
        let files = paths.iter().map(|path| (path.to_string(), Bytes::from_static(b"x"))).collect();
        Overrides { config: Some(r#"{"backend":"identity"}"#.to_owned()), files }
    }

    #[test]
    fn the_files_are_there_until_the_folder_is_dropped() {
        let folder = OverrideFolder::write(&overrides(&["1/model.onnx", "1/data/a", "b"])).unwrap();
        let path = folder.path().to_owned();
        assert_eq!(fs::read(path.join("1/model.onnx")).unwrap(), b"x");
        assert_eq!(fs::read(path.join("1/data/a")).unwrap(), b"x");
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_leaves_the_folder_is_refused() {
        let long = "a/".repeat(600) + "b";
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "1/../../x",
            "1/..",
            ".",
            "1/./x",
            "1//x",
            "1/",
            "1/x\0y",
            &long,
        ] {
            let error = overrides(&[path]).config().unwrap_err();
            assert!(matches!(error, Error::BadOverride { .. }), "{path:?}: {error}");
            assert!(OverrideFolder::write(&overrides(&[path])).is_err(), "{path:?}");
        }
    }

    #[test]
    fn files_need_a_configuration_and_cannot_be_folders() {
        let mut without = overrides(&["1/model.onnx"]);
        without.config = None;
        assert_eq!(without.config(), Err(Error::OverrideWithoutConfig));
        assert_eq!(Overrides::default().config(), Ok(None));
        assert!(OverrideFolder::write(&overrides(&["1", "1/x"])).is_err());
        assert!(OverrideFolder::write(&overrides(&["1/x", "1/x"])).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_inside(path in "[a./\\x00\\\\]{0,8}") {
            if check_path(&path).is_ok() {
                let joined = Path::new("/model").join(&path);
                prop_assert!(joined.components().all(|part| part != Component::ParentDir));
                prop_assert!(joined.starts_with("/model") && joined != Path::new("/model"));
            }
        }
    }
}
