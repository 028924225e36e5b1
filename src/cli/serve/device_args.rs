//! The flags of the devices that models run on.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::Args;

use crate::{
    cli::flags::switch,
    device::{
        Device, Devices,
        cuda::{self, CudaSettings},
        host::{Fault, FaultKind, HostDevice, HostSettings, Link},
        streams::SchedulerSettings,
    },
    memory::BufferPool,
    repository::{Gpu, Gpus},
    serving::FleetSettings,
};

/// tritonserver's flags about GPUs, and ours.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// What models that can run on a GPU run on: the GPUs that there are (gpu), devices that the
    /// processors stand in for, to try things out (host), or the processors as for any other model
    /// (none)
    #[arg(long, value_name = "KIND", default_value = "gpu", value_parser = ["gpu", "host", "none"])]
    device: String,
    /// How the devices of --device=host are to be, as count=<N>, memory=<BYTES>, link=<BYTES PER SECOND>,
    /// launch-us=<MICROSECONDS>, or what is to go wrong, as
    /// <fail|lose>=<DEVICE>:<copy|launch|allocation>:<NUMBER>; may be given several times
    #[arg(long, value_name = "SETTING")]
    host_device: Vec<HostSetting>,
    /// Batches on their way through one instance on a device: while one runs, others are copied
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u8).range(1..=16))]
    device_lanes: u8,
    /// End when a device is lost, so that whoever watches the server starts it anew
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    pub exit_on_device_loss: bool,
    /// A file for what the devices' engines did last, written when the server stops; Perfetto opens it
    #[arg(long, value_name = "FILE")]
    pub timeline_file: Option<PathBuf>,
    /// Operations of the devices' engines that are kept for /timeline and --timeline-file
    #[arg(long, value_name = "N", default_value_t = 4096)]
    timeline_entries: usize,

    /// A fatbin of kernels/all.cu, for a program that was built without one
    #[arg(long, value_name = "FILE")]
    gpu_kernels: Option<PathBuf>,

    /// Bytes of a device's memory for tensors between steps of ensembles there and for states of sequences;
    /// what does not find room goes by way of the host. A GPU also keeps as many of freed memory for those
    /// to come. As <DEVICE>:<BYTES>; may be given several times [default: 64 MiB on each, at most an eighth
    /// of its memory]
    #[arg(long, value_name = "DEVICE:BYTES")]
    cuda_memory_pool_byte_size: Vec<PerDevice<u64>>,
    /// The least compute capability of a GPU that is used
    #[arg(long, value_name = "N", default_value = "6.0")]
    min_supported_compute_capability: Capability,
    /// Whether GPUs may read and write each other's memory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    enable_peer_access: bool,
    /// How full a device may be for a model to load there, as <DEVICE>:<FRACTION>; may be given several
    /// times
    #[arg(long, value_name = "DEVICE:FRACTION")]
    model_load_gpu_limit: Vec<PerDevice<f64>>,
}

/// `<device>:<value>`
#[derive(Clone, Copy, Debug)]
struct PerDevice<T> {
    device: usize,
    value: T,
}

impl<T: FromStr> FromStr for PerDevice<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let read = parts.and_then(|(device, value)| {
            Some(Self { device: device.parse().ok()?, value: value.parse().ok()? })
        });
        read.ok_or_else(|| format!("expected <device>:<number>, got '{text}'"))
    }
}

/// `<major>.<minor>`
#[derive(Clone, Copy, Debug, PartialEq)]
struct Capability(u32, u32);

impl FromStr for Capability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let read = major.parse().ok().zip(minor.parse().ok().filter(|minor| *minor < 10));
        let (major, minor) =
            read.ok_or_else(|| format!("expected <number>.<digit>, got '{text}'"))?;
        Ok(Self(major, minor))
    }
}

/// One setting of `--host-device`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum HostSetting {
    Count(usize),
    MemoryBytes(usize),
    Link(f64),
    LaunchLatency(Duration),
    Fault(usize, FaultKind, usize, Fault),
}

impl FromStr for HostSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected <setting>=<value>, got '{text}'");
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        let number = || value.parse().ok();
        let positive = || value.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
        let setting = match name {
            "count" => number().filter(|count| (1..=16).contains(count)).map(Self::Count),
            "memory" => number().map(Self::MemoryBytes),
            "link" => positive().map(Self::Link),
            "launch-us" => value.parse().ok().map(Duration::from_micros).map(Self::LaunchLatency),
            "fail" => fault(value, Fault::Fail),
            "lose" => fault(value, Fault::Lose),
            _ => {
                return Err(format!(
                    "expected count, memory, link, launch-us, fail or lose, got '{name}'"
                ));
            }
        };
        setting.ok_or_else(|| format!("{name} cannot be '{value}'"))
    }
}

