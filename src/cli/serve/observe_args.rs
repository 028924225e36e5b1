use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use crate::{
    cli::flags::switch,
    observe::{
        MetricsConfig, MetricsSettings,
        gpu::{GpuMetrics, Management},
        trace::{Level, OpenTelemetry, Output, Settings},
    },
    runtime::post,
};

/// Where a collector of traces listens.
const COLLECTOR: &str = "http://localhost:4318/v1/traces";
/// How long a collector of traces may take to answer.
const COLLECTOR_PATIENCE: Duration = Duration::from_secs(10);

/// tritonserver's flags about metrics and traces.
#[derive(Args, Clone, Debug)]
pub struct ObserveArgs {
    /// Whether the metrics tell of the machine's processors and memory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    allow_cpu_metrics: bool,
    /// Whether the metrics tell of the machine's GPUs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "true", value_parser = switch(), action = clap::ArgAction::Set)]
    allow_gpu_metrics: bool,
    /// Milliseconds that lie between two looks at the machine for its metrics, at least
    #[arg(long, value_name = "MILLISECONDS", default_value = "2000", value_parser = milliseconds)]
    metrics_interval_ms: Duration,
    /// What the metrics tell of durations, as <SETTING>=<VALUE>: counter_latencies (true),
    /// histogram_latencies (false), summary_latencies (false), summary_quantiles; may be given
    /// several times
    #[arg(long, value_name = "SETTING")]
    metrics_config: Vec<MetricsConfig>,

    /// How requests are traced, as level=<OFF|TIMESTAMPS|TENSORS>, rate=<N>, count=<N>,
    /// mode=<triton|opentelemetry>, triton,file=<FILE>, triton,log-frequency=<N>, opentelemetry,url=<URL>,
    /// opentelemetry,resource=<KEY>=<VALUE> or
    /// opentelemetry,bsp_<max_queue_size|schedule_delay|max_export_batch_size>=<N>; may be given several
    /// times
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
    Mode(Mode),
    File(PathBuf),
    LogFrequency(u32),
    Url(String),
    Resource(String, String),
    QueueMax(usize),
    ScheduleDelay(Duration),
    BatchMax(usize),
}

/// The form that traces have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Triton,
    OpenTelemetry,
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
            "mode" => match value {
                "triton" => Ok(Self::Mode(Mode::Triton)),
                "opentelemetry" => Ok(Self::Mode(Mode::OpenTelemetry)),
                _ => Err(format!("expected the trace mode triton or opentelemetry, got '{value}'")),
            },
            "triton,file" => Ok(Self::File(value.into())),
            "triton,log-frequency" => value.parse().map(Self::LogFrequency).map_err(|_| number()),
            "opentelemetry,url" => Ok(Self::Url(value.to_owned())),
            "opentelemetry,resource" => {
                let (key, value) = value.split_once('=').ok_or_else(|| {
                    format!("expected opentelemetry,resource=<key>=<value>, got '{text}'")
                })?;
                Ok(Self::Resource(key.to_owned(), value.to_owned()))
            }
            "opentelemetry,bsp_max_queue_size" => {
                value.parse().map(Self::QueueMax).map_err(|_| number())
            }
            "opentelemetry,bsp_schedule_delay" => {
                let delay = value.parse().map(Duration::from_millis);
                delay.map(Self::ScheduleDelay).map_err(|_| number())
            }
            "opentelemetry,bsp_max_export_batch_size" => {
                value.parse().map(Self::BatchMax).map_err(|_| number())
            }
            _ => Err(bad()),
        }
    }
}

fn level(name: &str) -> Result<Level, String> {
    Level::by_name(name)
        .ok_or_else(|| format!("expected the trace level OFF, TIMESTAMPS or TENSORS, got '{name}'"))
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let duration = number.and_then(|number| Duration::try_from_secs_f64(number / 1000.0).ok());
    duration.ok_or_else(|| format!("expected a number of milliseconds, got '{text}'"))
}

impl ObserveArgs {
    /// What the metrics tell.
    pub fn metrics(&self) -> MetricsSettings {
        let mut settings = MetricsSettings {
            cpu: self.allow_cpu_metrics,
            gpu: self.allow_gpu_metrics,
            interval: self.metrics_interval_ms,
            ..MetricsSettings::default()
        };
        self.metrics_config.iter().for_each(|setting| settings.set(setting));
        settings
    }

    /// The metrics of GPUs, where there are any and they are wanted.
    pub fn gpus(&self) -> Option<GpuMetrics> {
        if !self.allow_gpu_metrics {
            return None;
        }
        let interval = self.metrics_interval_ms.max(Duration::from_millis(1));
        match Management::open() {
            Ok(management) => GpuMetrics::start(management, interval)
                .inspect_err(|error| log::warn!("GPUs are not measured: {error}"))
                .ok(),
            Err(reason) => {
                log::debug!("there are no metrics of GPUs: {reason}");
                None
            }
        }
    }

