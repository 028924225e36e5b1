//! The forms that tritonserver's flags have beside the usual ones.

/// A switch that may be given as `--flag`, `--flag=true`, `--flag on`, `--flag=0` and so on, in capitals
/// or not.
pub fn switch() -> impl Fn(&str) -> Result<bool, String> + Clone + Send + Sync + 'static {
    |text| match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err(format!("expected true, on, 1, false, off or 0, got '{text}'")),
    }
}

/// `--backend-config=<back end>,<setting>=<value>`; without a back end it holds for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSetting {
    /// The back end; empty for all.
    pub backend: String,
    /// The setting's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl std::str::FromStr for BackendSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected <backend>,<setting>=<value>, got '{text}'");
        let (backend, setting) = text.split_once(',').ok_or_else(expected)?;
        let (name, value) = setting.split_once('=').ok_or_else(expected)?;
        if name.is_empty() {
            return Err(expected());
        }
        Ok(Self { backend: backend.into(), name: name.into(), value: value.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_read_as_triton_writes_them() {
        for on in ["true", "True", "ON", "1"] {
            assert_eq!(switch()(on), Ok(true), "{on}");
        }
        for off in ["false", "FALSE", "off", "0"] {
            assert_eq!(switch()(off), Ok(false), "{off}");
        }
        let told = "expected true, on, 1, false, off or 0, got 'yes'";
        assert_eq!(switch()("yes"), Err(told.to_owned()));
    }

    #[test]
    fn backend_settings_are_read_as_triton_writes_them() {
        let read: BackendSetting = "onnxruntime,default-max-batch-size=8".parse().unwrap();
        let expected = ["onnxruntime", "default-max-batch-size", "8"];
        assert_eq!([&read.backend, &read.name, &read.value], expected);
        let all: BackendSetting = ",default-max-batch-size=8".parse().unwrap();
        assert_eq!(all.backend, "");
        for bad in ["onnxruntime", "onnxruntime,x", "onnxruntime,=1"] {
            assert!(bad.parse::<BackendSetting>().is_err(), "{bad}");
        }
    }
}
