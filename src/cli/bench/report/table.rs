use super::{Figures, ServerFigures};

const GAP: &str = "  ";

/// The results as a table for people, followed by what they should know about it.
pub fn table(figures: &[Figures]) -> String {
    let Some(first) = figures.first() else { return String::new() };
    let mut rows = vec![header(first)];
    rows.extend(figures.iter().map(row));
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}"));
        text.push_str(&cells.collect::<Vec<_>>().join(GAP));
        text.push('\n');
    }
    figures.iter().for_each(|figures| note(figures, &mut text));
    text
}

fn header(first: &Figures) -> Vec<String> {
    let load = if first.concurrency.is_some() { "concurrency" } else { "requests/s" };
    let mut names = vec![load.to_owned(), "infer/s".to_owned()];
    names.extend(first.latency_us.iter().map(|(percentile, _)| format!("p{percentile} µs")));
    let rest = [
        "errors",
        "client CPU µs",
        "server CPU µs",
        "queue µs",
        "compute µs",
        "batches",
        "avg batch",
    ];
    names.extend(rest.map(str::to_owned));
    names
}

fn row(figures: &Figures) -> Vec<String> {
    let server = |figure: fn(&ServerFigures) -> Option<f64>, digits| {
        number(figures.server.as_ref().and_then(figure), digits)
    };
    let mark = if figures.stable { "" } else { "*" };
    let mut cells = vec![figures.load() + mark, number(Some(figures.infer_per_s), 1)];
    cells.extend(figures.latency_us.iter().map(|&(_, us)| number(Some(us), 0)));
    cells.extend([
        figures.errors.to_string(),
        number(Some(figures.client_cpu_us_per_request), 1),
        number(figures.server_cpu_us_per_request, 1),
        server(|server| server.queue_us, 1),
        server(ServerFigures::compute_us, 1),
        server(|server| Some(server.executions as f64), 0),
        server(|server| server.average_batch, 1),
    ]);
    cells
}

impl ServerFigures {
    /// From the model's inputs to its outputs.
    fn compute_us(&self) -> Option<f64> {
        Some(self.compute_input_us? + self.compute_infer_us? + self.compute_output_us?)
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn note(figures: &Figures, text: &mut String) {
    let load = figures.load();
    if !figures.stable {
        let trials = figures.trials;
        text.push_str(&format!(
            "* {load}: not stable after {trials} windows; the last are shown\n"
        ));
    }
    if let Some(delay) = figures.send_delay_p99_us {
        let median = figures.send_delay_p50_us.unwrap_or_default();
        text.push_str(&format!(
            "{load}: sent p50 {median:.0}, p99 {delay:.0} µs after due, which counts as latency\n"
        ));
    }
    for (message, count) in &figures.error_messages {
        text.push_str(&format!("{load}: {count} × {message}\n"));
    }
}
