use std::time::Duration;

use super::*;
use crate::cli::bench::{
    args,
    recorder::Recorder,
    statistics::{ServerStatistics, Total},
};

fn figures(level: Level, line: &str) -> (BenchArgs, Figures) {
    let args = args::parse(&format!("-m m {line}")).unwrap();
    let start = std::time::Instant::now();
    let mut recorder = Recorder::new(start);
    (1..=1000).for_each(|us| recorder.window().answered(Duration::from_micros(us)));
    (0..1000).for_each(|_| recorder.window().failed("UNAVAILABLE: full, say"));
    recorder.window().sent(Duration::from_micros(80));
    let total = |ns| Total { count: 1000, ns };
    let measured = Measurement {
        level,
        stable: false,
        trials: 10,
        recording: recorder.cut(start + Duration::from_secs(2)),
        client_cpu: Duration::from_millis(20),
        server_cpu: Some(Duration::from_millis(40)),
        server: Some(ServerStatistics {
            inferences: 4000,
            executions: 500,
            queue: total(7_000_000),
            compute_input: total(1_000_000),
            compute_infer: total(2_000_000),
            compute_output: total(3_000_000),
            ..Default::default()
        }),
    };
    let figures = Figures::new(&measured, &args);
    (args, figures)
}

#[test]
fn figures_are_per_request_and_per_inference() {
    let (_, figures) = figures(Level::Concurrency(64), "-b 4 --percentile 75");
    assert_eq!(figures.infer_per_s, 2000.0);
    assert_eq!(figures.client_cpu_us_per_request, 10.0);
    assert_eq!(figures.server_cpu_us_per_request, Some(20.0));
    let server = figures.server.unwrap();
    assert_eq!((server.average_batch, server.queue_us), (Some(8.0), Some(7.0)));
    let percentiles: Vec<_> = figures.latency_us.iter().map(|(p, _)| *p).collect();
    assert_eq!(percentiles, [50.0, 75.0, 90.0, 95.0, 99.0, 99.9]);
    assert_eq!((figures.errors, figures.send_delay_p99_us), (1000, None));
}

#[test]
fn the_table_lines_up_and_tells_what_went_wrong() {
    let (_, one) = figures(Level::Concurrency(8), "");
    let (_, two) = figures(Level::Concurrency(64), "");
    let text = table(&[one, two]);
    let lines: Vec<_> = text.lines().collect();
    let widths: Vec<_> = lines[..3].iter().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|&width| width == widths[0]), "{text}");
    assert!(lines[2].trim_start().starts_with("64*") && lines[2].contains("500.0"), "{text}");
    assert!(text.contains("64: 1000 × UNAVAILABLE: full, say"), "{text}");
    assert!(text.contains("* 8: not stable after 10 windows"), "{text}");
    assert_eq!(table(&[]), "");
}

#[test]
fn csv_rows_have_as_many_cells_as_the_header() {
    let level = Level::Rate(1500.0, Distribution::Poisson);
    let (_, mut figures) = figures(level, "");
    let text = csv(std::slice::from_ref(&figures));
    let (header, row) = text.trim_end().split_once('\n').unwrap();
    assert!(header.starts_with("Request Rate,Inferences/Second,Server Queue,"), "{header}");
    assert!(row.starts_with("1500,500.00,7.00,1.00,2.00,3.00,"), "{row}");
    assert_eq!(header.split(',').count(), row.split(',').count());
    (figures.server, figures.server_cpu_us_per_request) = (None, None);
    let without = csv(&[figures]);
    assert_eq!(without.lines().last().unwrap().split(',').count(), header.split(',').count());
}

#[test]
fn json_holds_every_figure_by_name() {
    let level = Level::Rate(1500.0, Distribution::Poisson);
    let (args, figures) = figures(level, "");
    let json: serde_json::Value = serde_json::from_str(&json(&args, &[figures])).unwrap();
    let result = &json["results"][0];
    assert_eq!(json["protocol"], "http");
    assert_eq!(result["request_rate"], 1500.0);
    assert_eq!(result["request_distribution"], "poisson");
    assert!((result["latency_us"]["99.9"].as_f64().unwrap() - 999.0).abs() < 2.0);
    assert!((result["send_delay_p99_us"].as_f64().unwrap() - 80.0).abs() < 1.0);
    assert_eq!(result["error_messages"]["UNAVAILABLE: full, say"], 1000);
    assert_eq!(result["server"]["executions"], 500);
    assert_eq!(result.get("concurrency"), None);
}