    /// Where traces go, and which requests are traced. The newer flags win.
    ///
    /// # Errors
    /// When nothing could be traced so.
    pub fn traces(&self) -> Result<(Output, Settings), String> {
        let mut file = self.trace_file.clone();
        let mut settings = Settings::default();
        settings.rate = self.trace_rate.unwrap_or(settings.rate);
        settings.count = self.trace_count.unwrap_or(settings.count);
        settings.log_frequency = self.trace_log_frequency.unwrap_or(settings.log_frequency);
        for name in &self.trace_level {
            settings.level = settings.level | level(name)?;
        }
        let mut levels = None;
        let mut mode = Mode::Triton;
        for setting in &self.trace_config {
            match setting {
                TraceConfig::Level(level) => {
                    levels = Some(levels.unwrap_or(Level::OFF) | *level);
                }
                TraceConfig::Rate(rate) => settings.rate = *rate,
                TraceConfig::Count(count) => settings.count = *count,
                TraceConfig::Mode(wanted) => mode = *wanted,
                TraceConfig::File(path) => file = Some(path.clone()),
                TraceConfig::LogFrequency(traces) => settings.log_frequency = *traces,
                TraceConfig::Url(_)
                | TraceConfig::Resource(..)
                | TraceConfig::QueueMax(_)
                | TraceConfig::ScheduleDelay(_)
                | TraceConfig::BatchMax(_) => {}
            }
        }
        settings.level = levels.unwrap_or(settings.level);
        let output = match (mode, file) {
            (Mode::OpenTelemetry, _) => Output::OpenTelemetry(self.opentelemetry()),
            (Mode::Triton, Some(file)) => Output::File(file),
            (Mode::Triton, None) => Output::None,
        };
        match (settings, &output) {
            (Settings { level: Level::OFF, .. }, _) => Ok((output, settings)),
            (Settings { rate: 0, .. }, _) => Err("the trace rate must not be zero".to_owned()),
            (_, Output::None) => Err("--trace-config triton,file=<FILE> is missing: where the \
                                      traces go"
                .to_owned()),
            _ => Ok((output, settings)),
        }
    }

    /// How traces are sent; what is not given is as in tritonserver.
    fn opentelemetry(&self) -> OpenTelemetry {
        let mut urls = self.trace_config.iter().filter_map(|setting| match setting {
            TraceConfig::Url(url) => Some(url.clone()),
            _ => None,
        });
        let url = urls.next_back().unwrap_or_else(|| COLLECTOR.to_owned());
        let send = move |body| post(&url, "application/x-protobuf", body, COLLECTOR_PATIENCE);
        let mut sender = OpenTelemetry {
            resource: BTreeMap::from([("service.name".into(), "triton-inference-server".into())]),
            queue_max: 2048,
            schedule_delay: Duration::from_secs(5),
            batch_max: 512,
            post: Box::new(send),
        };
        for setting in &self.trace_config {
            match setting {
                TraceConfig::Resource(key, value) => {
                    sender.resource.insert(key.clone(), value.clone());
                }
                TraceConfig::QueueMax(most) => sender.queue_max = *most,
                TraceConfig::ScheduleDelay(delay) => sender.schedule_delay = *delay,
                TraceConfig::BatchMax(most) => sender.batch_max = *most,
                _ => {}
            }
        }
        sender
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
        let traces = |flags: &[&str]| {
            let (output, settings) = parse(flags).unwrap().traces().unwrap();
            let file = match output {
                Output::File(file) => Some(file),
                Output::None => None,
                Output::OpenTelemetry(_) => panic!("not to a file"),
            };
            (file, settings)
        };
        let file = Some(PathBuf::from("/t/x"));
        assert_eq!(traces(&new), (file.clone(), expected));
        let old = [
            "--trace-file=/t/x",
            "--trace-level=TIMESTAMPS",
            "--trace-level=TENSORS",
            "--trace-rate=3",
            "--trace-count=5",
            "--trace-log-frequency=7",
        ];
        assert_eq!(traces(&old), (file, expected));
        assert_eq!(traces(&[]), (None, Settings::default()));
        assert!(parse(&["--trace-config=level=TIMESTAMPS"]).unwrap().traces().is_err());
        for bad in ["level=MAX", "rate=x", "count=-2", "mode=jaeger", "x", "triton,x=1"] {
            assert!(parse(&[&format!("--trace-config={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_configured_by_flags() {
        let flags = [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=opentelemetry,url=http://127.0.0.1:1/v1/traces",
            "--trace-config=opentelemetry,resource=service.name=mine",
            "--trace-config=opentelemetry,resource=a=b=c",
            "--trace-config=opentelemetry,bsp_max_queue_size=7",
            "--trace-config=opentelemetry,bsp_schedule_delay=8",
            "--trace-config=opentelemetry,bsp_max_export_batch_size=9",
        ];
        let (output, settings) = parse(&flags).unwrap().traces().unwrap();
        let Output::OpenTelemetry(mut sender) = output else { panic!("not to a collector") };
        assert_eq!(settings.level, Level::TIMESTAMPS);
        let resource = [("a", "b=c"), ("service.name", "mine")];
        assert!(sender.resource.iter().map(|(key, value)| (&**key, &**value)).eq(resource));
        assert_eq!((sender.queue_max, sender.batch_max), (7, 9));
        assert_eq!(sender.schedule_delay, Duration::from_millis(8));
        let refused = (sender.post)(Vec::new()).unwrap_err();
        assert!(refused.contains("http://127.0.0.1:1/v1/traces"), "{refused}");
        for bad in ["opentelemetry,resource=x", "opentelemetry,bsp_schedule_delay=x"] {
            assert!(parse(&[&format!("--trace-config={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn metrics_are_configured_by_flags() {
        let flags = [
            "--allow-cpu-metrics=false",
            "--metrics-interval-ms=2.5",
            "--metrics-config=summary_latencies=true",
            "--metrics-config",
            "summary_quantiles=0.5:0.05",
        ];
        let settings = parse(&flags).unwrap().metrics();
        let expected = MetricsSettings {
            cpu: false,
            interval: Duration::from_micros(2500),
            summaries: true,
            quantiles: vec![0.5],
            ..MetricsSettings::default()
        };
        assert_eq!(settings, expected);
        for bad in ["--metrics-config=x=1", "--metrics-interval-ms=-1", "--metrics-interval-ms=x"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
