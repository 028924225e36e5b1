use std::{
    fs, io,
    path::{Component, Path},
};

use bytes::Bytes;

use super::{error::Error, json, layout::describe, temporary::TemporaryFolder};
use crate::proto::ModelConfig;

/// The most bytes that the path of a file may have.
const PATH_BYTES_MAX: usize = 1024;

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

    /// Writes the files into a folder of their own.
    ///
    /// # Errors
    /// The system does not allow it, or two paths do not go together.
    pub fn write(&self) -> Result<TemporaryFolder, Error> {
        let folder = TemporaryFolder::create()?;
        for (name, content) in &self.files {
            check_path(name)?;
            let path = folder.path().join(name);
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
        let folder = overrides(&["1/model.onnx", "1/data/a", "b"]).write().unwrap();
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
            assert!(overrides(&[path]).write().is_err(), "{path:?}");
        }
    }

    #[test]
    fn files_need_a_configuration_and_cannot_be_folders() {
        let mut without = overrides(&["1/model.onnx"]);
        without.config = None;
        assert_eq!(without.config(), Err(Error::OverrideWithoutConfig));
        assert_eq!(Overrides::default().config(), Ok(None));
        assert!(overrides(&["1", "1/x"]).write().is_err());
        assert!(overrides(&["1/x", "1/x"]).write().is_err());
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
