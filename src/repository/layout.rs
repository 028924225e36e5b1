//! Folders and files of model repositories: which names are models, which are versions, and reading
//! small files without surprises.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    io::Read as _,
    path::{Component, Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use super::{
    error::Error,
    fingerprint::Fingerprint,
    options::Options,
    registered::Registered,
    stores::{Location, Store},
};

/// The name of a model's configuration file.
pub(super) const CONFIG_FILE: &str = "config.pbtxt";
/// The folder of configurations that `--model-config-name` chooses from.
pub(super) const CONFIGS_FOLDER: &str = "configs";
/// The folder of the files that warm-up requests take their inputs from.
pub(super) const WARMUP_FOLDER: &str = "warmup";
/// The folder of the files that sequences take their first state from.
pub(super) const INITIAL_STATE_FOLDER: &str = "initial_state";
/// Folders of a model that hold data, not versions.
const DATA_FOLDERS: [&str; 3] = [CONFIGS_FOLDER, WARMUP_FOLDER, INITIAL_STATE_FOLDER];
/// The largest configuration or label file that is read.
pub(super) const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Which model: its name, and the repository that it is in where names are not unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId {
    /// The name, which is that of the model's folder.
    pub name: String,
    /// The repository, with `--model-namespacing`; else empty.
    pub namespace: String,
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}::{}", self.name),
        }
    }
}

/// A model found in a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Which model.
    pub id: ModelId,
    /// Its folder; empty when several repositories have one. That of a model in an object store is what it
    /// was when it was [fetched](Repository::fetch) last.
    pub dir: PathBuf,
    /// Whether the name is another than its folder's, which the configuration may still have.
    pub renamed: bool,
    /// Why it cannot be read, if that is already clear.
    pub error: Option<Error>,
}

/// Folders of models, on this machine or in object stores.
#[derive(Debug)]
pub struct Repository {
    roots: Vec<Location>,
    registered: RwLock<Vec<Registered>>,
    namespacing: bool,
}

impl Repository {
    /// The models of all `roots`, of which one may be named twice. With `namespacing` each root is a namespace, so that several may
    /// have a model of the same name.
    ///
    /// # Errors
    /// A URL is malformed, or no folder can be made for what is fetched from it.
    pub fn new(roots: Vec<PathBuf>, namespacing: bool) -> Result<Self, Error> {
        let mut named = BTreeSet::new();
        let roots = roots.into_iter().filter(|root| named.insert(root.clone()));
        let roots = roots.map(Location::parse).collect::<Result<_, _>>()?;
        Ok(Self { roots, registered: RwLock::default(), namespacing })
    }

    /// Takes the models in that lie in the folder `at`, one of them under this name, and returns the folder
    /// that holds them.
    ///
    /// # Errors
    /// The folder cannot be read or does not say which model is meant; it or the name is taken already.
    pub fn register(&self, at: &Path, name: &str, options: &Options) -> Result<PathBuf, Error> {
        let new = Registered::at(at, name, options)?;
        let mut all = self.registered.write().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            |root: &Location| matches!(root, Location::Folder(known) if *known == new.root);
        if all.iter().any(|known| known.root == new.root) || self.roots.iter().any(is_known) {
            return Err(Error::RegisteredAlready { path: new.root });
        }
        if all.iter().any(|known| known.name == name) {
            return Err(Error::NameTaken { model: name.to_owned() });
        }
        let root = new.root.clone();
        all.push(new);
        Ok(root)
    }

