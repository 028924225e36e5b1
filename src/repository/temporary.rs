//! Folders of the server's own, among the system's temporary ones.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use super::{error::Error, layout::describe};

/// Names tried for a folder before giving up.
const TRIES: usize = 16;
const PREFIX: &str = "nereid-model-";
/// A folder that is not locked may be one that its owner has made just now.
const SETTLED: Duration = Duration::from_secs(60);

/// A folder that is in no repository, readable by this user only. It is gone when this is dropped; one of a
/// server that was killed goes when the next one makes its first.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    /// Locked as long as its owner lives.
    _lock: File,
}

impl TemporaryFolder {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn create() -> Result<Self, Error> {
        static SWEEP: Once = Once::new();
        let parent = std::env::temp_dir();
        SWEEP.call_once(|| sweep(&parent));
        Self::create_in(&parent)
    }

    fn create_in(parent: &Path) -> Result<Self, Error> {
        let mut failure = None;
        for _ in 0..TRIES {
            let path = parent.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            match made.and_then(|()| locked(&path)) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
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
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove the folder '{}': {error}", self.path.display());
        }
    }
}

fn locked(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder)?;
    lock.try_lock()?;
    Ok(lock)
}

/// Removes the folders in `parent` whose owners are gone. Those of other users cannot be opened.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let folders = entries.flatten().filter(|entry| {
        let is_settled = entry.metadata().is_ok_and(|it| {
            it.is_dir() && it.modified().is_ok_and(|it| it.elapsed().is_ok_and(|it| it > SETTLED))
        });
        is_settled && entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX))
    });
    for path in folders.map(|entry| entry.path()) {
        let Ok(_lock) = locked(&path) else { continue };
        match fs::remove_dir_all(&path) {
            Ok(()) => log::info!("removed '{}', which a server had left behind", path.display()),
            Err(error) => log::warn!("cannot remove the folder '{}': {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

    use super::*;

    #[test]
    fn it_is_private_and_goes_with_its_owner() {
        let folder = TemporaryFolder::create().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("x"), "y").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.exists());
        assert!(TemporaryFolder::create_in(Path::new("/no/such/folder")).is_err());
    }
    #[test]
    fn what_a_killed_server_left_goes_and_what_lives_stays() {
        let parent = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("model.onnx"), "x").unwrap();
            path
        };
        let age = |path: &Path| {
            let long_ago = SystemTime::now() - 2 * SETTLED;
            File::open(path).unwrap().set_modified(long_ago).unwrap();
        };
        let alive = TemporaryFolder::create_in(parent.path()).unwrap();
        let [left, fresh, foreign] = ["nereid-model-left", "nereid-model-fresh", "other"].map(made);
        for path in [alive.path(), &left, &foreign] {
            age(path);
        }
        sweep(parent.path());
        let is_there = [alive.path(), &left, &fresh, &foreign].map(Path::exists);
        assert_eq!(is_there, [true, false, true, true]);
    }
}
