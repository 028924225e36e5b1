//! What was fetched from a store, as folders of this machine.
//!
//! Below a folder of the URL's own lie `models/NAME/…`, and beside it `manifests/NAME.json`, which says of
//! each file which object it is and its SHA-256. What is there from an earlier run is used again where both
//! agree. Without a folder that outlives the server, it is a temporary one.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Found,
    location::{Service, StoreUrl},
};
use crate::repository::{
    digest::{hex, of_file},
    error::Error,
    layout::describe,
    temporary::TemporaryFolder,
};

pub(super) struct Mirror {
    folder: PathBuf,
    /// Removes it in the end, if it is not to stay.
    _temporary: Option<TemporaryFolder>,
    /// Models whose files are known to be what their manifests say.
    verified: Mutex<BTreeSet<String>>,
}

/// What the files of a model are, by their path in the model's folder.
type Manifest = BTreeMap<PathBuf, Record>;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Record {
    e_tag: Option<String>,
    modified: i64,
    size: u64,
    sha256: String,
}

impl Mirror {
    /// # Errors
    /// The folder cannot be had.
    pub fn new(url: &StoreUrl) -> Result<Self, Error> {
        let variable = match url.service {
            Service::S3 { .. } => "TRITON_AWS_MOUNT_DIRECTORY",
            Service::Google { .. } => "TRITON_GCS_MOUNT_DIRECTORY",
            Service::Azure { .. } => "TRITON_AZURE_MOUNT_DIRECTORY",
        };
        Self::within(env::var_os(variable).filter(|it| !it.is_empty()), url)
    }

    fn within(parent: Option<OsString>, url: &StoreUrl) -> Result<Self, Error> {
        let (folder, temporary) = match parent {
            Some(parent) => {
                let name = hex(&Sha256::digest(&url.text))[..16].to_owned();
                (PathBuf::from(parent).join(name), None)
            }
            None => {
                let folder = TemporaryFolder::create()?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| Error::unreadable(&folder, describe(&error)))?;
        Ok(Self { folder, _temporary: temporary, verified: Mutex::default() })
    }

    /// Where a model lies.
    pub fn folder(&self, model: &str) -> PathBuf {
        self.folder.join("models").join(model)
    }

    /// Makes the folder of `model` what `objects` are. `download` writes one into the file that it is given
    /// and returns its SHA-256.
    pub fn update(
        &self,
        model: &str,
        objects: Vec<Found>,
        download: impl Fn(Found, PathBuf) -> Result<[u8; 32], Error>,
    ) -> Result<(), Error> {
        let folder = self.folder(model);
        let before = self.verified_manifest(model, &folder);
        let unwritable = |path: &Path, error: io::Error| Error::unreadable(path, describe(&error));
        fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, error))?;
        let mut manifest = Manifest::new();
        let mut folders = BTreeSet::new();
        for object in objects {
            if is_folder(&object) {
                folders.insert(object.path);
                continue;
            }
            let path = object.path.clone();
            let known = before.get(&path).filter(|record| record.is(&object));
            let record = match known {
                Some(record) => record.clone(),
                None => {
                    let part = self.folder.join(format!("part-{:016x}", fastrand::u64(..)));
                    let mut record = Record::of(&object);
                    let fetched = download(object, part.clone()).and_then(|sum| {
                        record.sha256 = hex(&sum);
                        place(&part, &folder.join(&path)).map_err(|e| unwritable(&path, e))
                    });
                    if let Err(error) = fetched {
                        // What was written of it, if anything was.
                        let _ = fs::remove_file(&part);
                        return Err(error);
                    }
                    record
                }
            };
            manifest.insert(path, record);
        }
        for path in before.keys().filter(|path| !manifest.contains_key(*path)) {
            // It may have given way to a folder.
            let _ = fs::remove_file(folder.join(path));
        }
        let ancestors = manifest.keys().flat_map(|path| path.ancestors().skip(1));
        folders.extend(ancestors.map(Path::to_owned).collect::<Vec<_>>());
        for path in &folders {
            let path = folder.join(path);
            fs::create_dir_all(&path).map_err(|error| unwritable(&path, error))?;
        }
        remove_other_folders(&folder, Path::new(""), &folders);
        self.write_manifest(model, &manifest)
    }

    /// What is known of the files of a model that are there.
    fn verified_manifest(&self, model: &str, folder: &Path) -> Manifest {
        let read = fs::read(self.manifest_path(model));
        let mut manifest: Manifest =
            read.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        match verified.insert(model.to_owned()) {
            // Files may have been changed since an earlier run.
            true => manifest.retain(|path, record| {
                of_file::<Sha256>(&folder.join(path)).is_ok_and(|sum| sum == record.sha256)
            }),
            false => manifest.retain(|path, _| folder.join(path).is_file()),
        }
        manifest
    }

    fn write_manifest(&self, model: &str, manifest: &Manifest) -> Result<(), Error> {
        let path = self.manifest_path(model);
        let part = path.with_extension("part");
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&part, serde_json::to_vec(manifest)?))
            .and_then(|()| fs::rename(&part, &path));
        written.map_err(|error| Error::unreadable(&path, describe(&error)))
    }

    fn manifest_path(&self, model: &str) -> PathBuf {
        self.folder.join("manifests").join(format!("{model}.json"))
    }
}

