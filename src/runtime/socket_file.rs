use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

/// A listening Unix socket and its file, which goes when this is dropped, unless somebody has put
/// another in its place.
pub struct SocketFile {
    pub socket: UnixListener,
    pub path: PathBuf,
    /// The file's device and number.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, whose file gets the permissions `mode`. What a server left there that has
    /// ended is removed first.
    ///
    /// # Errors
    /// When another server listens there, something else lies there, or the system refuses.
    pub fn bind(path: &Path, mode: u32, backlog: i32) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Before the file is there, so that at no time more may connect than are to.
        fchmod(&socket, Mode::from_bits_truncate(mode))?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = fs::symlink_metadata(path)?;
        let bound = Self {
            socket: std::os::fd::OwnedFd::from(socket).into(),
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        nix::sys::socket::listen(&bound.socket, nix::sys::socket::Backlog::new(backlog)?)?;
        Ok(bound)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove the socket '{}': {error}", self.path.display());
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let detail = "the file is there already and is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, detail));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => {
            let detail = "another server listens there";
            Err(io::Error::new(io::ErrorKind::AddrInUse, detail))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_for_whom_it_is_meant_and_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        let first = SocketFile::bind(&path, 0o600, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let taken = SocketFile::bind(&path, 0o600, 8).err().unwrap();
        assert_eq!(taken.to_string(), "another server listens there");
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_an_ended_server_left_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring");
        drop(UnixListener::bind(&path).unwrap());
        let second = SocketFile::bind(&path, 0o660, 8).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "something else").unwrap();
        drop(second);
        assert!(path.exists(), "a file of somebody else's is left alone");
        assert!(SocketFile::bind(&path, 0o600, 8).is_err());
    }
}
