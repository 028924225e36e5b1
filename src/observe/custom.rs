//! Metrics that models define themselves.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How the value of a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts observations by their size.
    Histogram,
}

impl MetricKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    const fn constant(self) -> &'static str {
        match self {
            Self::Counter => "TRITONSERVER_METRIC_KIND_COUNTER",
            Self::Gauge => "TRITONSERVER_METRIC_KIND_GAUGE",
            Self::Histogram => "TRITONSERVER_METRIC_KIND_HISTOGRAM",
        }
    }
}

/// What cannot be done with a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum MetricError {
    #[error("'{name}' is no name for a metric family: expected letters, digits, '_' and ':'")]
    Name { name: String },
    #[error("metric family '{name}' is a {is} already, expected the same kind, got a {got}")]
    Kind { name: String, is: &'static str, got: &'static str },
    #[error("the buckets of metric family '{name}' must ascend")]
    Buckets { name: String },
    #[error("{0} does not support {1}")]
    Unsupported(&'static str, &'static str),
    #[error("{} can only be incremented monotonically by non-negative values.",
        MetricKind::Counter.constant())]
    Negative,
}

/// All metrics that models have defined. Models touch them rarely, so one lock is enough.
#[derive(Debug, Default)]
pub struct CustomMetrics(Mutex<BTreeMap<String, Entry>>);

/// A family: there as long as someone holds it or one of its metrics.
#[derive(Debug)]
struct Entry {
    kind: MetricKind,
    help: String,
    holders: usize,
    metrics: BTreeMap<Labels, Sample>,
}

/// The labels of a metric, by their names.
pub type Labels = BTreeMap<String, String>;

#[derive(Debug)]
struct Sample {
    holders: usize,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram { bounds: Vec<f64>, counts: Vec<u64>, sum: f64 },
}

/// A metric family that someone holds.
#[derive(Debug)]
pub struct Family {
    all: Arc<CustomMetrics>,
    name: String,
}

/// A metric that someone holds.
#[derive(Debug)]
pub struct Metric {
    family: Arc<Family>,
    labels: Labels,
}

impl CustomMetrics {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The family `name`, which is made if it is not there; the first who names it gives the help.
    ///
    /// # Errors
    /// When it is there and of another kind, or the name is none.
    pub fn family(
        self: &Arc<Self>,
        name: &str,
        help: &str,
        kind: MetricKind,
    ) -> Result<Arc<Family>, MetricError> {
        let mut characters = name.chars();
        let starts =
            characters.next().is_some_and(|it| it.is_ascii_alphabetic() || "_:".contains(it));
        if !starts || !characters.all(|it| it.is_ascii_alphanumeric() || "_:".contains(it)) {
            return Err(MetricError::Name { name: name.to_owned() });
        }
        let mut entries = self.entries();
        let entry = entries.entry(name.to_owned()).or_insert_with(|| Entry {
            kind,
            help: help.to_owned(),
            holders: 0,
            metrics: BTreeMap::new(),
        });
        if entry.kind != kind {
            let (is, got) = (entry.kind.name(), kind.name());
            return Err(MetricError::Kind { name: name.to_owned(), is, got });
        }
        entry.holders += 1;
        Ok(Arc::new(Family { all: self.clone(), name: name.to_owned() }))
    }

    /// The values of a family of counters or gauges, by their labels; none where there is no such family.
    pub fn numbers(&self, name: &str) -> Vec<(Labels, f64)> {
        let entries = self.entries();
        let samples = entries.get(name).into_iter().flat_map(|entry| &entry.metrics);
        let numbers = samples.filter_map(|(labels, sample)| match sample.value {
            Value::Number(value) => Some((labels.clone(), value)),
            Value::Histogram { .. } => None,
        });
        numbers.collect()
    }

    /// Appends all metrics to a page for Prometheus.
    pub fn render(&self, page: &mut String) {
        for (name, entry) in &*self.entries() {
            if entry.metrics.is_empty() {
                continue;
            }
            // Writing to a string cannot fail.
            let _ = writeln!(page, "# HELP {name} {}", escaped(&entry.help, false));
            let _ = writeln!(page, "# TYPE {name} {}", entry.kind.name());
            for (labels, sample) in &entry.metrics {
                sample.value.render(page, name, labels);
            }
        }
    }
}

