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

/// `--host-policy=<policy>,<setting>=<value>`: where instances of a host policy run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPolicy {
    /// The policy's name.
    pub name: String,
    /// What it says.
    pub setting: HostSetting,
}

/// What a host policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSetting {
    /// The NUMA node whose processors are used.
    NumaNode(usize),
    /// The processors that are used, of all or of the NUMA node.
    Cores(Vec<usize>),
}

impl std::str::FromStr for HostPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected <policy>,numa-node=<node> or <policy>,cpu-cores=<first>-<last>, got \
                 '{text}'"
            )
        };
        let (name, setting) = text.split_once(',').ok_or_else(expected)?;
        let setting = match setting.split_once('=').ok_or_else(expected)? {
            ("numa-node", node) => node.parse().ok().map(HostSetting::NumaNode),
            ("cpu-cores", ranges) => cores(ranges).map(HostSetting::Cores),
            _ => None,
        };
        let setting = setting.filter(|_| !name.is_empty()).ok_or_else(expected)?;
        Ok(Self { name: name.into(), setting })
    }
}

/// Numbers and ranges with commas between them, as `0-3,8`.
fn cores(text: &str) -> Option<Vec<usize>> {
    const CORES_MAX: usize = 4096;
    let mut cores = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CORES_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
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
    fn host_policies_are_read_as_triton_writes_them() {
        let policy = |name: &str, setting| Ok(HostPolicy { name: name.into(), setting });
        assert_eq!("cpu,numa-node=1".parse(), policy("cpu", HostSetting::NumaNode(1)));
        let listed = HostSetting::Cores(vec![0, 1, 2, 8]);
        assert_eq!("gpu_0,cpu-cores=0-2,8".parse(), policy("gpu_0", listed));
        for bad in [
            "cpu",
            "cpu,numa-node",
            ",numa-node=1",
            "cpu,cpu-cores=3-1",
            "cpu,x=1",
            "cpu,cpu-cores=0-99999999999",
            "cpu,cpu-cores=",
        ] {
            assert!(bad.parse::<HostPolicy>().is_err(), "{bad}");
        }
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
