//! Sums of files.

use std::{fmt::Write as _, fs::File, io, io::Read as _, path::Path};

use md5::Digest;

/// The sum of a file's bytes, in hexadecimal. They need not fit into memory.
pub(super) fn of_file<D: Digest>(path: &Path) -> io::Result<String> {
    // Asked before opening, because opening a named pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let (mut file, mut digest) = (File::open(path)?, D::new());
    let mut part = vec![0; 64 << 10];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex(&digest.finalize())),
            read => digest.update(&part[..read]),
        }
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
