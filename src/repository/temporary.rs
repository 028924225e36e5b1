//! Folders of the server's own, among the system's temporary ones.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{error::Error, layout::describe};

/// Names tried for a folder before giving up.
const TRIES: usize = 16;

/// A folder that is in no repository, readable by this user only. It is gone when this is dropped.
#[derive(Debug)]
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn create() -> Result<Self, Error> {
        Self::create_in(&std::env::temp_dir())
    }

    fn create_in(parent: &Path) -> Result<Self, Error> {
        let mut failure = None;
        for _ in 0..TRIES {
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

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove the folder '{}': {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
}