/// `<device>:<kind>:<number>`
fn fault(text: &str, fault: Fault) -> Option<HostSetting> {
    let mut parts = text.split(':');
    let device = parts.next()?.parse().ok()?;
    let kind = match parts.next()? {
        "copy" => FaultKind::Copy,
        "launch" => FaultKind::Launch,
        "allocation" => FaultKind::Allocation,
        _ => return None,
    };
    let number = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(HostSetting::Fault(device, kind, number, fault))
}

impl DeviceArgs {
    /// The devices, which are opened when a model asks for them. Where they are GPUs, the arena of `pool`
    /// is pinned.
    pub fn devices(&self, pool: &BufferPool) -> Devices {
        match &*self.device {
            "none" => Devices::none("--device=none"),
            "host" => {
                let settings = self.host_settings();
                Devices::new(move || {
                    let started = settings.iter().cloned().map(HostDevice::start);
                    let devices = started.map(|device| Ok(Arc::new(device?) as Arc<dyn Device>));
                    devices
                        .collect::<std::io::Result<_>>()
                        .map_err(|error| format!("a device's threads cannot be had: {error}"))
                })
            }
            _ => {
                let (settings, pool) = (self.cuda_settings(), pool.clone());
                let kernels = self.gpu_kernels.clone();
                // They stay pinned as long as the devices can be asked for.
                let pinned = Mutex::new(Vec::new());
                Devices::new(move || {
                    let mut settings = settings.clone();
                    if let Some(path) = &kernels {
                        let read = std::fs::read(path);
                        let read = read.map_err(|error| {
                            format!("the kernels '{}' cannot be read: {error}", path.display())
                        });
                        settings.kernels = Some(read?.into());
                    }
                    let gpus = cuda::open(&settings).map_err(|reason| reason.to_string())?;
                    // Pinned by one it is for all of them.
                    match gpus.first().map(|gpu| gpu.pin(&pool)) {
                        Some(Ok(memory)) => {
                            pinned.lock().unwrap_or_else(|held| held.into_inner()).push(memory);
                        }
                        Some(Err(error)) => {
                            log::warn!("tensor memory is not pinned, copies are slower: {error}");
                        }
                        None => {}
                    }
                    Ok(gpus.into_iter().map(|gpu| gpu as Arc<dyn Device>).collect())
                })
            }
        }
    }

    /// Whether the processors stand in for devices.
    pub fn stand_in(&self) -> bool {
        self.device == "host"
    }

    /// The devices as configurations see them.
    pub fn gpus(devices: &Arc<Devices>) -> Gpus {
        let devices = devices.clone();
        Gpus::new(move || {
            let all = devices.all().unwrap_or_default().iter().map(|device| device.properties());
            let gpus = all.filter_map(|properties| {
                let compute_capability = properties.compute_capability;
                Some(Gpu { ordinal: i32::try_from(properties.index).ok()?, compute_capability })
            });
            gpus.collect()
        })
    }

    /// How lanes are to work.
    pub fn fleet_settings(&self) -> FleetSettings {
        let limits = self.model_load_gpu_limit.iter();
        FleetSettings {
            lanes: self.device_lanes.into(),
            scheduler: SchedulerSettings {
                timeline_entries: self.timeline_entries,
                ..SchedulerSettings::default()
            },
            load_limits: limits.map(|limit| (limit.device, limit.value)).collect(),
            pool_bytes: self.pool_bytes(),
        }
    }

    /// The least compute capability, as configurations see it.
    pub fn min_compute_capability(&self) -> f64 {
        let Capability(major, minor) = self.min_supported_compute_capability;
        f64::from(major) + f64::from(minor) / 10.0
    }

    /// What the log is to say of flags about GPUs, where there are none.
    pub fn warnings(&self, devices: &Devices) -> Vec<String> {
        let Capability(major, minor) = self.min_supported_compute_capability;
        let has_pools = !self.cuda_memory_pool_byte_size.is_empty() && !self.stand_in();
        let given = [
            ("cuda-memory-pool-byte-size", has_pools),
            ("min-supported-compute-capability", (major, minor) != (6, 0)),
            ("enable-peer-access", !self.enable_peer_access),
            ("model-load-gpu-limit", !self.model_load_gpu_limit.is_empty()),
        ];
        let given: Vec<&str> =
            given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
        let reason = match (given.is_empty(), &*self.device) {
            (true, _) => return Vec::new(),
            (false, "gpu") => match devices.all() {
                Ok(_) => return Vec::new(),
                Err(reason) => reason.to_owned(),
            },
            (false, kind) => format!("--device={kind}"),
        };
        let warning = |name| format!("accepted, without effect: --{name}: {reason}");
        given.into_iter().map(warning).collect()
    }

