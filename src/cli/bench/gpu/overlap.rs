//! Batches of a synthetic model through the lanes of devices.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    args::{GpuArgs, Kind},
    rig::{GpuBenchError, Rig},
};
use crate::cli::table;

/// One line of the report.
struct Figures {
    kind: Kind,
    combination: Combination,
    makespan: Duration,
    bound: Duration,
    /// Bytes of the devices' memory that were free before the batches, and that are not after them.
    grown: usize,
}

/// What is measured at a time.
#[derive(Clone, Copy, Debug)]
pub struct Combination {
    /// Devices.
    pub devices: usize,
    /// Models that share them.
    pub models: usize,
    /// Lanes of each model's instance.
    pub lanes: usize,
    /// Bytes of a batch's input, and of its output.
    pub bytes: usize,
}

impl Figures {
    fn achieved(&self) -> f64 {
        self.bound.as_secs_f64() / self.makespan.as_secs_f64()
    }

    fn json(&self) -> Value {
        let Combination { devices, models, lanes, bytes } = self.combination;
        json!({
            "measure": "overlap",
            "device": self.kind.name(),
            "devices": devices,
            "models": models,
            "lanes": lanes,
            "bytes": bytes,
            "makespan_s": self.makespan.as_secs_f64(),
            "bound_s": self.bound.as_secs_f64(),
            "achieved": self.achieved(),
            "memory_grown_bytes": self.grown,
        })
    }
}

/// Measures every combination of the options, prints a table and gives its lines.
///
/// # Errors
/// When a device cannot be had, or a batch fails.
pub(super) fn run(args: &GpuArgs, kind: Kind) -> Result<Vec<Value>, GpuBenchError> {
    let measured = args.combinations().into_iter().map(|it| measure(args, kind, it));
    let figures: Vec<Figures> = measured.collect::<Result<_, _>>()?;
    print_table(&figures);
    Ok(figures.iter().map(Figures::json).collect())
}

fn measure(args: &GpuArgs, kind: Kind, combination: Combination) -> Result<Figures, GpuBenchError> {
    let mut rig = Rig::open(args, kind, combination)?;
    let alone = rig.stages_alone()?;
    rig.fill_lanes()?;
    let free = rig.free_bytes();
    let makespan = rig.send(args.batches * combination.devices)?;
    let grown = free.saturating_sub(rig.free_bytes());
    let bound = alone.longest() * u32::try_from(args.batches).unwrap_or(u32::MAX);
    Ok(Figures { kind, combination, makespan, bound, grown })
}

fn print_table(figures: &[Figures]) {
    let head = [
        "Device",
        "Devices",
        "Models",
        "Lanes",
        "Bytes",
        "Makespan ms",
        "Bound ms",
        "Achieved",
        "Memory grown",
    ];
    let rows: Vec<_> = figures
        .iter()
        .map(|it| {
            let Combination { devices, models, lanes, bytes } = it.combination;
            let millis = |time: &Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
            [
                it.kind.name().to_owned(),
                devices.to_string(),
                models.to_string(),
                lanes.to_string(),
                bytes.to_string(),
                millis(&it.makespan),
                millis(&it.bound),
                format!("{:.1} %", 100.0 * it.achieved()),
                it.grown.to_string(),
            ]
        })
        .collect();
    println!("{}", table::frame(head, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lanes_in_virtual_time_come_close_to_the_bound_and_one_does_not() {
        let args = GpuArgs::of(&["--device=virtual", "--batches=50", "--bytes=100000"]);
        let achieved = |lanes, models| {
            let combination = Combination { devices: 2, models, lanes, bytes: 100_000 };
            let figures = measure(&args, Kind::Virtual, combination).unwrap();
            figures.achieved()
        };
        assert!(achieved(3, 1) >= 0.95 && achieved(3, 2) >= 0.95, "{}", achieved(3, 1));
        assert!(achieved(1, 1) <= 0.5);
    }

    #[test]
    fn the_hosts_engines_do_all_batches() {
        let args = GpuArgs::of(&["--device=host", "--batches=5"]);
        let combination = Combination { devices: 1, models: 2, lanes: 2, bytes: 10_000 };
        // It ends only when all have.
        measure(&args, Kind::Host, combination).unwrap();
    }
}
