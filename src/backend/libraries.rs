//! What back ends share that open libraries at run time: the loader's words when one does not open, and
//! NVIDIA's libraries that others need on GPUs.

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The folder of NVIDIA's libraries, in that of a back end.
const FOLDER: &str = "nvidia";

/// What the loader says of a library or a symbol that cannot be had.
pub fn words(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Opens all of NVIDIA's libraries that the back end's `folder` holds, if any, so that libraries opened later find them
/// by their names. They stay open.
pub fn open_companions(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder.join(FOLDER)) else { return };
    let is_library = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"))
    };
    let mut left: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_library).collect();
    left.sort();
    // One that needs another of them opens when that is open.
    loop {
        let mut refused = Vec::new();
        for path in &left {
            // SAFETY: the file is a library that the operator installed; its initialisers are trusted
            // as the server's own code is.
            match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => std::mem::forget(library),
                Err(error) => refused.push((path.clone(), words(&error))),
            }
        }
        if refused.len() == left.len() {
            for (path, words) in refused {
                log::warn!("what runs models on GPUs may miss {}: {words}", path.display());
            }
            return;
        }
        left = refused.into_iter().map(|(path, _)| path).collect();
    }
}
