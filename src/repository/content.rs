use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// The most files and folders that are looked at.
const ENTRIES_MAX: usize = 1 << 18;

/// A digest of everything in a model's folder that a version of it is made of: the same on every machine
/// that has the same files. The configuration is left out, which may come from elsewhere. Reads all files.
///
/// # Errors
/// A file cannot be read, or there are too many.
pub fn content_digest(dir: &Path, version: i64) -> io::Result<[u8; 32]> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    let mut entries = 0_usize;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(dir.join(&folder))? {
            let path = folder.join(entry?.file_name());
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(io::Error::other("there are too many files"));
            }
            if is_of_another_version(&path, version) || path.starts_with("config.pbtxt") {
                continue;
            }
            match fs::metadata(dir.join(&path))? {
                metadata if metadata.is_dir() => folders.push(path),
                metadata => files.push((path, metadata.len())),
            }
        }
    }
    files.sort();
    let mut digest = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    for (path, bytes) in files {
        let name = path.as_os_str().as_encoded_bytes();
        digest.update(&(name.len() as u64).to_le_bytes()).update(name);
        digest.update(&bytes.to_le_bytes());
        let mut file = fs::File::open(dir.join(&path))?.take(bytes);
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            digest.update(buffer.get(..read).unwrap_or_default());
        }
    }
    Ok(*digest.finalize().as_bytes())
}

fn is_of_another_version(path: &Path, version: i64) -> bool {
    let first = path.iter().next().and_then(|first| first.to_str());
    first.and_then(|first| first.parse::<i64>().ok()).is_some_and(|other| other != version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_version_is_made_of_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("1/model", "a");
        write("labels.txt", "x");
        let digest = || content_digest(folder.path(), 1).unwrap();
        let first = digest();
        for other in ["2/model", "config.pbtxt"] {
            write(other, "b");
            assert_eq!(digest(), first, "{other}");
        }
        for (path, content) in [("1/model", "b"), ("1/more", "a"), ("labels.txt", "y")] {
            let before = digest();
            write(path, content);
            assert_ne!(digest(), before, "{path}");
        }
    }
}
