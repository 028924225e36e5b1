//! What watching costs a request: counting it, noting its durations in histograms and summaries, and
//! asking whether to trace it.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use nereid::{
    inference::Timestamp,
    observe::{
        BatchTimes, MetricsSettings, ModelStatistics,
        trace::{Output, Settings, Tracer},
    },
    proto::ModelConfig,
};

/// Counts one request that ran alone, as a reactor does, with durations that fall into many buckets.
fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count a request");
    for (name, histograms, summaries) in [
        ("counters", false, false),
        ("and histograms", true, false),
        ("and summaries", false, true),
        ("and both", true, true),
    ] {
        let settings = MetricsSettings { histograms, summaries, ..MetricsSettings::default() };
        let plan = settings.plan(&ModelConfig::default());
        let statistics = ModelStatistics::new(std::iter::once(true), 8, &plan);
        let mut nanos = 1_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Somewhere between 1 and 65 ms.
                nanos = nanos.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let took = Duration::from_nanos(1_000_000 + (nanos >> 38));
                let times = BatchTimes {
                    compute_input: took / 64,
                    compute_infer: took / 2,
                    compute_output: took / 128,
                };
                statistics.enqueued(black_box(0));
                statistics.dequeued(black_box(0));
                statistics.executed(black_box(0), (1, 0), 1, times, Timestamp::from_nanos(nanos));
                statistics.succeeded(black_box(0), took, took / 4, took);
            });
        });
        black_box(statistics.latencies());
    }
    group.finish();
}

/// Asks whether to trace a request: while tracing is off, and while another is due.
fn sample(criterion: &mut Criterion) {
    let tracer = Tracer::start(Output::None, Settings::default()).expect("no thread is needed");
    let model = tracer.of_model("m");
    let (name, id): (Arc<str>, _) = ("m".into(), "".into());
    criterion.bench_function("ask whether to trace, off", |bencher| {
        bencher.iter(|| model.begin(black_box(&name), 1, &id, None).is_some());
    });
}

criterion_group!(benches, count, sample);
criterion_main!(benches);
