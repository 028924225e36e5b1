//! The parameters of a model's configuration, and the settings of its back end, as values.

use super::{BackendError, ModelSource};

/// The parameters of one model.
pub(super) struct Parameters<'a> {
    backend: &'static str,
    pub source: &'a ModelSource,
}

impl<'a> Parameters<'a> {
    /// Those of a model of the back end that is so named.
    pub fn of(backend: &'static str, source: &'a ModelSource) -> Self {
        Self { backend, source }
    }

    pub fn text(&self, name: &str) -> Option<&'a str> {
        Some(self.source.config.parameters.get(name)?.string_value.as_str())
    }

    pub fn integer(&self, name: &str) -> Result<Option<i32>, BackendError> {
        self.text(name)
            .map(|text| text.trim().parse().map_err(|_| self.bad(name, "an integer", text)))
            .transpose()
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, BackendError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(self.bad(name, "true or false", text)),
        }
    }

    /// A number of threads of this model, else that which the server sets for all models of the back
    /// end under the same name in small letters.
    pub fn thread_count(&self, name: &str) -> Result<Option<i32>, BackendError> {
        if let Some(count) = self.integer(name)? {
            return if count >= 0 {
                Ok(Some(count))
            } else {
                Err(self.bad(name, "0 or more", &count.to_string()))
            };
        }
        let setting = name.to_ascii_lowercase();
        let Some(text) = self.source.settings.get(&setting) else { return Ok(None) };
        let count = text.trim().parse().ok().filter(|&count: &i32| count >= 0);
        count.map(Some).ok_or_else(|| {
            let Self { backend, .. } = self;
            BackendError(format!(
                "setting '{setting}' of back end '{backend}': expected 0 or more, got '{text}'"
            ))
        })
    }

    pub fn bad(&self, name: &str, expected: &str, got: &str) -> BackendError {
        BackendError(format!(
            "parameter '{name}' of model '{}': expected {expected}, got '{got}'",
            self.source.name
        ))
    }
}
