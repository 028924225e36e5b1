//! Small launches, one by one and in a graph.

use serde_json::{Value, json};

use super::{
    args::{GpuArgs, Kind},
    bare::timed,
    model::spin,
    rig::{GpuBenchError, Opened},
};
use crate::{
    cli::table,
    device::{Argument, Graph, Scalar, Stream, Urgency},
    memory::BufferPool,
};

/// Launches that are one graph.
const LAUNCHES: [usize; 3] = [1, 8, 32];
/// How often each is done.
const REPEATS: usize = 200;

/// Measures every number of launches, prints a table and gives its lines.
///
/// # Errors
/// When the device cannot be had, or refuses.
pub(super) fn run(args: &GpuArgs, kind: Kind) -> Result<Vec<Value>, GpuBenchError> {
    let (mut lines, mut rows) = (Vec::new(), Vec::new());
    for launches in LAUNCHES {
        let [single, graph] = measure(args, kind, launches)?;
        let micros = |seconds: f64| format!("{:.2}", seconds * 1e6);
        let faster = format!("{:.1}", single / graph);
        let device = kind.name().to_owned();
        rows.push([device, launches.to_string(), micros(single), micros(graph), faster]);
        lines.push(json!({
            "measure": "graphs",
            "device": kind.name(),
            "launches": launches,
            "single_s": single,
            "graph_s": graph,
        }));
    }
    let head = ["Device", "Launches", "One by one µs", "As a graph µs", "Times faster"];
    println!("{}", table::frame(head, &rows));
    Ok(lines)
}

/// The seconds that so many launches take one by one, and as a graph.
fn measure(args: &GpuArgs, kind: Kind, launches: usize) -> Result<[f64; 2], GpuBenchError> {
    let opened = Opened::open(args, kind, 1, &BufferPool::new(0, 0)?)?;
    let device = opened.first()?;
    // A kernel that does next to nothing: what is measured is what it takes to launch it.
    let launch = spin(&**device)?.launch([1; 3], [1; 3]).with(Argument::Scalar(Scalar::U64(0)));
    let mut streams = [device.stream(Urgency::Normal)?];
    let all = |stream: &mut Box<dyn Stream>| -> Result<(), GpuBenchError> {
        (0..launches).try_for_each(|_| Ok(stream.launch(launch.clone())?))
    };
    let single = timed(&mut streams, REPEATS, |streams| streams.iter_mut().try_for_each(all))?;
    let mut graphs: Vec<Graph> = Vec::new();
    for stream in &mut streams {
        stream.begin_capture()?;
        all(stream)?;
        graphs.push(stream.end_capture()?);
    }
    let graph = timed(&mut streams, REPEATS, |streams| {
        let mut pairs = streams.iter_mut().zip(&graphs);
        pairs.try_for_each(|(stream, graph)| Ok(stream.replay(graph)?))
    })?;
    Ok([single, graph].map(|took| took.as_secs_f64() / REPEATS as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_run_by_themselves_and_in_a_graph() {
        let args = GpuArgs::of(&[]);
        assert!(measure(&args, Kind::Host, 3).unwrap().iter().all(|took| *took > 0.0));
    }
}
