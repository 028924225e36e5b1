//! Where lines of the log are written: nobody who logs is held up by a pipe from which nobody reads, or too
//! slowly. A terminal that is stopped is another matter: it takes less than it says.

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// How long a line may wait for the reader.
const PATIENCE: Duration = Duration::from_millis(100);
/// When one has waited in vain, others do not wait at all for so long.
const IMPATIENCE: Duration = Duration::from_secs(10);
/// What a pipe takes at once that has any room (PIPE_BUF).
const AT_ONCE: usize = 4096;

/// A file, a pipe, a socket or a terminal.
pub struct Outlet {
    file: File,
    /// Lines that were not written, or not to their end, since the last one that was.
    lost: u64,
    /// When the last of them was lost.
    lost_at: Option<Instant>,
}

impl Outlet {
    /// Nothing is written yet.
    pub fn new(file: File) -> Self {
        Self { file, lost: 0, lost_at: None }
    }

    /// Writes a line, which ends with its newline, unless it waits for too long; then a later one tells.
    pub fn write(&mut self, line: &str) {
        let is_patient = self.lost_at.is_none_or(|at| at.elapsed() > IMPATIENCE);
        let patience = if is_patient { PATIENCE } else { Duration::ZERO };
        let is_whole = match self.lost {
            0 => self.write_within(line, patience),
            lost => {
                let told = format!("\n({lost} lines of the log were lost: nobody read it)\n{line}");
                self.write_within(&told, patience)
            }
        };
        if is_whole {
            self.lost = 0;
        } else {
            self.lost += 1;
            self.lost_at = Some(Instant::now());
        }
    }

    fn write_within(&mut self, text: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        text.as_bytes().chunks(AT_ONCE).all(|piece| {
            let has_room = self.has_room(until);
            if has_room {
                // A log that cannot be written has nobody to tell.
                let _ = self.file.write_all(piece);
            }
            has_room
        })
    }

    fn has_room(&self, until: Instant) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut output = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut output, left) {
                Err(Errno::EINTR) => {}
                // One that breaks when it is written to does not make anyone wait.
                polled => return polled.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, pipe},
        os::fd::OwnedFd,
    };

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up() {
        let (mut reader, writer) = pipe().unwrap();
        let mut outlet = Outlet::new(OwnedFd::from(writer).into());
        let began = Instant::now();
        let line = format!("{}\n", "x".repeat(9999));
        for _ in 0..1000 {
            outlet.write(&line);
        }
        let lost = outlet.lost;
        assert!(lost > 900 && began.elapsed() < Duration::from_secs(5), "{lost}");
        let mut read = vec![0; 1 << 20];
        let count = reader.read(&mut read).unwrap();
        assert!(count > 9999);
        outlet.write("last\n");
        drop(outlet);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let told = format!("\n({lost} lines of the log were lost: nobody read it)\nlast\n");
        assert!(rest.ends_with(&told), "{rest:?}");
    }

    #[test]
    fn a_pipe_whose_reader_has_left_takes_lines_and_loses_them() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut outlet = Outlet::new(OwnedFd::from(writer).into());
        outlet.write("line\n");
        assert_eq!(outlet.lost, 0);
    }
}
