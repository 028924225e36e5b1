use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::signal::Signal,
};

use super::{
    arena::Arena,
    environment::Interpreter,
    sources::{self, Files},
};

/// A model's process.
pub struct Process {
    child: Child,
    /// Readable once the process has ended; `None` where the system has no such thing.
    handle: Option<OwnedFd>,
    /// What it prints.
    pub stdout: Option<ChildStdout>,
    /// What it prints as errors.
    pub stderr: Option<ChildStderr>,
}

/// The server's ends of the sockets to a process: one for each direction, because whoever sleeps on a socket
/// to read would wake when the other end reads what was sent by it.
pub struct Sockets {
    /// To the process.
    pub outbound: UnixStream,
    /// From the process.
    pub inbound: UnixStream,
}

impl Process {
    /// Starts one, named `name` in the list of processes, and returns the sockets to it. The calling
    /// thread must outlive it: with the thread it ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        interpreter: &Interpreter,
        name: &str,
        files: &Files,
        arena: &Arena,
    ) -> io::Result<(Self, Sockets)> {
        let (outbound, theirs_in) = UnixStream::pair()?;
        let (inbound, theirs_out) = UnixStream::pair()?;
        let files = [
            files.sources.as_raw_fd(),
            files.native.as_raw_fd(),
            theirs_in.as_raw_fd(),
            theirs_out.as_raw_fd(),
            arena.file().as_raw_fd(),
        ];
        let mut command = Command::new(&interpreter.path);
        command.arg("-c").arg(sources::START);
        command.args(files.map(|file| file.to_string()));
        command.arg(arena.size().to_string()).arg(name);
        command.envs(interpreter.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let server = nix::unistd::getpid();
        // SAFETY: between fork and exec only calls that are safe there run: prctl, getppid, fcntl. They
        // take no memory; the closure owns what it uses.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != server {
                    // The server ended before it could be told of.
                    return Err(io::ErrorKind::NotConnected.into());
                }
                files.into_iter().try_for_each(inherit)
            });
        }
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let outputs = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        for output in outputs.into_iter().flatten() {
            fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let handle = open_handle(child.id());
        Ok((Self { child, handle, stdout, stderr }, Sockets { outbound, inbound }))
    }

    /// What becomes readable when it has ended.
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        self.handle.as_ref().map(AsFd::as_fd)
    }

    /// How it ended, if it has; then the system has forgotten it.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Whether it was stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        stat.is_ok_and(|stat| {
            // The name before it may hold anything, parentheses too.
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
            matches!(state, Some('T' | 't'))
        })
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It may have ended by itself meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Bytes that a process has resident, if it is still there.
pub fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Lets a file be open in the program that is executed.
fn inherit(file: RawFd) -> io::Result<()> {
    // SAFETY: the files are open: the caller of `spawn` holds them, and fork has copied them.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

fn open_handle(process: u32) -> Option<OwnedFd> {
    // SAFETY: the call takes two numbers and returns a new file, or less than zero.
    let file = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let file = RawFd::try_from(file).ok().filter(|&file| file >= 0)?;
    // SAFETY: the file was just opened, and nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(file) })
}
