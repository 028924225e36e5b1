use super::{Figures, ServerFigures};

/// The results as CSV; columns that perf_analyzer has too bear its names, latencies are in µs as
/// there.
pub fn csv(figures: &[Figures]) -> String {
    let Some(first) = figures.first() else { return String::new() };
    let load = if first.concurrency.is_some() { "Concurrency" } else { "Request Rate" };
    let mut lines = vec![header(load, first)];
    lines.extend(figures.iter().map(row));
    lines.concat()
}

fn header(load: &str, first: &Figures) -> String {
    let percentiles =
        first.latency_us.iter().map(|(percentile, _)| format!("p{percentile} latency"));
    let names = [
        load,
        "Inferences/Second",
        "Server Queue",
        "Server Compute Input",
        "Server Compute Infer",
        "Server Compute Output",
    ];
    let own = [
        "Avg latency",
        "Errors",
        "Stable",
        "Client CPU/Request",
        "Server CPU/Request",
        "Server Executions",
        "Server Average Batch",
    ];
    line(names.into_iter().map(str::to_owned).chain(percentiles).chain(own.map(str::to_owned)))
}

fn row(figures: &Figures) -> String {
    let server = |figure: fn(&ServerFigures) -> Option<f64>| {
        number(figures.server.as_ref().and_then(figure))
    };
    let mut cells = vec![
        figures.load(),
        number(Some(figures.infer_per_s)),
        server(|server| server.queue_us),
        server(|server| server.compute_input_us),
        server(|server| server.compute_infer_us),
        server(|server| server.compute_output_us),
    ];
    cells.extend(figures.latency_us.iter().map(|&(_, us)| number(Some(us))));
    cells.extend([
        number(Some(figures.latency_mean_us)),
        figures.errors.to_string(),
        figures.stable.to_string(),
        number(Some(figures.client_cpu_us_per_request)),
        number(figures.server_cpu_us_per_request),
        figures.server.map_or(String::new(), |server| server.executions.to_string()),
        server(|server| server.average_batch),
    ]);
    line(cells)
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.2}"))
}

fn line(cells: impl IntoIterator<Item = String>) -> String {
    let mut line = cells.into_iter().collect::<Vec<_>>().join(",");
    line.push('\n');
    line
}
