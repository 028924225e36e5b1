use super::Fault;
use crate::proto::{ModelConfig, model_metrics::metric_control::MetricOptions};

pub(super) fn check(config: &ModelConfig) -> Result<(), Fault> {
    let controls = config.model_metrics.iter().flat_map(|metrics| &metrics.metric_control);
    for (index, control) in controls.enumerate() {
        let field = format!("model_metrics.metric_control[{index}]");
        let Some(identifier) = &control.metric_identifier else {
            return Err(Fault::new(field, "metric control must specify 'metric_identifier'"));
        };
        if identifier.family.is_empty() {
            return Err(Fault::new(field, "metric identifier must specify non-empty 'family'"));
        }
        let Some(MetricOptions::HistogramOptions(histogram)) = &control.metric_options else {
            return Err(Fault::new(field, "metric control must specify 'histogram_options'"));
        };
        if histogram.buckets.is_empty() {
            return Err(Fault::new(field, "histogram options must specify non-empty 'buckets'"));
        }
    }
    Ok(())
}
