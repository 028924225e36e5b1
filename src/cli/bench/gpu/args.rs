use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::overlap::Combination;

/// Measures devices: how well copies overlap with execution, which is batches of a synthetic model through
/// lanes beside what the busiest engine takes alone; what copies reach by themselves; what one launch saves
/// that gathers many places, and what graphs save.
#[derive(Args, Clone, Debug)]
pub struct GpuArgs {
    /// What to measure on; all that there is when not given.
    #[arg(long, value_enum)]
    pub device: Vec<Kind>,

    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Measure::Overlap])]
    pub measure: Vec<Measure>,

    /// Batches for each device.
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = up_to::<{ 100_000 }>)]
    pub batches: usize,

    /// Bytes of a batch's input, and of its output.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [65_536, 1 << 20, 16 << 20],
        value_parser = up_to::<{ 1 << 28 }>)]
    pub bytes: Vec<usize>,

    /// Batches on their way through an instance at a time.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 3],
        value_parser = up_to::<{ 64 }>)]
    pub lanes: Vec<usize>,

    /// Models that share the devices.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2],
        value_parser = up_to::<{ 64 }>)]
    pub models: Vec<usize>,

    /// Devices; of GPUs at most those that there are.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1],
        value_parser = up_to::<{ 16 }>)]
    pub devices: Vec<usize>,

    /// Microseconds that the model runs; as long as a copy takes when not given.
    #[arg(long, value_name = "N")]
    pub execute_us: Option<u64>,

    /// Bytes in a second of the links of host and simulated devices, and what GPUs' are taken for when
    /// the time of the model is derived from it.
    #[arg(long, value_name = "N", default_value_t = 1e9, value_parser = positive)]
    pub link_bytes_per_second: f64,

    /// A fatbin of kernels/all.cu, for a program that was built without one.
    #[arg(long, value_name = "FILE")]
    pub gpu_kernels: Option<PathBuf>,

    /// A file for the figures, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// Batches through lanes, beside the busiest engine alone, and the device's memory that they leave taken.
    Overlap,
    /// Copies of pinned and of pageable memory, in each direction and in both at once; not in virtual time.
    Copies,
    /// Many places brought together by one launch, beside a copy for each; not in virtual time.
    Gather,
    /// Small launches one by one, beside the same in a graph; not in virtual time.
    Graphs,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// GPUs.
    Cuda,
    /// Engines on the host, as threads.
    Host,
    /// The same in virtual time.
    Virtual,
}

impl Kind {
    /// As the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Host => "host",
            Self::Virtual => "virtual",
        }
    }
}

impl GpuArgs {
    pub(super) fn kinds(&self) -> Vec<Kind> {
        match self.device.is_empty() {
            true => vec![Kind::Cuda, Kind::Host, Kind::Virtual],
            false => self.device.clone(),
        }
    }

    pub(super) fn combinations(&self) -> Vec<Combination> {
        let mut combinations = Vec::new();
        for &devices in &self.devices {
            for &models in &self.models {
                for &bytes in &self.bytes {
                    let lanes = self.lanes.iter();
                    combinations.extend(lanes.map(|&lanes| Combination {
                        devices,
                        models,
                        lanes,
                        bytes,
                    }));
                }
            }
        }
        combinations
    }

    /// How long the model runs with a batch of `bytes`.
    pub(super) fn execute(&self, bytes: usize) -> Duration {
        let copy = || Duration::from_secs_f64(bytes as f64 / self.link_bytes_per_second);
        self.execute_us.map_or_else(copy, Duration::from_micros)
    }
}

/// A number from 1 to `MAX`.
fn up_to<const MAX: usize>(text: &str) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| format!("'{text}' is not a whole number"))?;
    match (1..=MAX).contains(&value) {
        true => Ok(value),
        false => Err(format!("{value} is not from 1 to {MAX}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number"))?;
    match value.is_finite() && value >= 1.0 {
        true => Ok(value),
        false => Err(format!("{value} is not a number of at least 1")),
    }
}

#[cfg(test)]
impl GpuArgs {
    /// Those of a command line, for tests.
    pub(super) fn of(flags: &[&str]) -> Self {
        use clap::FromArgMatches;

        let command = Self::augment_args(clap::Command::new("gpu").no_binary_name(true));
        Self::from_arg_matches(&command.get_matches_from(flags)).unwrap()
    }
}
