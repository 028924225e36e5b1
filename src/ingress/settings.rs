//! The settings that clients can change while the server runs: what is logged, and what is traced.

use crate::{
    inference::Error,
    observe::{
        logging::{LogChange, LogFormat},
        trace::{Change, InvalidSettings, Level, Settings, Tracer},
    },
    serving::Server,
};

/// The trace settings of a model, or of the server when the name is empty.
///
/// # Errors
/// When there is no such model.
pub fn trace(server: &Server, model: &str) -> Result<Settings, Error> {
    Ok(server.tracer().settings(traced(server, model)?))
}

/// Changes the trace settings of a model, or of the server when the name is empty.
///
/// # Errors
/// When there is no such model, or nothing could be traced with the new settings.
pub fn change_trace(server: &Server, model: &str, change: Change) -> Result<Settings, Error> {
    let model = traced(server, model)?;
    let changed = server.tracer().change(model, change);
    changed.map_err(|invalid: InvalidSettings| Error::malformed(invalid.to_string()))
}

fn traced<'a>(server: &Server, model: &'a str) -> Result<Option<&'a str>, Error> {
    match server.versions(model) {
        _ if model.is_empty() => Ok(None),
        Ok(_) | Err(Error::AmbiguousModel { .. }) => Ok(Some(model)),
        Err(_) => Err(Error::malformed(format!("Request for unknown model : {model}"))),
    }
}

/// Where the server's traces go; empty when it was told no place.
pub fn trace_file(tracer: &Tracer) -> String {
    tracer.file().map(|file| file.display().to_string()).unwrap_or_default()
}

