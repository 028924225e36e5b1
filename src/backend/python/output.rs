//! What a model's process prints and logs, as lines of the server's log.

use std::{fmt::Write as _, io::Read};

use super::{Outline, process::Process, wire::LogLine};

/// A line longer than this is cut.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Where the lines of a process go.
pub struct Output {
    model: String,
    instance: String,
    stdout: Lines,
    stderr: Lines,
    last_error: Option<String>,
}

impl Output {
    /// For an instance of a model.
    pub fn new(model: &str, instance: &str) -> Self {
        Self {
            model: model.to_owned(),
            instance: instance.to_owned(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            last_error: None,
        }
    }

    /// Reads what the process has printed.
    pub fn read(&mut self, process: &mut Process) {
        let (model, instance) = (&self.model, &self.instance);
        let is_open = process.stdout.as_mut().is_some_and(|output| {
            self.stdout.read(output, |line| log::info!("{model} ({instance}): {line}"))
        });
        if !is_open {
            process.stdout = None;
        }
        let is_open = process.stderr.as_mut().is_some_and(|output| {
            self.stderr.read(output, |line| {
                self.last_error = Some(line.to_owned());
                log::warn!("{model} ({instance}): {line}");
            })
        });
        if !is_open {
            process.stderr = None;
        }
    }

    /// Reads what is left of a process that has ended.
    pub fn drain(&mut self, process: &mut Process) {
        self.read(process);
        for lines in [&mut self.stdout, &mut self.stderr] {
            if !lines.partial.is_empty() {
                let rest = String::from_utf8_lossy(&lines.partial).into_owned();
                log::info!("{} ({}): {rest}", self.model, self.instance);
                lines.partial.clear();
            }
        }
    }

    /// The last line of what it printed as errors.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// Cuts what is read into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Reads what there is. Tells whether more may come.
    fn read(&mut self, source: &mut impl Read, mut line: impl FnMut(&str)) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.push(buffer.get(..count).unwrap_or_default(), &mut line),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    fn push(&mut self, bytes: &[u8], line: &mut impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' && self.partial.len() < LINE_BYTES_MAX {
                self.partial.push(byte);
                continue;
            }
            if !self.partial.is_empty() {
                line(&String::from_utf8_lossy(&self.partial));
            }
            self.partial.clear();
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }
}

/// Writes a line that the model logged, with the place that it came from.
pub fn log_line(outline: &Outline, said: &LogLine) {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{} ({}): {}", outline.model, outline.instance, said.message);
    log::logger().log(
        &log::Record::builder()
            .level(said.level)
            .target(module_path!())
            .file(Some(&said.file))
            .line(Some(said.line))
            .args(format_args!("{text}"))
            .build(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in [&b"one\ntw"[..], b"o\n\nthr\xffee", b"\nrest"] {
            lines.push(piece, &mut |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "thr\u{fffd}ee"]);
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let mut seen = Vec::new();
        Lines::default().push(&long, &mut |line| seen.push(line.len()));
        assert_eq!(seen, [LINE_BYTES_MAX]);
    }
}
