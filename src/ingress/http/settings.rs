//! The bodies of the calls about logging and tracing.

use bytes::Bytes;
use serde::Serialize;

use super::{
    body::{boolean, members, not_unsigned, string, unsigned},
    json::{Cursor, Kind},
    metadata::write,
};
use crate::{
    inference::{Error, Rope},
    ingress::settings::{LogValue, set_log, set_trace},
    observe::{
        logging::{LogChange, LogSettings},
        trace::{Change, Settings},
    },
};

/// What a body changes of the log.
///
/// # Errors
/// The body is not JSON, or a setting is not of its type or cannot be changed.
pub fn log_change(body: &Rope) -> Result<LogChange, Error> {
    let mut change = LogChange::default();
    members(body, |cursor, name| {
        let text;
        let value = match name {
            "log_info" | "log_warning" | "log_error" => LogValue::Bool(boolean(cursor)?),
            "log_verbose_level" => LogValue::Unsigned(unsigned_32(cursor)?),
            "log_format" => {
                text = string(cursor)?;
                LogValue::Text(&text)
            }
            _ => {
                cursor.skip()?;
                LogValue::Text("")
            }
        };
        set_log(&mut change, name, &value, "--log_format").map(drop)
    })?;
    Ok(change)
}

/// The body that tells the log's settings.
pub fn log_settings(settings: &LogSettings) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        log_file: String,
        log_info: bool,
        log_warning: bool,
        log_error: bool,
        log_verbose_level: u32,
        log_format: &'a str,
    }
    let file = settings.file.as_ref().map(|file| file.display().to_string());
    write(&Body {
        log_file: file.unwrap_or_default(),
        log_info: settings.info,
        log_warning: settings.warning,
        log_error: settings.error,
        log_verbose_level: settings.verbose,
        log_format: settings.format.name(),
    })
}

/// What a body changes of the trace settings.
///
/// # Errors
/// The body is not JSON, or a setting is not of its type, out of range or cannot be changed.
pub fn trace_change(body: &Rope) -> Result<Change, Error> {
    let mut change = Change::default();
    members(body, |cursor, name| match (name, cursor.kind()) {
        ("trace_level" | "trace_rate" | "trace_count" | "log_frequency", Kind::Null) => {
            cursor.skip()?;
            set_trace(&mut change, name, None)
        }
        ("trace_level", Kind::Array) => {
            let mut levels = Vec::new();
            cursor.array(|cursor| {
                levels.push(string(cursor)?);
                Ok::<_, Error>(())
            })?;
            let levels: Vec<&str> = levels.iter().map(AsRef::as_ref).collect();
            set_trace(&mut change, name, Some(&levels))
        }
        ("trace_level", _) => {
            cursor.skip()?;
            Err(Error::malformed("attempt to access JSON non-array as array"))
        }
        ("trace_rate" | "trace_count" | "log_frequency", _) => {
            set_trace(&mut change, name, Some(&[&string(cursor)?]))
        }
        _ => {
            cursor.skip()?;
            set_trace(&mut change, name, None)
        }
    })?;
    Ok(change)
}

/// The body that tells trace settings.
pub fn trace_settings(settings: &Settings, file: &str, mode: &str) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        trace_level: Vec<&'a str>,
        trace_rate: String,
        trace_count: String,
        log_frequency: String,
        trace_file: &'a str,
        trace_mode: &'a str,
    }
    write(&Body {
        trace_level: settings.level.names(),
        trace_rate: settings.rate.to_string(),
        trace_count: settings.count.to_string(),
        log_frequency: settings.log_frequency.to_string(),
        trace_file: file,
        trace_mode: mode,
    })
}

/// The value of a member that counts something, in 32 bits.
fn unsigned_32(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    u32::try_from(unsigned(cursor)?).map_err(|_| not_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{logging::LogFormat, trace::Level};

    fn rope(text: &str) -> Rope {
        text.as_bytes().to_vec().into()
    }

    #[test]
    fn what_a_body_says_of_the_log_is_read() {
        let body = r#"{"log_info":false,"log_verbose_level":3,"log_format":"ISO8601","x":[1]}"#;
        let expected = LogChange {
            info: Some(false),
            verbose: Some(3),
            format: Some(LogFormat::Iso8601),
            ..LogChange::default()
        };
        assert_eq!(log_change(&rope(body)), Ok(expected));
        for (body, expected) in [
            ("", "failed to parse the request JSON buffer: The document is empty. at 0"),
            (r#"{"log_info":1}"#, "attempt to access JSON non-boolean as boolean"),
            (
                r#"{"log_verbose_level":-1}"#,
                "attempt to access JSON non-unsigned-integer as unsigned-integer",
            ),
            (r#"{"log_format":"x"}"#, "invalid argument for --log_format, got: x"),
            (r#"{"log_file":1}"#, "log file location can not be updated through network protocol"),
        ] {
            assert_eq!(log_change(&rope(body)).unwrap_err().to_string(), expected);
        }
        assert_eq!(
            log_settings(&LogSettings::default()),
            r#"{"log_file":"","log_info":true,"log_warning":true,"log_error":true,"#.to_owned()
                + r#""log_verbose_level":0,"log_format":"default"}"#
        );
    }

    #[test]
    fn what_a_body_says_of_traces_is_read() {
        let body = r#"{"trace_level":["TIMESTAMPS"],"trace_rate":"7","trace_count":null,"x":1}"#;
        let expected = Change {
            level: Some(Some(Level::TIMESTAMPS)),
            rate: Some(Some(7)),
            count: Some(None),
            log_frequency: None,
        };
        assert_eq!(trace_change(&rope(body)), Ok(expected));
        for (body, expected) in [
            (r#"{"trace_level":"OFF"}"#, "attempt to access JSON non-array as array"),
            (r#"{"trace_level":[1]}"#, "attempt to access JSON non-string as string"),
            (r#"{"trace_rate":5}"#, "attempt to access JSON non-string as string"),
            (
                r#"{"trace_file":null}"#,
                "trace file location can not be updated through network protocol",
            ),
        ] {
            assert_eq!(trace_change(&rope(body)).unwrap_err().to_string(), expected);
        }
        let settings = Settings { level: Level::TENSORS, ..Settings::default() };
        assert_eq!(
            trace_settings(&settings, "f", "triton"),
            r#"{"trace_level":["TENSORS"],"trace_rate":"1000","trace_count":"-1","#.to_owned()
                + r#""log_frequency":"0","trace_file":"f","trace_mode":"triton"}"#
        );
    }
}
