//! The log: lines in Triton's form, on standard error or in a file.

mod outlet;

use std::{
    fs::OpenOptions,
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

use self::outlet::Outlet;

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

impl LogFormat {
    /// The name in flags and calls.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Iso8601 => "ISO8601",
        }
    }

    /// The format of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Default, Self::Iso8601].into_iter().find(|format| format.name() == name)
    }
}

/// What of the log's settings to change; `None` leaves a setting as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LogChange {
    pub info: Option<bool>,
    pub warning: Option<bool>,
    pub error: Option<bool>,
    pub verbose: Option<u32>,
    pub format: Option<LogFormat>,
}

/// Sends the log of the whole process where the settings say.
///
/// # Errors
/// When the file cannot be opened, or the process logs somewhere already.
pub fn start(settings: &LogSettings) -> io::Result<()> {
    let file = match &settings.file {
        Some(path) => OpenOptions::new().append(true).create(true).open(path)?,
        None => io::stderr().as_fd().try_clone_to_owned()?.into(),
    };
    let outlet = Mutex::new(Outlet::new(file));
    log::set_boxed_logger(Box::new(Logger { outlet })).map_err(io::Error::other)?;
    replace(settings.clone());
    Ok(())
}

/// What the log shows now.
pub fn settings() -> LogSettings {
    LogSettings::clone(&SETTINGS.load())
}

/// The target of a message that is a table: it is written as it is, below its line's head.
pub const TABLE: &str = "table";

/// Changes what the log of the whole process shows, from the next message on.
pub fn change(change: LogChange) {
    let now = settings();
    replace(LogSettings {
        info: change.info.unwrap_or(now.info),
        warning: change.warning.unwrap_or(now.warning),
        error: change.error.unwrap_or(now.error),
        verbose: change.verbose.unwrap_or(now.verbose),
        format: change.format.unwrap_or(now.format),
        file: now.file,
    });
}

/// A process has one log, so its settings belong to the process too.
static SETTINGS: LazyLock<ArcSwap<LogSettings>> = LazyLock::new(ArcSwap::default);

fn replace(settings: LogSettings) {
    log::set_max_level(most_detailed(&settings));
    SETTINGS.store(Arc::new(settings));
}

/// The most detailed messages that any message could be; the others cost one load.
fn most_detailed(settings: &LogSettings) -> LevelFilter {
    match settings.verbose {
        0 if settings.info => LevelFilter::Info,
        0 if settings.warning => LevelFilter::Warn,
        0 if settings.error => LevelFilter::Error,
        0 => LevelFilter::Off,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

struct Logger {
    outlet: Mutex<Outlet>,
}

impl LogSettings {
    fn shows(&self, metadata: &Metadata<'_>) -> bool {
        match metadata.level() {
            Level::Error => self.error,
            Level::Warn => self.warning,
            Level::Info => self.info,
            // Other crates' details are for those who ask for everything.
            Level::Debug => {
                let ours = metadata.target().starts_with(env!("CARGO_PKG_NAME"));
                self.verbose > if ours { 0 } else { 1 }
            }
            Level::Trace => self.verbose > 2,
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        SETTINGS.load().shows(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let settings = SETTINGS.load();
        if !settings.shows(record.metadata()) {
            return;
        }
        let line = format_line(record, settings.format, Timestamp::now());
        self.outlet.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write(&line);
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
    let head = format!("{prefix} {process} {place}:{line}]");
    if record.target() == TABLE {
        return format!("{head} \n{}\n\n", record.args());
    }
    // As a text of JSON, like Triton: what a client sent cannot look like a line of its own.
    let message = serde_json::Value::from(record.args().to_string());
    format!("{head} {message}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_nobody_sees_are_not_made() {
        let settings = |info, warning, error, verbose| LogSettings {
            info,
            warning,
            error,
            verbose,
            ..LogSettings::default()
        };
        for (settings, expected) in [
            (settings(true, true, true, 0), LevelFilter::Info),
            (settings(false, true, true, 0), LevelFilter::Warn),
            (settings(false, false, true, 0), LevelFilter::Error),
            (settings(false, false, false, 0), LevelFilter::Off),
            (settings(false, false, false, 1), LevelFilter::Debug),
            (settings(true, true, true, 2), LevelFilter::Trace),
        ] {
            assert_eq!(most_detailed(&settings), expected, "{settings:?}");
        }
    }

    #[test]
    fn formats_have_names() {
        for format in [LogFormat::Default, LogFormat::Iso8601] {
            assert_eq!(LogFormat::by_name(format.name()), Some(format));
        }
        assert_eq!(LogFormat::by_name("iso8601"), None);
    }

    #[test]
    fn lines_look_like_tritons() {
        let now = Timestamp::from_microsecond(1_795_230_389_123_456).unwrap();
        let line = |format, target, message| {
            let arguments = format_args!("{message}");
            let mut record = Record::builder();
            record.level(Level::Warn).file(Some("src/cli/serve.rs")).line(Some(12));
            format_line(&record.target(target).args(arguments).build(), format, now)
        };
        let head = format!("W1121 03:06:29.123456 {} serve.rs:12]", std::process::id());
        for (target, message, expected) in [
            ("", "hello", " \"hello\"\n"),
            // The real server was seen to write it so.
            ("", "q\nx\"y\\ é\x7f\x01\t/\r", " \"q\\nx\\\"y\\\\ é\x7f\\u0001\\t/\\r\"\n"),
            (TABLE, "+-+\n| |", " \n+-+\n| |\n\n"),
        ] {
            assert_eq!(line(LogFormat::Default, target, message), format!("{head}{expected}"));
        }
        let head = format!("2026-11-21T03:06:29Z W {} serve.rs:12]", std::process::id());
        assert_eq!(line(LogFormat::Iso8601, "", "hello"), format!("{head} \"hello\"\n"));
    }
}
