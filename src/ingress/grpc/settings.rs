//! What the calls about logging and tracing say.

use crate::{
    inference::Error,
    ingress::settings::{LogValue, log_type, set_log, set_trace},
    observe::{
        logging::{LogChange, LogSettings},
        trace::{Change, Settings},
    },
    proto::{
        LogSettingsRequest, LogSettingsResponse, TraceSettingRequest, TraceSettingResponse,
        log_settings_request, log_settings_response, trace_setting_response,
    },
};

/// What a request changes of the log.
///
/// # Errors
/// A setting is not of its type or cannot be changed.
pub fn log_change(request: &LogSettingsRequest) -> Result<LogChange, Error> {
    use log_settings_request::setting_value::ParameterChoice;
    let mut change = LogChange::default();
    for (name, value) in &request.settings {
        let fits = match &value.parameter_choice {
            Some(ParameterChoice::BoolParam(shown)) => {
                set_log(&mut change, name, &LogValue::Bool(*shown), name)?
            }
            Some(ParameterChoice::Uint32Param(level)) => {
                set_log(&mut change, name, &LogValue::Unsigned(*level), name)?
            }
            Some(ParameterChoice::StringParam(text)) => {
                set_log(&mut change, name, &LogValue::Text(text), name)?
            }
            None => log_type(name).is_none(),
        };
        if !fits {
            let expected = log_type(name).unwrap_or_default();
            return Err(Error::malformed(format!("expect {expected} for '{name}'")));
        }
    }
    Ok(change)
}

/// The message that tells the log's settings.
pub fn log_settings(settings: &LogSettings) -> LogSettingsResponse {
    use log_settings_response::{
        SettingValue,
        setting_value::ParameterChoice::{BoolParam, StringParam, Uint32Param},
    };
    let file = settings.file.as_ref().map(|file| file.display().to_string());
    let settings = [
        ("log_file", StringParam(file.unwrap_or_default())),
        ("log_info", BoolParam(settings.info)),
        ("log_warning", BoolParam(settings.warning)),
        ("log_error", BoolParam(settings.error)),
        ("log_verbose_level", Uint32Param(settings.verbose)),
        ("log_format", StringParam(settings.format.name().to_owned())),
    ];
    let settings = settings
        .map(|(name, value)| (name.to_owned(), SettingValue { parameter_choice: Some(value) }));
    LogSettingsResponse { settings: settings.into() }
}

/// What a request changes of the trace settings.
///
/// # Errors
/// A setting is out of range or cannot be changed.
pub fn trace_change(request: &TraceSettingRequest) -> Result<Change, Error> {
    let mut change = Change::default();
    for (name, values) in &request.settings {
        let values: Vec<&str> = values.value.iter().map(String::as_str).collect();
        let values = (!values.is_empty()).then_some(&*values);
        set_trace(&mut change, name, values)?;
    }
    Ok(change)
}

/// The message that tells trace settings.
pub fn trace_settings(settings: &Settings, file: String, mode: &str) -> TraceSettingResponse {
    let level = settings.level.names().into_iter().map(str::to_owned).collect();
    let settings = [
        ("trace_level", level),
        ("trace_rate", vec![settings.rate.to_string()]),
        ("trace_count", vec![settings.count.to_string()]),
        ("log_frequency", vec![settings.log_frequency.to_string()]),
        ("trace_file", vec![file]),
        ("trace_mode", vec![mode.to_owned()]),
    ];
    let settings = settings
        .map(|(name, value)| (name.to_owned(), trace_setting_response::SettingValue { value }));
    TraceSettingResponse { settings: settings.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::trace::Level, proto::trace_setting_request};

    #[test]
    fn settings_of_the_log_have_types() {
        use log_settings_request::{
            SettingValue,
            setting_value::ParameterChoice::{BoolParam, StringParam, Uint32Param},
        };
        for (name, value, expected) in [
            ("log_info", Some(BoolParam(false)), None),
            ("log_info", Some(Uint32Param(1)), Some("expect boolean for 'log_info'")),
            ("log_info", None, Some("expect boolean for 'log_info'")),
            (
                "log_verbose_level",
                Some(StringParam("1".into())),
                Some("expect int32 for 'log_verbose_level'"),
            ),
            ("log_format", Some(BoolParam(true)), Some("expect string for 'log_format'")),
            (
                "log_format",
                Some(StringParam("x".into())),
                Some("invalid argument for log_format, got: x"),
            ),
            ("no_such", None, None),
        ] {
            let mut request = LogSettingsRequest::default();
            request.settings.insert(name.to_owned(), SettingValue { parameter_choice: value });
            let refused = log_change(&request).err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), expected, "{name}");
        }
        assert_eq!(log_settings(&LogSettings::default()).settings.len(), 6);
    }

    #[test]
    fn a_trace_setting_without_values_is_cleared() {
        let mut request = TraceSettingRequest::default();
        let value = |values: &[&str]| trace_setting_request::SettingValue {
            value: values.iter().map(|value| value.to_string()).collect(),
        };
        request.settings.insert("trace_rate".into(), value(&[]));
        request.settings.insert("trace_level".into(), value(&["TENSORS"]));
        let expected =
            Change { rate: Some(None), level: Some(Some(Level::TENSORS)), ..Change::default() };
        assert_eq!(trace_change(&request), Ok(expected));
        let told = trace_settings(&Settings::default(), String::new(), "triton");
        assert_eq!(told.settings["trace_level"].value, ["OFF"]);
        assert_eq!(told.settings["trace_file"].value, [""]);
    }
}