impl Value {
    fn render(&self, page: &mut String, name: &str, labels: &Labels) {
        match self {
            Self::Number(value) => {
                let _ = writeln!(page, "{name}{} {value}", label_text(labels, None));
            }
            Self::Histogram { bounds, counts, sum } => {
                let mut total = 0;
                let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                let mut buckets = String::new();
                for (bound, count) in bounds.zip(counts) {
                    total += count;
                    let labels = label_text(labels, Some(&bound));
                    let _ = writeln!(buckets, "{name}_bucket{labels} {total}");
                }
                let labels = label_text(labels, None);
                let _ = write!(
                    page,
                    "{name}_count{labels} {total}\n{name}_sum{labels} {sum}\n{buckets}"
                );
            }
        }
    }
}

fn label_text(labels: &Labels, bound: Option<&str>) -> String {
    let pairs = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let pairs: Vec<String> = pairs
        .chain(bound.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn escaped(text: &str, with_quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if with_quotes { text.replace('"', "\\\"") } else { text }
}

impl Family {
    /// The metric with these labels, which is made if it is not there; `bounds` are a histogram's.
    ///
    /// # Errors
    /// When the bounds do not ascend.
    pub fn metric(self: &Arc<Self>, labels: Labels, bounds: &[f64]) -> Result<Metric, MetricError> {
        let ascends =
            bounds.iter().zip(bounds.iter().skip(1)).all(|(before, after)| before < after);
        if !ascends {
            return Err(MetricError::Buckets { name: self.name.clone() });
        }
        self.with_entry(|entry| {
            let kind = entry.kind;
            let sample = entry.metrics.entry(labels.clone()).or_insert_with(|| Sample {
                holders: 0,
                value: match kind {
                    MetricKind::Counter | MetricKind::Gauge => Value::Number(0.0),
                    MetricKind::Histogram => Value::Histogram {
                        bounds: bounds.to_vec(),
                        counts: vec![0; bounds.len() + 1],
                        sum: 0.0,
                    },
                },
            });
            sample.holders += 1;
        });
        Ok(Metric { family: self.clone(), labels })
    }

    fn with_entry<T>(&self, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.all.entries().get_mut(&self.name).map(act)
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let mut entries = self.all.entries();
        if let Some(entry) = entries.get_mut(&self.name) {
            entry.holders -= 1;
            if entry.holders == 0 {
                entries.remove(&self.name);
            }
        }
    }
}

impl Metric {
    fn with_value<T>(&self, act: impl FnOnce(MetricKind, &mut Value) -> T) -> Option<T> {
        let found = self.family.with_entry(|entry| {
            let sample = entry.metrics.get_mut(&self.labels)?;
            Some(act(entry.kind, &mut sample.value))
        });
        found.flatten()
    }

    fn act(
        &self,
        name: &'static str,
        act: impl FnOnce(MetricKind, &mut Value) -> Option<Result<(), MetricError>>,
    ) -> Result<(), MetricError> {
        let acted = self.with_value(|kind, value| {
            act(kind, value).unwrap_or(Err(MetricError::Unsupported(kind.constant(), name)))
        });
        acted.unwrap_or(Ok(()))
    }

    /// Adds to a counter or a gauge.
    ///
    /// # Errors
    /// When a counter would shrink, or it is a histogram.
    pub fn increment(&self, by: f64) -> Result<(), MetricError> {
        self.act("Increment", |kind, value| match (kind, value) {
            (MetricKind::Counter, Value::Number(_)) if by < 0.0 => Some(Err(MetricError::Negative)),
            (_, Value::Number(value)) => {
                *value += by;
                Some(Ok(()))
            }
            (_, Value::Histogram { .. }) => None,
        })
    }

    /// Sets a gauge.
    ///
    /// # Errors
    /// When it is none.
    pub fn set(&self, to: f64) -> Result<(), MetricError> {
        self.act("Set", |kind, value| match (kind, value) {
            (MetricKind::Gauge, Value::Number(value)) => {
                *value = to;
                Some(Ok(()))
            }
            _ => None,
        })
    }

    /// Adds an observation to a histogram.
    ///
    /// # Errors
    /// When it is none.
    pub fn observe(&self, observed: f64) -> Result<(), MetricError> {
        self.act("Observe", |_, value| match value {
            Value::Histogram { bounds, counts, sum } => {
                let bucket = bounds.partition_point(|bound| *bound < observed);
                if let Some(count) = counts.get_mut(bucket) {
                    *count += 1;
                }
                *sum += observed;
                Some(Ok(()))
            }
            Value::Number(_) => None,
        })
    }

    /// The value of a counter or a gauge.
    ///
    /// # Errors
    /// When it is a histogram.
    pub fn value(&self) -> Result<f64, MetricError> {
        let value = self.with_value(|kind, value| match value {
            Value::Number(value) => Ok(*value),
            Value::Histogram { .. } => Err(MetricError::Unsupported(kind.constant(), "Value")),
        });
        value.unwrap_or(Ok(0.0))
    }
}

impl Drop for Metric {
    fn drop(&mut self) {
        self.family.with_entry(|entry| {
            if let Some(sample) = entry.metrics.get_mut(&self.labels) {
                sample.holders -= 1;
                if sample.holders == 0 {
                    entry.metrics.remove(&self.labels);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn page(all: &CustomMetrics) -> String {
        let mut page = String::new();
        all.render(&mut page);
        page
    }

    #[test]
    fn metrics_are_on_the_page_as_long_as_someone_holds_them() {
        let all = Arc::new(CustomMetrics::default());
        let family = all.family("requests", "How many\nthere were", MetricKind::Counter).unwrap();
        assert_eq!(page(&all), "");
        let metric = family.metric(labels(&[("model", "a\"b")]), &[]).unwrap();
        let again = all.family("requests", "other words", MetricKind::Counter).unwrap();
        let same = again.metric(labels(&[("model", "a\"b")]), &[]).unwrap();
        metric.increment(1.5).unwrap();
        same.increment(1.0).unwrap();
        let expected = "# HELP requests How many\\nthere were\n# TYPE requests counter\n\
                        requests{model=\"a\\\"b\"} 2.5\n";
        assert_eq!(page(&all), expected);
        drop((family, metric));
        assert_eq!(page(&all), expected);
        drop((again, same));
        assert_eq!(page(&all), "");
        assert!(all.entries().is_empty());
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let all = Arc::new(CustomMetrics::default());
        let family = all.family("sizes", "Sizes", MetricKind::Histogram).unwrap();
        let metric = family.metric(Labels::new(), &[1.0, 10.0]).unwrap();
        for value in [0.5, 1.0, 5.0, 100.0] {
            metric.observe(value).unwrap();
        }
        let expected = "# HELP sizes Sizes\n# TYPE sizes histogram\nsizes_count 4\nsizes_sum 106.5\n\
                        sizes_bucket{le=\"1\"} 2\nsizes_bucket{le=\"10\"} 3\nsizes_bucket{le=\"+Inf\"} 4\n";
        assert_eq!(page(&all), expected);
        assert!(family.metric(Labels::new(), &[2.0, 1.0]).is_err());
    }

    #[test]
    fn each_kind_does_what_it_can() {
        let all = Arc::new(CustomMetrics::default());
        let metric = |name, kind| {
            let family = all.family(name, "", kind).unwrap();
            family.metric(Labels::new(), &[]).unwrap()
        };
        let counter = metric("c", MetricKind::Counter);
        assert_eq!(counter.increment(-1.0), Err(MetricError::Negative));
        assert_eq!(
            counter.set(1.0).unwrap_err().to_string(),
            "TRITONSERVER_METRIC_KIND_COUNTER does not support Set"
        );
        assert!(counter.observe(1.0).is_err());
        let gauge = metric("g", MetricKind::Gauge);
        gauge.set(4.0).unwrap();
        gauge.increment(-1.0).unwrap();
        assert_eq!(gauge.value(), Ok(3.0));
        let histogram = metric("h", MetricKind::Histogram);
        assert!(histogram.increment(1.0).is_err() && histogram.value().is_err());
        assert!(all.family("c", "", MetricKind::Gauge).is_err());
        assert!(all.family("no name", "", MetricKind::Gauge).is_err());
    }
}
