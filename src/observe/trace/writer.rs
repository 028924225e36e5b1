use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, TryRecvError};
use nix::time::{ClockId, clock_gettime};

use super::record::Trace;
use crate::inference::Timestamp;

/// What the thread that writes traces is told.
pub enum Message {
    /// A request has ended.
    Trace(Box<Trace>),
    /// The server has.
    Stop,
}

/// Bytes that are kept before they are written though more is to come.
const BUFFER_MAX: usize = 1 << 20;

/// Starts the thread that writes what arrives, into `file` and into files whose names begin with it.
pub fn start(file: PathBuf, traces: Receiver<Message>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("traces".to_owned()).spawn(move || {
        let mut output = Output::new(file);
        while let Ok(Message::Trace(trace)) = next(&traces, &mut output) {
            output.write(&trace);
        }
        output.flush();
    })
}

/// The next message; while there is none, what was noted is written out.
fn next(traces: &Receiver<Message>, output: &mut Output) -> Result<Message, TryRecvError> {
    match traces.try_recv() {
        Err(TryRecvError::Empty) => {
            output.flush();
            traces.recv().map_err(|_| TryRecvError::Disconnected)
        }
        received => received,
    }
}

/// The files that traces go to.
struct Output {
    path: PathBuf,
    origin: u64,
    /// The file of all traces that are not counted off.
    whole: Option<TraceFile>,
    /// The file that is being filled, of those that take a number of traces each.
    part: Option<TraceFile>,
    parts: u64,
}

impl Output {
    fn new(path: PathBuf) -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
        let now = now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0));
        let origin = now.saturating_sub(Timestamp::now().as_nanos());
        Self { path, origin, whole: None, part: None, parts: 0 }
    }

    fn write(&mut self, trace: &Trace) {
        let Self { path, origin, whole, part, parts } = self;
        let slot = match trace.log_frequency {
            0 => whole,
            _ => part,
        };
        let file = slot.get_or_insert_with(|| match trace.log_frequency {
            0 => TraceFile::create(path),
            _ => {
                let mut name = OsString::from(&*path);
                name.push(format!(".{parts}"));
                *parts += 1;
                TraceFile::create(Path::new(&name))
            }
        });
        file.push(trace, *origin);
        if trace.log_frequency > 0 && file.traces >= u64::from(trace.log_frequency) {
            file.flush();
            *part = None;
        }
    }

    fn flush(&mut self) {
        for file in [&mut self.whole, &mut self.part].into_iter().flatten() {
            file.flush();
        }
    }
}

/// A file that is a whole JSON array after each flush.
struct TraceFile {
    /// `None` when it could not be made; that was logged.
    file: Option<File>,
    /// What was written, less the closing bracket.
    written: u64,
    pending: String,
    traces: u64,
}

impl TraceFile {
    fn create(path: &Path) -> Self {
        let file = File::create(path)
            .inspect_err(|error| {
                log::error!("cannot create the trace file '{}': {error}", path.display());
            })
            .ok();
        Self { file, written: 0, pending: "[".to_owned(), traces: 0 }
    }

    fn push(&mut self, trace: &Trace, origin: u64) {
        if self.traces > 0 {
            self.pending.push(',');
        }
        self.traces += 1;
        trace.write(&mut self.pending, origin);
        if self.pending.len() > BUFFER_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let length = self.pending.len() as u64;
        self.pending.push(']');
        if let Some(file) = &mut self.file {
            let written = file.write_all_at(self.pending.as_bytes(), self.written);
            if let Err(error) = written.and_then(|()| file.flush()) {
                log::error!("cannot write traces: {error}");
                self.file = None;
            }
        }
        self.written += length;
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::super::{Change, Event, Level, Output, Settings, Tracer};
    use crate::inference::Timestamp;

    /// How many records each file has.
    fn records(folder: &std::path::Path) -> Vec<(String, usize)> {
        let mut found: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let json = fs::read_to_string(&path).unwrap();
                let records: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
                (path.file_name().unwrap().to_string_lossy().into_owned(), records.len())
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn files_hold_as_many_traces_as_they_should() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { level: Level::TIMESTAMPS, rate: 1, ..Settings::default() };
        let tracer = Tracer::start(Output::File(folder.path().join("t")), settings).unwrap();
        let model = tracer.of_model("m");
        let name: Arc<str> = "m".into();
        let run = |requests| {
            for _ in 0..requests {
                let mut trace = model.begin(&name, 1, &"".into(), None).unwrap();
                trace.at(Event::RequestStart, Timestamp::now());
                trace.finish();
            }
        };
        run(3);
        let parts = Change { log_frequency: Some(Some(2)), ..Change::default() };
        tracer.change(None, parts).unwrap();
        run(3);
        tracer.stop();
        let expected = [("t", 6), ("t.0", 4), ("t.1", 2)];
        assert_eq!(records(folder.path()), expected.map(|(name, count)| (name.to_owned(), count)));
    }
}
