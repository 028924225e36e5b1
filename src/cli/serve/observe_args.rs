use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use crate::{
    cli::flags::switch,
    observe::{
        MetricsConfig, MetricsSettings,
        trace::{Level, Settings},
    },
};

/// tritonserver's flags about metrics and traces.
#[derive(Args, Clone, Debug)]
pub struct ObserveArgs {
    /// Whether the metrics tell of the machine's processors and memory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    allow_cpu_metrics: bool,
    /// Milliseconds that lie between two looks at the machine for its metrics, at least
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000)]
    metrics_interval_ms: u64,
    /// What the metrics tell of durations, as <SETTING>=<VALUE>: counter_latencies (true),
    /// histogram_latencies (false), summary_latencies (false), summary_quantiles; may be given
    /// several times
    #[arg(long, value_name = "SETTING")]
    metrics_config: Vec<MetricsConfig>,

    /// How requests are traced, as level=<OFF|TIMESTAMPS|TENSORS>, rate=<N>, count=<N>, mode=triton,
    /// triton,file=<FILE> or triton,log-frequency=<N>; may be given several times
    #[arg(long, value_name = "SETTING")]
    trace_config: Vec<TraceConfig>,
    /// Older form of --trace-config triton,file=<FILE>
    #[arg(long, value_name = "FILE", hide = true)]
    trace_file: Option<PathBuf>,
    /// Older form of --trace-config level=<LEVEL>
    #[arg(long, value_name = "LEVEL", hide = true)]
    trace_level: Vec<String>,
    /// Older form of --trace-config rate=<N>
    #[arg(long, value_name = "N", hide = true)]
    trace_rate: Option<u32>,
    /// Older form of --trace-config count=<N>
    #[arg(long, value_name = "N", hide = true, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    trace_count: Option<i32>,
    /// Older form of --trace-config triton,log-frequency=<N>
    #[arg(long, value_name = "N", hide = true)]
    trace_log_frequency: Option<u32>,
}

/// One setting of `--trace-config`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TraceConfig {
    Level(Level),
    Rate(u32),
    Count(i32),
    Mode,
    File(PathBuf),
    LogFrequency(u32),
}

impl FromStr for TraceConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("expected <setting>=<value> or <mode>,<setting>=<value>, got '{text}'");
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        let number = || format!("expected a number for {name}, got '{value}'");
        match name {
            "level" => level(value).map(Self::Level),
            "rate" => value.parse().map(Self::Rate).map_err(|_| number()),
            "count" => {
                let count = value.parse().ok().filter(|&count| count >= -1);
                count.map(Self::Count).ok_or_else(number)
            }
            "mode" if value == "triton" => Ok(Self::Mode),
            "mode" => Err(format!("expected the trace mode triton, got '{value}'")),
            "triton,file" => Ok(Self::File(value.into())),
            "triton,log-frequency" => value.parse().map(Self::LogFrequency).map_err(|_| number()),
            _ if name.starts_with("opentelemetry,") => {
                Err(format!("traces in OpenTelemetry's form are not supported, got '{text}'"))
            }
            _ => Err(bad()),
        }
    }
}

fn level(name: &str) -> Result<Level, String> {
    Level::by_name(name)
        .ok_or_else(|| format!("expected the trace level OFF, TIMESTAMPS or TENSORS, got '{name}'"))
}

impl ObserveArgs {
    /// What the metrics tell.
    pub fn metrics(&self) -> MetricsSettings {
        let mut settings = MetricsSettings {
            cpu: self.allow_cpu_metrics,
            interval: Duration::from_millis(self.metrics_interval_ms),
            ..MetricsSettings::default()
        };
        self.metrics_config.iter().for_each(|setting| settings.set(setting));
        settings
    }

    /// Where traces go, and which requests are traced. The newer flags win.
    ///
    /// # Errors
    /// When nothing could be traced so.
    pub fn traces(&self) -> Result<(Option<PathBuf>, Settings), String> {
        let mut file = self.trace_file.clone();
        let mut settings = Settings::default();
        settings.rate = self.trace_rate.unwrap_or(settings.rate);
        settings.count = self.trace_count.unwrap_or(settings.count);
        settings.log_frequency = self.trace_log_frequency.unwrap_or(settings.log_frequency);
        for name in &self.trace_level {
            settings.level = settings.level | level(name)?;
        }
        let mut levels = None;
        for setting in &self.trace_config {
            match setting {
                TraceConfig::Level(level) => {
                    levels = Some(levels.unwrap_or(Level::OFF) | *level);
                }
                TraceConfig::Rate(rate) => settings.rate = *rate,
                TraceConfig::Count(count) => settings.count = *count,
                TraceConfig::Mode => {}
                TraceConfig::File(path) => file = Some(path.clone()),
                TraceConfig::LogFrequency(traces) => settings.log_frequency = *traces,
            }
        }
        settings.level = levels.unwrap_or(settings.level);
        match settings {
            Settings { level: Level::OFF, .. } => Ok((file, settings)),
            Settings { rate: 0, .. } => Err("the trace rate must not be zero".to_owned()),
            _ if file.is_none() => Err("--trace-config triton,file=<FILE> is missing: where the \
                                        traces go"
                .to_owned()),
            _ => Ok((file, settings)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        observe: ObserveArgs,
    }

    fn parse(flags: &[&str]) -> Result<ObserveArgs, String> {
        CommandLine::try_parse_from(["nereid"].iter().chain(flags))
            .map(|line| line.observe)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn traces_are_configured_by_flags_new_and_old() {
        let new = [
            "--trace-config=triton,file=/t/x",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=level=TENSORS",
            "--trace-config=rate=3",
            "--trace-config=count=5",
            "--trace-config=triton,log-frequency=7",
            "--trace-config=mode=triton",
        ];
        let expected = Settings {
            level: Level::TIMESTAMPS | Level::TENSORS,
            rate: 3,
            count: 5,
            log_frequency: 7,
        };
        let file = Some(PathBuf::from("/t/x"));
        assert_eq!(parse(&new).unwrap().traces(), Ok((file.clone(), expected)));
        let old = [
            "--trace-file=/t/x",
            "--trace-level=TIMESTAMPS",
            "--trace-level=TENSORS",
            "--trace-rate=3",
            "--trace-count=5",
            "--trace-log-frequency=7",
        ];
        assert_eq!(parse(&old).unwrap().traces(), Ok((file, expected)));
        assert_eq!(parse(&[]).unwrap().traces(), Ok((None, Settings::default())));
        assert!(parse(&["--trace-config=level=TIMESTAMPS"]).unwrap().traces().is_err());
        for bad in ["level=MAX", "rate=x", "count=-2", "mode=opentelemetry", "x", "triton,x=1"] {
            assert!(parse(&[&format!("--trace-config={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn metrics_are_configured_by_flags() {
        let flags = [
            "--allow-cpu-metrics=false",
            "--metrics-interval-ms=5",
            "--metrics-config=summary_latencies=true",
            "--metrics-config",
            "summary_quantiles=0.5:0.05",
        ];
        let settings = parse(&flags).unwrap().metrics();
        let expected = MetricsSettings {
            cpu: false,
            interval: Duration::from_millis(5),
            summaries: true,
            quantiles: vec![0.5],
            ..MetricsSettings::default()
        };
        assert_eq!(settings, expected);
        assert!(parse(&["--metrics-config=x=1"]).is_err());
    }
}