    fn pool_bytes(&self) -> Vec<(usize, u64)> {
        let pools = self.cuda_memory_pool_byte_size.iter();
        pools.map(|pool| (pool.device, pool.value)).collect()
    }

    fn cuda_settings(&self) -> CudaSettings {
        let Capability(major, minor) = self.min_supported_compute_capability;
        CudaSettings {
            compute_capability_min: (major, minor),
            pool_bytes: self.pool_bytes(),
            peer_access: self.enable_peer_access,
            kernels: None,
        }
    }

    fn host_settings(&self) -> Vec<HostSettings> {
        let mut each = HostSettings::default();
        let mut count = 1;
        for setting in &self.host_device {
            match *setting {
                HostSetting::Count(devices) => count = devices,
                HostSetting::MemoryBytes(bytes) => each.memory_bytes = bytes,
                HostSetting::Link(bytes_per_second) => {
                    let link = Link { latency: Duration::ZERO, bytes_per_second };
                    (each.copy_in, each.copy_out) = (Some(link), Some(link));
                }
                HostSetting::LaunchLatency(latency) => each.launch_latency = latency,
                HostSetting::Fault(..) => {}
            }
        }
        let of = |index| {
            let mut settings = HostSettings { index, ..each.clone() };
            settings.faults.at = self
                .host_device
                .iter()
                .filter_map(|setting| match *setting {
                    HostSetting::Fault(device, kind, number, fault) if device == index => {
                        Some((kind, number, fault))
                    }
                    _ => None,
                })
                .collect();
            settings
        };
        (0..count).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        device: DeviceArgs,
    }

    fn read(flags: &[&str]) -> Result<DeviceArgs, String> {
        let line = CommandLine::try_parse_from(["nereid"].iter().chain(flags));
        line.map(|line| line.device).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_of_the_host_are_as_they_are_wanted() {
        let flags = [
            "--host-device=count=2",
            "--host-device=memory=4096",
            "--host-device=launch-us=5",
            "--host-device=fail=1:copy:3",
            "--host-device=lose=0:launch:7",
        ];
        let settings = read(&flags).unwrap().host_settings();
        let faults: Vec<_> = settings.iter().map(|it| it.faults.at.clone()).collect();
        let expected =
            [vec![(FaultKind::Launch, 7, Fault::Lose)], vec![(FaultKind::Copy, 3, Fault::Fail)]];
        assert_eq!(faults, expected);
        assert!(settings.iter().all(|it| it.memory_bytes == 4096));
        assert_eq!(settings[1].launch_latency, Duration::from_micros(5));
        for (bad, told) in [
            ("--host-device=count=0", "count cannot be '0'"),
            ("--host-device=fail=0:fire:1", "fail cannot be '0:fire:1'"),
            ("--host-device=speed=1", "expected count, memory, link, launch-us, fail or lose"),
            ("--device=tpu", "[possible values: gpu, host, none]"),
        ] {
            assert!(read(&[bad]).unwrap_err().contains(told), "{bad}");
        }
    }

    #[test]
    fn flags_about_gpus_are_read_and_named_where_there_are_none() {
        let flags = [
            "--cuda-memory-pool-byte-size=0:1024",
            "--cuda-memory-pool-byte-size=1:2048",
            "--min-supported-compute-capability=8.6",
            "--enable-peer-access=false",
            "--model-load-gpu-limit=0:0.5",
        ];
        let args = read(&flags).unwrap();
        let cuda = args.cuda_settings();
        assert_eq!(cuda.pool_bytes, [(0, 1024), (1, 2048)]);
        assert_eq!((cuda.compute_capability_min, cuda.peer_access), ((8, 6), false));
        let fleet = args.fleet_settings();
        assert_eq!((fleet.load_limits, fleet.pool_bytes), (vec![(0, 0.5)], cuda.pool_bytes));
        let warnings = args.warnings(&Devices::none("no driver"));
        let expected = [
            "cuda-memory-pool-byte-size",
            "min-supported-compute-capability",
            "enable-peer-access",
            "model-load-gpu-limit",
        ];
        let expected =
            expected.map(|name| format!("accepted, without effect: --{name}: no driver"));
        assert_eq!(warnings, expected);
        assert!(read(&[]).unwrap().warnings(&Devices::none("no driver")).is_empty());
        for bad in ["--min-supported-compute-capability=x", "--cuda-memory-pool-byte-size=64"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }
}
