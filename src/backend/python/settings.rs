use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

use crate::backend::BackendError;

/// Memory that a process and the server share, at most; pages are taken only as they are used.
const MEMORY_BYTES: usize = 1 << 30;
const MEMORY_BYTES_MIN: usize = 1 << 20;
const START_SECONDS: u64 = 30;

/// Settings of the server's that have no effect here, because there is nothing to set: memory is
/// taken by the page and has no name.
const WITHOUT_EFFECT: [&str; 3] =
    ["shm-default-byte-size", "shm-growth-byte-size", "shm_message_queue_size"];

/// What `--backend-config=python,…` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The interpreter of models that bring none.
    pub interpreter: String,
    /// Memory that a process and the server share, at most.
    pub memory_bytes: usize,
    /// How long a model may take to load.
    pub start_limit: Duration,
}

impl Settings {
    /// Reads the settings.
    ///
    /// # Errors
    /// When a value is not a number in its range.
    pub fn read(settings: &BTreeMap<String, String>) -> Result<Self, BackendError> {
        for name in WITHOUT_EFFECT {
            if let Some(value) = settings.get(name) {
                number::<u64>(name, value, 0)?;
            }
        }
        Ok(Self {
            interpreter: settings.get("interpreter").map_or("python3", String::as_str).to_owned(),
            memory_bytes: setting(settings, "shm-limit-byte-size", MEMORY_BYTES, MEMORY_BYTES_MIN)?,
            start_limit: Duration::from_secs(setting(
                settings,
                "stub-timeout-seconds",
                START_SECONDS,
                1,
            )?),
        })
    }
}

fn setting<T: FromStr + PartialOrd + Display + Copy>(
    settings: &BTreeMap<String, String>,
    name: &str,
    default: T,
    least: T,
) -> Result<T, BackendError> {
    settings.get(name).map_or(Ok(default), |value| number(name, value, least))
}

fn number<T: FromStr + PartialOrd + Display + Copy>(
    name: &str,
    value: &str,
    least: T,
) -> Result<T, BackendError> {
    value.parse().ok().filter(|number| *number >= least).ok_or_else(|| {
        BackendError(format!(
            "--backend-config=python,{name}: expected a whole number, at least {least}, got '{value}'"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, BackendError> {
        let settings = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Settings::read(&settings.collect())
    }

    #[test]
    fn tritons_settings_are_taken() {
        let settings = read(&[
            ("shm-default-byte-size", "1048576"),
            ("shm-growth-byte-size", "1048576"),
            ("stub-timeout-seconds", "7"),
            ("shm-limit-byte-size", "4194304"),
            ("cmdline", "unknown ones are for others"),
        ]);
        let expected = Settings {
            interpreter: "python3".into(),
            memory_bytes: 4 << 20,
            start_limit: Duration::from_secs(7),
        };
        assert_eq!(settings.unwrap(), expected);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for (name, value) in [
            ("shm-default-byte-size", "much"),
            ("shm-limit-byte-size", "1000"),
            ("stub-timeout-seconds", "0"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().0;
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