/// Notes in `change` that the setting `name` is to have these values; none gives it back to whoever is
/// asked next. Names that are not known mean nothing, as for Triton.
///
/// # Errors
/// When the values are none for this setting, or it cannot be changed.
pub fn set_trace(change: &mut Change, name: &str, values: Option<&[&str]>) -> Result<(), Error> {
    match (name, values) {
        ("trace_file", _) => Err(Error::Unsupported {
            detail: "trace file location can not be updated through network protocol".to_owned(),
        }),
        ("trace_level", None) => {
            change.level = Some(None);
            Ok(())
        }
        ("trace_level", Some(names)) => {
            let known = names.iter().filter_map(|name| Level::by_name(name));
            if names.contains(&"OFF") && names.len() > 1 {
                return Err(Error::malformed("Expect only one trace level 'OFF' is specified"));
            }
            if let Some(level) = known.reduce(|level, more| level | more) {
                change.level = Some(Some(level));
            }
            Ok(())
        }
        ("trace_rate", values) => {
            change.rate = Some(number(name, values, 0, u32::MAX)?);
            Ok(())
        }
        ("trace_count", values) => {
            change.count = Some(number(name, values, -1, i32::MAX)?);
            Ok(())
        }
        ("log_frequency", values) => {
            change.log_frequency = Some(number(name, values, 0, u32::MAX)?);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn number<T: TryFrom<i64>>(
    name: &str,
    values: Option<&[&str]>,
    least: i64,
    most: impl Into<i64>,
) -> Result<Option<T>, Error> {
    let value = match values {
        None => return Ok(None),
        Some([value]) => *value,
        Some(_) => return Err(Error::malformed(format!("expect only 1 value for '{name}'"))),
    };
    let digits = value.strip_prefix('-').unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Error::malformed(format!("Unable to parse '{name}', got: {value}")));
    }
    let most = most.into();
    if least < 0 && value.parse().is_ok_and(|number: i64| number < least) {
        return Err(Error::malformed(format!(
            "Unable to parse '{name}'. Expecting value >= {least}, got:{value}"
        )));
    }
    let number = value.parse::<i64>().ok().filter(|number| (least..=most).contains(number));
    number.and_then(|number| T::try_from(number).ok()).map(Some).ok_or_else(|| {
        Error::malformed(format!(
            "Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {value}"
        ))
    })
}

/// What a client gives a setting of the log.
pub enum LogValue<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Unsigned(u32),
    /// A text.
    Text(&'a str),
}

/// Notes in `change` that the log's setting `name` is to have this value. Returns whether the value is
/// of its type.
///
/// # Errors
/// When the setting cannot be changed, or is not one of the values it may have; `flag` is how the
/// message names it then.
pub fn set_log(
    change: &mut LogChange,
    name: &str,
    value: &LogValue<'_>,
    flag: &str,
) -> Result<bool, Error> {
    match (name, value) {
        ("log_file", _) => {
            return Err(Error::Unsupported {
                detail: "log file location can not be updated through network protocol".to_owned(),
            });
        }
        ("log_info", LogValue::Bool(shown)) => change.info = Some(*shown),
        ("log_warning", LogValue::Bool(shown)) => change.warning = Some(*shown),
        ("log_error", LogValue::Bool(shown)) => change.error = Some(*shown),
        ("log_verbose_level", LogValue::Unsigned(level)) => change.verbose = Some(*level),
        ("log_format", LogValue::Text(format)) => {
            let known = LogFormat::by_name(format).ok_or_else(|| {
                Error::malformed(format!("invalid argument for {flag}, got: {format}"))
            })?;
            change.format = Some(known);
        }
        _ => return Ok(log_type(name).is_none()),
    }
    Ok(true)
}

/// What the value of a setting of the log is; `None` for settings that there are not.
pub fn log_type(name: &str) -> Option<&'static str> {
    match name {
        "log_info" | "log_warning" | "log_error" => Some("boolean"),
        "log_verbose_level" => Some("int32"),
        "log_format" | "log_file" => Some("string"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(name: &str, values: Option<&[&str]>) -> Result<Change, String> {
        let mut change = Change::default();
        set_trace(&mut change, name, values).map_err(|error| error.to_string())?;
        Ok(change)
    }

    #[test]
    fn trace_settings_are_read() {
        let both = Level::TIMESTAMPS | Level::TENSORS;
        let none = Change::default();
        for (name, values, expected) in [
            (
                "trace_level",
                Some(&["TENSORS", "x", "TIMESTAMPS"][..]),
                Change { level: Some(Some(both)), ..none },
            ),
            ("trace_level", Some(&["OFF"]), Change { level: Some(Some(Level::OFF)), ..none }),
            ("trace_level", Some(&["x"]), none),
            ("trace_level", None, Change { level: Some(None), ..none }),
            ("trace_rate", Some(&["4294967295"]), Change { rate: Some(Some(u32::MAX)), ..none }),
            ("trace_count", Some(&["-1"]), Change { count: Some(Some(-1)), ..none }),
            ("trace_count", None, Change { count: Some(None), ..none }),
            ("log_frequency", Some(&["5"]), Change { log_frequency: Some(Some(5)), ..none }),
            ("trace_mode", Some(&["x"]), none),
            ("no_such", None, none),
        ] {
            assert_eq!(trace(name, values), Ok(expected), "{name} {values:?}");
        }
    }

    #[test]
    fn trace_settings_that_are_none_are_refused() {
        for (name, values, expected) in [
            ("trace_rate", &["x"][..], "Unable to parse 'trace_rate', got: x"),
            ("trace_rate", &["5x"], "Unable to parse 'trace_rate', got: 5x"),
            ("trace_rate", &[""], "Unable to parse 'trace_rate', got: "),
            ("trace_rate", &["1", "2"], "expect only 1 value for 'trace_rate'"),
            (
                "trace_rate",
                &["99999999999999999999"],
                "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: \
                 99999999999999999999",
            ),
            (
                "trace_count",
                &["-2"],
                "Unable to parse 'trace_count'. Expecting value >= -1, got:-2",
            ),
            ("trace_level", &["OFF", "OFF"], "Expect only one trace level 'OFF' is specified"),
            (
                "trace_file",
                &["x"],
                "trace file location can not be updated through network protocol",
            ),
        ] {
            assert_eq!(trace(name, Some(values)), Err(expected.to_owned()));
        }
    }

    #[test]
    fn settings_of_the_log_have_types() {
        let mut change = LogChange::default();
        for (name, value, fits) in [
            ("log_info", LogValue::Bool(false), Ok(true)),
            ("log_info", LogValue::Unsigned(1), Ok(false)),
            ("log_verbose_level", LogValue::Unsigned(2), Ok(true)),
            ("log_verbose_level", LogValue::Text("2"), Ok(false)),
            ("log_format", LogValue::Text("ISO8601"), Ok(true)),
            ("log_format", LogValue::Text("x"), Err("invalid argument for log_format, got: x")),
            ("no_such", LogValue::Bool(true), Ok(true)),
            (
                "log_file",
                LogValue::Text("x"),
                Err("log file location can not be updated through network protocol"),
            ),
        ] {
            let set = set_log(&mut change, name, &value, "log_format");
            assert_eq!(
                set.map_err(|error| error.to_string()),
                fits.map_err(str::to_owned),
                "{name}"
            );
        }
        let expected = LogChange {
            info: Some(false),
            verbose: Some(2),
            format: Some(LogFormat::Iso8601),
            ..LogChange::default()
        };
        assert_eq!(change, expected);
    }
}
