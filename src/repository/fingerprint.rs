use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use object_store::ObjectMeta;

use super::{
    error::Error,
    layout::{CONFIG_FILE, CONFIGS_FOLDER, describe},
};

/// The most files and folders that a model may have.
const ENTRIES_MAX: usize = 1 << 18;

/// What lies in a model's folder and when each of it was last changed: two that are equal mean that
/// nothing was changed between, files that are still being copied included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Stamp>);

/// What changes when a file does. The inode and the time of change tell of a file that was put in
/// the place of another of the same size and age.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stamp {
    /// A symbolic link that leads nowhere.
    Nowhere,
    Folder,
    File {
        inode: (u64, u64),
        bytes: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    Object {
        e_tag: Option<String>,
        bytes: u64,
        modified: i64,
    },
}

impl Fingerprint {
    /// Looks at everything in `dir`, through symbolic links.
    ///
    /// # Errors
    /// A folder that cannot be read, also because it is being changed, or too many files.
    pub fn of(dir: &Path) -> Result<Self, Error> {
        let mut stamps = BTreeMap::new();
        // Links can lead back to where they lie.
        let mut seen = HashSet::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let path = dir.join(&folder);
            let unreadable = |error: io::Error| Error::unreadable(&path, describe(&error));
            let metadata = fs::metadata(&path).map_err(unreadable)?;
            if !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            for found in fs::read_dir(&path).map_err(unreadable)? {
                let found = found.map_err(unreadable)?;
                let name = folder.join(found.file_name());
                let stamp = stamp(&found.path());
                if stamp == Stamp::Folder {
                    folders.push(name.clone());
                }
                stamps.insert(name, stamp);
                if stamps.len() > ENTRIES_MAX {
                    let reason = format!("it has more than {ENTRIES_MAX} files and folders");
                    return Err(Error::unreadable(dir, reason));
                }
            }
        }
        Ok(Self(stamps))
    }

    /// That of a model's objects in a store.
    pub(super) fn of_objects(objects: impl Iterator<Item = (PathBuf, ObjectMeta)>) -> Self {
        let stamped = objects.map(|(path, meta)| {
            let modified = meta.last_modified.timestamp_millis();
            (path, Stamp::Object { e_tag: meta.e_tag, bytes: meta.size, modified })
        });
        Self(stamped.collect())
    }

    /// Whether `version` may be served on as it was when `earlier` was taken: nothing of it was
    /// changed, and nothing that all versions share but the configuration, which is compared as such.
    pub fn has_same_version(&self, earlier: &Self, version: i64) -> bool {
        let part = |all: &Self| -> Vec<(PathBuf, Stamp)> {
            let belongs = |path: &Path| match path.iter().next().and_then(|first| first.to_str()) {
                Some(first) if first.parse::<i64>().is_ok() => first == version.to_string(),
                Some(CONFIG_FILE | CONFIGS_FOLDER) => false,
                _ => true,
            };
            all.0
                .iter()
                .filter(|(path, _)| belongs(path))
                .map(|(p, s)| (p.clone(), s.clone()))
                .collect()
        };
        part(self) == part(earlier)
    }
}

fn stamp(path: &Path) -> Stamp {
    match fs::metadata(path) {
        Err(_) => Stamp::Nowhere,
        Ok(metadata) if metadata.is_dir() => Stamp::Folder,
        Ok(metadata) => Stamp::File {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn model() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("model.onnx"), version).unwrap();
        }
        fs::write(dir.path().join("config.pbtxt"), "").unwrap();
        fs::write(dir.path().join("labels.txt"), "ant").unwrap();
        dir
    }

    /// The versions that are as they were, after a change.
    fn kept(change: impl Fn(&Path)) -> (bool, [bool; 2]) {
        let dir = model();
        let before = Fingerprint::of(dir.path()).unwrap();
        change(dir.path());
        let after = Fingerprint::of(dir.path()).unwrap();
        (before == after, [1, 2].map(|version| after.has_same_version(&before, version)))
    }

    #[test]
    fn every_change_is_seen_and_what_it_means_for_a_version() {
        assert_eq!(kept(|_| ()), (true, [true, true]));
        assert_eq!(
            kept(|dir| fs::write(dir.join("2/model.onnx"), "3").unwrap()),
            (false, [true, false])
        );
        assert_eq!(kept(|dir| fs::write(dir.join("2/more"), "").unwrap()), (false, [true, false]));
        assert_eq!(
            kept(|dir| fs::write(dir.join("labels.txt"), "bee").unwrap()),
            (false, [false, false])
        );
        assert_eq!(
            kept(|dir| fs::write(dir.join("config.pbtxt"), " ").unwrap()),
            (false, [true, true])
        );
        assert_eq!(kept(|dir| fs::create_dir(dir.join("3")).unwrap()), (false, [true, true]));
        assert_eq!(kept(|dir| fs::remove_dir_all(dir.join("1")).unwrap()), (false, [false, true]));
        // Another file of the same size and age.
        let replaced = |dir: &Path| {
            let modified = fs::metadata(dir.join("1/model.onnx")).unwrap().modified().unwrap();
            fs::write(dir.join("new"), "x").unwrap();
            fs::File::options()
                .write(true)
                .open(dir.join("new"))
                .unwrap()
                .set_modified(modified)
                .unwrap();
            fs::rename(dir.join("new"), dir.join("1/model.onnx")).unwrap();
        };
        assert_eq!(kept(replaced), (false, [false, true]));
    }

    #[test]
    fn links_may_lead_in_circles_and_nowhere() {
        let dir = model();
        symlink("..", dir.path().join("1/up")).unwrap();
        symlink("self", dir.path().join("self")).unwrap();
        let before = Fingerprint::of(dir.path()).unwrap();
        assert_eq!(before, Fingerprint::of(dir.path()).unwrap());
        assert!(Fingerprint::of(&dir.path().join("absent")).is_err());
    }
}