    /// Forgets the folder that was registered for the model of this name.
    pub fn unregister(&self, name: &str) {
        let mut all = self.registered.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.name != name);
    }

    fn registered(&self) -> RwLockReadGuard<'_, Vec<Registered>> {
        self.registered.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All models, by name. A name that begins with a dot is not a model.
    ///
    /// # Errors
    /// A repository that cannot be listed; a model that cannot be read is an [`Entry`] with an
    /// error.
    pub fn scan(&self) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        for root in &self.roots {
            all.extend(self.models(root)?);
        }
        for registered in self.registered().iter() {
            // One whose folder has been removed keeps nobody from seeing the others.
            all.extend(self.models_of(registered).unwrap_or_default());
        }
        let mut entries: BTreeMap<ModelId, Entry> = BTreeMap::new();
        for entry in all {
            let duplicate = Entry {
                id: entry.id.clone(),
                dir: PathBuf::new(),
                renamed: false,
                error: Some(Error::NotUnique { model: entry.id.name.clone() }),
            };
            entries.entry(entry.id.clone()).and_modify(|known| *known = duplicate).or_insert(entry);
        }
        Ok(entries.into_values().collect())
    }

    /// The models that are called `name`: one, or with namespaces one of each repository that has it.
    ///
    /// # Errors
    /// The name is not a folder's name, or no repository has it, or without namespaces more than one.
    pub fn find(&self, name: &str) -> Result<Vec<Entry>, Error> {
        check_model_name(name)?;
        let mut found = Vec::new();
        for root in &self.roots {
            let id = ModelId { name: name.to_owned(), namespace: self.namespace(root) };
            found.extend(match root {
                Location::Folder(folder) => entry_at(folder.join(name), id),
                Location::Store(store) => store.has_model(name)?.then(|| Entry {
                    id,
                    dir: store.folder(name),
                    renamed: false,
                    error: None,
                }),
            });
        }
        for registered in self.registered().iter() {
            let namespace = self.namespace_of(&registered.root);
            found.extend(registered.find(ModelId { name: name.to_owned(), namespace }));
        }
        match found.len() {
            0 => Err(Error::UnknownModel { model: name.to_owned() }),
            2.. if !self.namespacing => Err(Error::NotUnique { model: name.to_owned() }),
            _ => Ok(found),
        }
    }

    /// Makes the folder of a model what it is in its object store, if it is in one.
    ///
    /// # Errors
    /// The store cannot be read, or the folder not be written.
    pub fn fetch(&self, entry: &Entry) -> Result<(), Error> {
        self.store_of(entry).map_or(Ok(()), |store| store.fetch(&entry.id.name))
    }

    /// How a model is where it comes from, without fetching it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn fingerprint(&self, entry: &Entry) -> Result<Fingerprint, Error> {
        match self.store_of(entry) {
            Some(store) => store.fingerprint(&entry.id.name),
            None => Fingerprint::of(&entry.dir),
        }
    }

    fn store_of(&self, entry: &Entry) -> Option<&Store> {
        self.roots.iter().find_map(|root| match root {
            Location::Store(store) if store.folder(&entry.id.name) == entry.dir => Some(store),
            _ => None,
        })
    }

    /// The models of one root, in any order.
    fn models(&self, root: &Location) -> Result<Vec<Entry>, Error> {
        let namespace = self.namespace(root);
        let folder = match root {
            Location::Folder(folder) => folder,
            Location::Store(store) => {
                let entry = |name: String| Entry {
                    dir: store.folder(&name),
                    id: ModelId { name, namespace: namespace.clone() },
                    renamed: false,
                    error: None,
                };
                return Ok(store.models()?.into_iter().map(entry).collect());
            }
        };
        models_in(folder, &namespace)
    }

    /// The models of a registered folder: all that are in it, one of them under another name.
    fn models_of(&self, registered: &Registered) -> Result<Vec<Entry>, Error> {
        let namespace = self.namespace_of(&registered.root);
        let mut entries = models_in(&registered.root, &namespace)?;
        entries.retain(|entry| entry.dir != registered.folder);
        entries.extend(registered.find(ModelId { name: registered.name.clone(), namespace }));
        Ok(entries)
    }

    fn namespace(&self, root: &Location) -> String {
        match root {
            Location::Folder(folder) => self.namespace_of(folder),
            Location::Store(_) if !self.namespacing => String::new(),
            Location::Store(store) => store.url().to_owned(),
        }
    }

    fn namespace_of(&self, folder: &Path) -> String {
        if self.namespacing { folder.to_string_lossy().into_owned() } else { String::new() }
    }
}

