//! How loaded a language model is, for whoever spreads requests over servers: a header of an answer, in the
//! forms of ORCA (Open Request Cost Aggregation), for clients that ask for it by a header of theirs.

use http::HeaderValue;

use crate::observe::custom::CustomMetrics;

/// The header by which a client asks, for `json` or `text`.
pub const FORMAT: &str = "endpoint-load-metrics-format";
/// The header of the answer.
pub const NAME: &str = "endpoint-load-metrics";

/// The metrics by which models tell of their caches, as TensorRT-LLM's do.
const FAMILY: &str = "nv_trt_llm_kv_cache_block_metrics";
const LABEL: &str = "kv_cache_block_type";

/// The answer's header in the form that is asked for; `None` for another form, or when no model tells of
/// its cache.
pub fn header(format: &HeaderValue, metrics: &CustomMetrics) -> Option<HeaderValue> {
    let samples = metrics.numbers(FAMILY);
    let blocks = |kind: &str| {
        let mut found = samples.iter().rev();
        let found = found.find(|(labels, _)| labels.get(LABEL).is_some_and(|label| label == kind));
        found.map(|(_, value)| *value).filter(|value| *value >= 0.0)
    };
    let (used, max, tokens_per) = (blocks("used")?, blocks("max")?, blocks("tokens_per")?);
    let used = if max > 0.0 { used / max } else { 0.0 };
    // What does not fit becomes the largest that does.
    let capacity = (max * tokens_per) as u64;
    let text = match format.as_bytes() {
        b"json" => format!(
            r#"JSON {{"named_metrics":{{"kv_cache_utilization":{used:?},"max_token_capacity":{capacity}}}}}"#
        ),
        b"text" => format!(
            "TEXT named_metrics.kv_cache_utilization={used:.6}, \
             named_metrics.max_token_capacity={capacity}"
        ),
        _ => return None,
    };
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::custom::MetricKind;

    #[test]
    fn the_cache_is_told_in_both_forms() {
        let metrics = Arc::new(CustomMetrics::default());
        let header = |format| {
            let header = header(&HeaderValue::from_static(format), &metrics);
            header.map(|value| value.to_str().unwrap().to_owned())
        };
        let family = metrics.family(FAMILY, "", MetricKind::Gauge).unwrap();
        let mut held = Vec::new();
        for (kind, value) in [("used", 3.0), ("max", 12.0), ("free", 9.0), ("tokens_per", 64.0)] {
            assert_eq!(header("json"), None);
            let labels = [("model", "m"), (LABEL, kind)];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let metric = family.metric(labels.into(), &[]).unwrap();
            metric.set(value).unwrap();
            held.push(metric);
        }
        let json =
            r#"JSON {"named_metrics":{"kv_cache_utilization":0.25,"max_token_capacity":768}}"#;
        assert_eq!(header("json").as_deref(), Some(json));
        let text = "TEXT named_metrics.kv_cache_utilization=0.250000, named_metrics.max_token_capacity=768";
        assert_eq!(header("text").as_deref(), Some(text));
        assert_eq!(header("xml"), None);
        held[1].set(0.0).unwrap();
        assert!(header("json").unwrap().contains(r#""kv_cache_utilization":0.0,"#));
    }
}
