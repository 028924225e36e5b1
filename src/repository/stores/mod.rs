//! Model repositories in object stores: S3 and what speaks like it, Google Cloud Storage, Azure Blob
//! Storage.
//!
//! A [`Store`] is one URL of `--model-repository`. It lists the models there and brings one into a folder
//! on this machine ([`mirror`]), from which it is then loaded as any other. [`location`] reads URLs,
//! [`credentials`] finds out as whom to ask, [`client`] makes the connection.
//!
//! It waits for the network on a thread of the runtime's, and blocks whoever asks, so it is nothing for
//! reactors.

mod client;
mod credentials;
mod location;
mod mirror;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStore, path::Path as Key};

pub(super) use self::location::Location;
use self::{location::StoreUrl, mirror::Mirror};
use super::{error::Error, fingerprint::Fingerprint};
use crate::runtime::wait_for_network;

/// The most objects that a model may have.
const OBJECTS_MAX: usize = 1 << 18;

/// A model repository in an object store.
pub(super) struct Store {
    url: StoreUrl,
    mirror: Mirror,
    /// Made when it is first needed, and again after a failure: credentials may have changed.
    client: Mutex<Option<Arc<dyn ObjectStore>>>,
}

/// An object of a model: where it lies in the model's folder, and what the store says of it.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    meta: ObjectMeta,
}

impl Store {
    fn new(url: StoreUrl) -> Result<Self, Error> {
        let mirror = Mirror::new(&url)?;
        Ok(Self { url, mirror, client: Mutex::default() })
    }

    /// As the operator wrote it.
    pub fn url(&self) -> &str {
        &self.url.text
    }

    /// Where a model of this name lies once it has been fetched.
    pub fn folder(&self, model: &str) -> PathBuf {
        self.mirror.folder(model)
    }

    /// The names of all models.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn models(&self) -> Result<Vec<String>, Error> {
        let root = self.url.root.clone();
        let listed =
            self.ask(
                None,
                move |client| async move { client.list_with_delimiter(Some(&root)).await },
            )?;
        let names: BTreeSet<String> = listed
            .common_prefixes
            .iter()
            .filter_map(|prefix| Some(prefix.filename()?.to_owned()))
            .filter(|name| !name.starts_with('.'))
            .collect();
        Ok(names.into_iter().collect())
    }

    /// Whether there is a model of this name.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn has_model(&self, model: &str) -> Result<bool, Error> {
        let prefix = self.prefix(model);
        let found = self.ask(Some(model), move |client| async move {
            client.list(Some(&prefix)).try_next().await
        })?;
        Ok(found.is_some())
    }

    /// What the store says of a model's objects: two that are equal mean that nothing was changed between.
    ///
    /// # Errors
    /// The store cannot be listed, or has objects that cannot be files.
    pub fn fingerprint(&self, model: &str) -> Result<Fingerprint, Error> {
        let objects = self.objects(model)?;
        Ok(Fingerprint::of_objects(objects.into_iter().map(|Found { path, meta }| (path, meta))))
    }

    /// Makes the model's folder what it is in the store. Objects that have not changed stay as they are.
    ///
    /// # Errors
    /// An object cannot be read or written down.
    pub fn fetch(&self, model: &str) -> Result<(), Error> {
        let objects = self.objects(model)?;
        self.mirror.update(model, objects, |object, part| {
            let key = object.meta.location.clone();
            self.ask(Some(key.clone().as_ref()), move |client| async move {
                client::download(&*client, &object.meta, &part).await
            })
        })
    }

    fn objects(&self, model: &str) -> Result<Vec<Found>, Error> {
        let prefix = self.prefix(model);
        let depth = prefix.parts().count();
        let listed = self.ask(Some(model), move |client| async move {
            let mut objects: Vec<ObjectMeta> = Vec::new();
            let mut stream = client.list(Some(&prefix));
            while let Some(object) = stream.try_next().await? {
                objects.push(object);
                if objects.len() > OBJECTS_MAX {
                    break;
                }
            }
            Ok(objects)
        })?;
        if listed.len() > OBJECTS_MAX {
            return Err(self.error(Some(model), format!("it has more than {OBJECTS_MAX} objects")));
        }
        let found = listed.into_iter().map(|meta| {
            let parts: Vec<_> = meta.location.parts().skip(depth).collect();
            let path: PathBuf = parts.iter().map(|part| part.as_ref()).collect();
            match parts.iter().all(|part| is_file_name(part.as_ref())) {
                true => Ok(Found { path, meta }),
                false => {
                    Err(self.error(Some(meta.location.as_ref()), "it cannot be a file's name"))
                }
            }
        });
        found.collect()
    }

    fn prefix(&self, model: &str) -> Key {
        self.url.root.clone().join(model)
    }

    /// Asks the store something about `object`, if about one, and waits for the answer.
    fn ask<T, F>(
        &self,
        object: Option<&str>,
        question: impl FnOnce(Arc<dyn ObjectStore>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send,
    {
        let client = self.client(object)?;
        let answer = wait_for_network(async move { question(client).await });
        let reason = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => client::describe(&error),
            Err(error) => error.to_string(),
        };
        *self.lock() = None;
        Err(self.error(object, reason))
    }

    fn client(&self, object: Option<&str>) -> Result<Arc<dyn ObjectStore>, Error> {
        let mut kept = self.lock();
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let made = client::make(&self.url).map_err(|reason| self.error(object, reason))?;
        Ok(kept.insert(made).clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn ObjectStore>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, object: Option<&str>, reason: impl ToString) -> Error {
        Error::Store {
            url: self.url.text.clone(),
            object: object.map(str::to_owned),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url.text).finish_non_exhaustive()
    }
}

/// Whether a part of an object's name can be that of a file.
fn is_file_name(part: &str) -> bool {
    let mut components = Path::new(part).components();
    let is_normal = matches!(components.next(), Some(std::path::Component::Normal(_)));
    is_normal && components.next().is_none() && !part.contains('\0')
}
