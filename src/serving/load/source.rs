use std::{cell::RefCell, path::PathBuf, sync::Arc};

use crate::{
    proto::ModelConfig,
    repository::{self, Entry, Fingerprint, ModelId, Options, TemporaryFolder, Written},
};

/// Where a model is loaded from.
#[derive(Debug)]
pub struct Source {
    /// Which model.
    pub id: ModelId,
    /// Its folder.
    pub dir: PathBuf,
    /// Whether the folder's name is not the model's.
    pub renamed: bool,
    /// The configuration that takes the place of the folder's.
    pub config: Option<ModelConfig>,
    /// The folder, when it is not in a repository.
    pub folder: Option<Arc<TemporaryFolder>>,
    /// The folder's configuration, when it was read ahead, and how the folder was before that.
    read: RefCell<Option<(Fingerprint, Written)>>,
}

impl Source {
    /// The model `id` in a folder that is in no repository.
    pub fn temporary(id: ModelId, folder: TemporaryFolder, config: Option<ModelConfig>) -> Self {
        let dir = folder.path().to_owned();
        let folder = Some(Arc::new(folder));
        Self { id, dir, renamed: false, config, folder, read: RefCell::default() }
    }

    /// The same, with a configuration that takes the place of the folder's if there is one.
    pub fn with(self, config: Option<ModelConfig>) -> Self {
        Self { config, ..self }
    }

    /// What tells whether the folder has changed since it was read.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn fingerprint(&self) -> Result<Fingerprint, repository::Error> {
        match &*self.read.borrow() {
            Some((fingerprint, _)) => Ok(fingerprint.clone()),
            None => Fingerprint::of(&self.dir),
        }
    }

    /// The configuration as somebody wrote it.
    pub(super) fn written(&self, options: &Options) -> Result<Written, repository::Error> {
        match (&self.config, self.read.take()) {
            (Some(config), _) => Ok(config.clone().into()),
            (None, Some((_, written))) => Ok(written),
            (None, None) => Written::read(&self.dir, options),
        }
    }

    /// The same, if it is that of an ensemble; what is read is kept.
    pub(super) fn written_ensemble(&self, options: &Options) -> Option<Written> {
        if let Some(config) = &self.config {
            return Some(Written::from(config.clone())).filter(Written::is_ensemble);
        }
        let mut read = self.read.borrow_mut();
        if read.is_none() {
            let fingerprint = Fingerprint::of(&self.dir).ok()?;
            *read = Some((fingerprint, Written::read(&self.dir, options).ok()?));
        }
        read.as_ref().map(|(_, written)| written).filter(|it| it.is_ensemble()).cloned()
    }
}

impl From<Entry> for Source {
    /// A model of a repository that can be read.
    fn from(Entry { id, dir, renamed, .. }: Entry) -> Self {
        Self { id, dir, renamed, config: None, folder: None, read: RefCell::default() }
    }
}