impl Record {
    fn of(object: &Found) -> Self {
        Self {
            e_tag: object.meta.e_tag.clone(),
            modified: object.meta.last_modified.timestamp_millis(),
            size: object.meta.size,
            sha256: String::new(),
        }
    }

    fn is(&self, object: &Found) -> bool {
        Self { sha256: self.sha256.clone(), ..Self::of(object) } == *self
    }
}

/// Stores have no empty folders; tools leave an empty object for one. An empty version, as models without
/// files have it, is one.
fn is_folder(object: &Found) -> bool {
    let name = object.path.to_str().unwrap_or_default();
    object.meta.size == 0 && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
        || object.path.as_os_str().is_empty()
}

/// Moves a file to where it belongs, which may have been a folder.
fn place(part: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        if parent.is_file() {
            fs::remove_file(parent)?;
        }
        fs::create_dir_all(parent)?;
    }
    if to.is_dir() {
        fs::remove_dir_all(to)?;
    }
    fs::rename(part, to)
}

/// Removes the folders below `below` that are not in `wanted`. What cannot be removed stays.
fn remove_other_folders(root: &Path, below: &Path, wanted: &BTreeSet<PathBuf>) {
    for found in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
        let path = below.join(found.file_name());
        if !found.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if wanted.iter().any(|kept| kept.starts_with(&path)) {
            remove_other_folders(root, &path, wanted);
        } else if let Err(error) = fs::remove_dir_all(root.join(&path)) {
            log::warn!("cannot remove '{}': {error}", root.join(&path).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use object_store::{ObjectMeta, path::Path as Key};

    use super::*;

    fn mirror(parent: &Path) -> Mirror {
        let url = StoreUrl::parse("s3://bucket/models").unwrap().unwrap();
        Mirror::within(Some(parent.as_os_str().to_owned()), &url).unwrap()
    }

    /// Makes the model what `objects` are, each with its content, and returns what was downloaded.
    fn update(mirror: &Mirror, objects: &[(&str, &str)]) -> Vec<PathBuf> {
        let listed = objects.iter().map(|(path, content)| Found {
            path: path.into(),
            meta: ObjectMeta {
                location: Key::from(*path),
                last_modified: Default::default(),
                size: content.len() as u64,
                e_tag: Some(hex(&Sha256::digest(content))),
                version: None,
            },
        });
        let downloaded = RefCell::new(Vec::new());
        let download = |object: Found, part: PathBuf| {
            let (_, content) =
                objects.iter().find(|(path, _)| Path::new(path) == object.path).unwrap();
            fs::write(part, content).unwrap();
            downloaded.borrow_mut().push(object.path);
            Ok(Sha256::digest(content).into())
        };
        mirror.update("m", listed.collect(), download).unwrap();
        downloaded.into_inner()
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                match path.is_dir() {
                    true => {
                        found.push(format!("{name}/"));
                        folders.push(path);
                    }
                    false => found.push(format!("{name}={}", fs::read_to_string(path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn only_what_has_changed_is_fetched() {
        let parent = tempfile::tempdir().unwrap();
        let mirror = mirror(parent.path());
        let folder = mirror.folder("m");
        let first = [("config.pbtxt", "c"), ("1/model", "one"), ("2", ""), ("1/x/y", "deep")];
        assert_eq!(update(&mirror, &first).len(), 3);
        let listing = ["1/", "1/model=one", "1/x/", "1/x/y=deep", "2/", "config.pbtxt=c"];
        assert_eq!(files(&folder), listing);
        assert!(update(&mirror, &first).is_empty());
        let second = [("config.pbtxt", "c"), ("1/model", "two"), ("3/model", "three")];
        assert_eq!(update(&mirror, &second), ["1/model", "3/model"].map(PathBuf::from));
        assert_eq!(files(&folder), ["1/", "1/model=two", "3/", "3/model=three", "config.pbtxt=c"]);
        // A file becomes a folder, and a folder a file.
        update(&mirror, &[("config.pbtxt/x", "c"), ("1", "file")]);
        assert_eq!(files(&folder), ["1=file", "config.pbtxt/", "config.pbtxt/x=c"]);
    }

    #[test]
    fn what_an_earlier_run_left_is_checked_before_it_is_used() {
        let parent = tempfile::tempdir().unwrap();
        let objects = [("config.pbtxt", "c"), ("1/model", "one")];
        let path = mirror(parent.path()).folder("m").join("1/model");
        update(&mirror(parent.path()), &objects);
        assert!(update(&mirror(parent.path()), &objects).is_empty());
        fs::write(&path, "changed").unwrap();
        assert_eq!(update(&mirror(parent.path()), &objects), [PathBuf::from("1/model")]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }

    #[test]
    fn a_temporary_folder_goes_with_the_store() {
        let url = StoreUrl::parse("gs://bucket").unwrap().unwrap();
        let mirror = Mirror::within(None, &url).unwrap();
        update(&mirror, &[("1/model", "one")]);
        let folder = mirror.folder("m");
        assert!(folder.is_dir());
        drop(mirror);
        assert!(!folder.exists());
    }
}
