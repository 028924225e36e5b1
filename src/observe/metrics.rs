use std::{str::FromStr, time::Duration};

use super::latency::Plan;
use crate::proto::ModelConfig;

/// What the metrics tell.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSettings {
    /// Whether the machine's processors and memory are told of.
    pub cpu: bool,
    /// Whether its GPUs are.
    pub gpu: bool,
    /// How often the machine is looked at, at most.
    pub interval: Duration,
    /// Whether the sums of durations are told.
    pub counters: bool,
    /// Whether histograms are kept.
    pub histograms: bool,
    /// Whether summaries are kept.
    pub summaries: bool,
    /// The quantiles of summaries, each between 0 and 1.
    pub quantiles: Vec<f64>,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            cpu: true,
            gpu: true,
            interval: Duration::from_secs(2),
            counters: true,
            histograms: false,
            summaries: false,
            quantiles: vec![0.5, 0.9, 0.95, 0.99, 0.999],
        }
    }
}

impl MetricsSettings {
    /// What is kept of a model with this configuration.
    pub fn plan(&self, config: &ModelConfig) -> Plan {
        Plan::new(config, self.histograms, self.summaries)
    }

    /// Takes over a setting of `--metrics-config`.
    pub fn set(&mut self, setting: &MetricsConfig) {
        match setting {
            MetricsConfig::Counters(on) => self.counters = *on,
            MetricsConfig::Histograms(on) => self.histograms = *on,
            MetricsConfig::Summaries(on) => self.summaries = *on,
            MetricsConfig::Quantiles(quantiles) => self.quantiles.clone_from(quantiles),
        }
    }
}

/// One setting of `--metrics-config`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetricsConfig {
    Counters(bool),
    Histograms(bool),
    Summaries(bool),
    Quantiles(Vec<f64>),
}

impl FromStr for MetricsConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| format!("expected <setting>=<value>, got '{text}'"))?;
        let switch = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("expected {name} to be true or false, got '{value}'")),
        };
        Ok(match name {
            "counter_latencies" => Self::Counters(switch()?),
            "histogram_latencies" => Self::Histograms(switch()?),
            "summary_latencies" => Self::Summaries(switch()?),
            "summary_quantiles" => Self::Quantiles(quantiles(value)?),
            _ => {
                return Err(format!(
                    "expected counter_latencies, histogram_latencies, summary_latencies or \
                     summary_quantiles, got '{name}'"
                ));
            }
        })
    }
}

/// `<quantile>:<error>` with commas between them. Errors are checked and not used: all quantiles are
/// exact to within a sixteenth of their value.
fn quantiles(text: &str) -> Result<Vec<f64>, String> {
    let share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    text.split(',')
        .map(|pair| {
            let (quantile, error) = pair.split_once(':')?;
            share(error).and(share(quantile))
        })
        .collect::<Option<Vec<f64>>>()
        .ok_or_else(|| {
            format!(
                "expected <quantile>:<error> with numbers from 0 to 1 and commas between them, got \
                 '{text}'"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_triton_writes_them() {
        let mut settings = MetricsSettings::default();
        for text in [
            "counter_latencies=false",
            "histogram_latencies=true",
            "summary_latencies=true",
            "summary_quantiles=0.5:0.05,0.9:0.01",
        ] {
            settings.set(&text.parse().unwrap());
        }
        let expected = MetricsSettings {
            counters: false,
            histograms: true,
            summaries: true,
            quantiles: vec![0.5, 0.9],
            ..MetricsSettings::default()
        };
        assert_eq!(settings, expected);
        for bad in [
            "x",
            "x=1",
            "summary_latencies=yes",
            "summary_quantiles=0.5",
            "summary_quantiles=1.5:0.1",
            "summary_quantiles=",
        ] {
            assert!(bad.parse::<MetricsConfig>().is_err(), "{bad}");
        }
    }
}
