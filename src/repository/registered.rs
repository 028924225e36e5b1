//! Folders of models that come in while the server runs, each for the sake of one model, which has a name
//! there that its folder has not.

use std::{
    ffi::OsStr,
    fs,
    path::{Component, Path, PathBuf},
};

use super::{
    draft::Written,
    error::Error,
    layout::{self, Entry, ModelId},
    options::Options,
};

/// Folders of the system, in which no model lies.
const FORBIDDEN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// A registered folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    /// The folder that holds those of models.
    pub root: PathBuf,
    /// The folder in it of the model that it is for.
    pub folder: PathBuf,
    /// What that model is called.
    pub name: String,
}

impl Registered {
    /// What `at` holds, for a model that is to be called `name`: it is the model's own folder, or has that
    /// of the model alone, or those of an ensemble, which is meant then, and its models.
    ///
    /// # Errors
    /// It is not there, or does not say which model is meant; the name is none.
    pub fn at(at: &Path, name: &str, options: &Options) -> Result<Self, Error> {
        layout::check_model_name(name)?;
        let refused =
            |reason: &str| Error::NotRegistrable { path: at.to_owned(), reason: reason.to_owned() };
        let stays =
            at.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !at.is_absolute() || !stays {
            return Err(refused("expected an absolute path without '..'"));
        }
        let unreadable = |error| Error::unreadable(at, layout::describe(&error));
        // Links are followed first, for they may lead there.
        let at = &fs::canonicalize(at).map_err(unreadable)?;
        if FORBIDDEN.iter().any(|folder| at.starts_with(folder)) {
            return Err(refused("no models lie in folders of the system"));
        }
        let name = name.to_owned();
        if layout::config_path(at, options.config_name.as_deref()).exists() {
            let (Some(root), true) = (at.parent(), at.file_name().is_some()) else {
                return Err(refused("expected a folder inside another"));
            };
            return Ok(Self { root: root.to_owned(), folder: at.clone(), name });
        }
        let mut folders = Vec::new();
        for found in fs::read_dir(at).map_err(unreadable)? {
            let path = found.map_err(unreadable)?.path();
            let is_hidden =
                path.file_name().map(OsStr::as_encoded_bytes).is_none_or(|it| it.starts_with(b"."));
            if path.is_dir() && !is_hidden {
                folders.push(path);
            }
        }
        if let [_, _, ..] = folders[..] {
            folders
                .retain(|folder| Written::read(folder, options).is_ok_and(|it| it.is_ensemble()));
        }
        match <[PathBuf; 1]>::try_from(folders) {
            Ok([folder]) => Ok(Self { root: at.clone(), folder, name }),
            Err(_) => {
                Err(refused("expected the folder of one model, or of one ensemble and its models"))
            }
        }
    }

    /// The model that is called `id` here, if there is one.
    pub fn find(&self, id: ModelId) -> Option<Entry> {
        if id.name == self.name {
            return Some(Entry { renamed: true, ..layout::entry_at(self.folder.clone(), id)? });
        }
        // The folder of the model that has another name has that one alone.
        let dir = self.root.join(&id.name);
        if dir == self.folder { None } else { layout::entry_at(dir, id) }
    }
}
