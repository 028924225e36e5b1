//! The log: lines in Triton's form, on standard error or in a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::Mutex,
};

use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// What the log shows, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Whether informational messages are shown.
    pub info: bool,
    /// Whether warnings are shown.
    pub warning: bool,
    /// Whether errors are shown.
    pub error: bool,
    /// 0 for no further messages, 1 for debugging ones, 2 and more for all.
    pub verbose: u32,
    /// How times are written.
    pub format: LogFormat,
    /// Where messages go; standard error without it.
    pub file: Option<PathBuf>,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            info: true,
            warning: true,
            error: true,
            verbose: 0,
            format: LogFormat::Default,
            file: None,
        }
    }
}

/// How the log writes times, by Triton's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `I1121 03:06:29.123456 4711 file.rs:12] "message"`
    #[default]
    Default,
    /// `2026-11-21T03:06:29Z I 4711 file.rs:12] "message"`
    Iso8601,
}

/// Sends the log of the whole process where the settings say.
///
/// # Errors
/// When the file cannot be opened, or the process logs somewhere already.
pub fn start(settings: &LogSettings) -> io::Result<()> {
    let file = match &settings.file {
        Some(path) => Some(Mutex::new(OpenOptions::new().append(true).create(true).open(path)?)),
        None => None,
    };
    let logger = Logger { settings: settings.clone(), file };
    let most = match settings.verbose {
        0 if settings.info => LevelFilter::Info,
        0 if settings.warning => LevelFilter::Warn,
        0 => LevelFilter::Error,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    log::set_max_level(most);
    Ok(())
}

struct Logger {
    settings: LogSettings,
    file: Option<Mutex<File>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match metadata.level() {
            Level::Error => self.settings.error,
            Level::Warn => self.settings.warning,
            Level::Info => self.settings.info,
            // Other crates' details are for those who ask for everything.
            Level::Debug => {
                let ours = metadata.target().starts_with(env!("CARGO_PKG_NAME"));
                self.settings.verbose > if ours { 0 } else { 1 }
            }
            Level::Trace => self.settings.verbose > 2,
        }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format_line(record, self.settings.format, Timestamp::now());
        // A log that cannot be written has nobody to tell.
        let _ = match &self.file {
            Some(file) => file
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .write_all(line.as_bytes()),
            None => io::stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

fn format_line(record: &Record<'_>, format: LogFormat, now: Timestamp) -> String {
    let letter = match record.level() {
        Level::Error => 'E',
        Level::Warn => 'W',
        Level::Info => 'I',
        Level::Debug | Level::Trace => 'V',
    };
    let prefix = match format {
        LogFormat::Default => format!("{letter}{}", now.strftime("%m%d %H:%M:%S%.6f")),
        LogFormat::Iso8601 => format!("{} {letter}", now.strftime("%Y-%m-%dT%H:%M:%SZ")),
    };
    let process = std::process::id();
    let place = record.file().and_then(|file| file.rsplit('/').next()).unwrap_or("unknown");
    let line = record.line().unwrap_or(0);
    format!("{prefix} {process} {place}:{line}] \"{}\"\n", record.args())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_tritons() {
        let now = Timestamp::from_microsecond(1_795_230_389_123_456).unwrap();
        let line = |format| {
            let arguments = format_args!("hello");
            let mut record = Record::builder();
            record.level(Level::Warn).file(Some("src/cli/serve.rs")).line(Some(12));
            format_line(&record.args(arguments).build(), format, now)
        };
        let process = std::process::id();
        assert_eq!(
            line(LogFormat::Default),
            format!("W1121 03:06:29.123456 {process} serve.rs:12] \"hello\"\n")
        );
        assert_eq!(
            line(LogFormat::Iso8601),
            format!("2026-11-21T03:06:29Z W {process} serve.rs:12] \"hello\"\n")
        );
    }
}