/// The models of a folder, in any order.
fn models_in(folder: &Path, namespace: &str) -> Result<Vec<Entry>, Error> {
    let unreadable = |error| Error::unreadable(folder, describe(&error));
    let mut entries = Vec::new();
    for found in fs::read_dir(folder).map_err(unreadable)? {
        entries.extend(model_entry(&found.map_err(unreadable)?, namespace.to_owned()));
    }
    Ok(entries)
}

fn model_entry(found: &fs::DirEntry, namespace: String) -> Option<Entry> {
    let file_name = found.file_name();
    let name = file_name.to_string_lossy().into_owned();
    let mut entry = entry_at(found.path(), ModelId { name, namespace })?;
    if entry.error.is_none() && file_name.to_str().is_none() {
        entry.error = Some(Error::BadModelName { name: entry.id.name.clone() });
    }
    Some(entry)
}

/// The model in `dir`, if that is a folder or cannot be looked at.
pub(super) fn entry_at(dir: PathBuf, id: ModelId) -> Option<Entry> {
    if id.name.starts_with('.') {
        return None;
    }
    let error = match fs::metadata(&dir) {
        Ok(metadata) if !metadata.is_dir() => return None,
        Ok(_) => None,
        Err(_) if fs::symlink_metadata(&dir).is_err() => return None,
        Err(error) => Some(Error::unreadable(&dir, describe(&error))),
    };
    Some(Entry { id, dir, renamed: false, error })
}

/// Checks that `name` can be the name of a model.
///
/// # Errors
/// It is not one component of a path.
pub fn check_model_name(name: &str) -> Result<(), Error> {
    match is_model_name(name) {
        true => Ok(()),
        false => Err(Error::BadModelName { name: name.to_owned() }),
    }
}

/// Whether `name` can be the name of a model: one component of a path.
pub(super) fn is_model_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Whether `path` stays inside the folder that it is relative to.
pub(super) fn stays_inside(path: &str) -> bool {
    !path.contains('\0')
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The configuration file of a model: `configs/<name>.pbtxt` if it is there, else `config.pbtxt`.
pub(super) fn config_path(model_dir: &Path, config_name: Option<&str>) -> PathBuf {
    let chosen = config_name
        .filter(|name| is_model_name(name))
        .map(|name| model_dir.join(CONFIGS_FOLDER).join(format!("{name}.pbtxt")))
        .filter(|path| path.exists());
    chosen.unwrap_or_else(|| model_dir.join(CONFIG_FILE))
}

/// The versions in a model's folder.
#[derive(Debug, Default, PartialEq)]
pub(super) struct VersionFolders {
    /// In ascending order.
    pub versions: Vec<i64>,
    /// Names of folders that look like versions and are none.
    pub ignored: Vec<String>,
}

/// The folders of `model_dir` whose name is a version: a positive number without leading zeros.
///
/// `0` is none, as Triton documents; its server would serve it, though no request could name it.
pub(super) fn version_folders(model_dir: &Path) -> Result<VersionFolders, Error> {
    let unreadable = |error| Error::unreadable(model_dir, describe(&error));
    let mut folders = VersionFolders::default();
    for found in fs::read_dir(model_dir).map_err(unreadable)? {
        let found = found.map_err(unreadable)?;
        let file_name = found.file_name();
        let name = file_name.to_string_lossy();
        if name.starts_with('.') || DATA_FOLDERS.contains(&name.as_ref()) || !found.path().is_dir()
        {
            continue;
        }
        let is_version = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
        match name.parse() {
            Ok(version) if is_version => folders.versions.push(version),
            _ => folders.ignored.push(name.into_owned()),
        }
    }
    folders.versions.sort_unstable();
    folders.ignored.sort_unstable();
    Ok(folders)
}

/// The text of a regular file of at most [`TEXT_BYTES_MAX`] bytes of UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    let unreadable = |error: io::Error| Error::unreadable(path, describe(&error));
    // Asked before opening, because opening a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Error::unreadable(path, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Error::unreadable(path, format!("it is larger than {TEXT_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::unreadable(path, format!("it is not UTF-8: invalid byte at offset {at}"))
    })
}

/// The system's words for an error, without its number.
pub(super) fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP) => "symbolic links form a cycle".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}
