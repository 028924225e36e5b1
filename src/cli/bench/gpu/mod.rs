//! `nereid bench gpu`: batches of a synthetic model through the lanes of devices, beside what the
//! busiest of their engines would take alone.
//!
//! Each combination first sends single batches, which tell what each stage takes by itself. Then
//! batches are sent with enough of them waiting at any time; the bound is their number times the longest stage, and what is printed is
//! the part of it that was achieved. Knows devices and lanes by what they offer to all.

mod args;
mod model;
mod rig;

use std::time::Duration;

pub use self::args::GpuArgs;
use self::{
    args::Kind,
    rig::{Rig, RigError},
};
use crate::cli::table;

/// One line of the report.
struct Figures {
    kind: Kind,
    combination: Combination,
    makespan: Duration,
    bound: Duration,
}

/// What is measured at a time.
#[derive(Clone, Copy, Debug)]
pub struct Combination {
    devices: usize,
    models: usize,
    lanes: usize,
    bytes: usize,
}

/// Measures every combination of the options and prints a table.
///
/// # Errors
/// When a device cannot be had that was asked for by name, or a batch fails.
pub fn run(args: &GpuArgs) -> Result<(), RigError> {
    let mut figures = Vec::new();
    for kind in args.kinds() {
        if kind == Kind::Cuda
            && args.device.is_empty()
            && let Err(reason) = rig::cuda_devices()
        {
            println!("cuda: {reason}");
            continue;
        }
        for combination in args.combinations() {
            figures.push(measure(args, kind, combination)?);
        }
    }
    print_table(&figures);
    Ok(())
}

fn measure(args: &GpuArgs, kind: Kind, combination: Combination) -> Result<Figures, RigError> {
    let mut rig = Rig::open(args, kind, combination)?;
    let alone = rig.stages_alone()?;
    let batches = args.batches * combination.devices;
    let makespan = rig.send(batches)?;
    let bound = alone.longest() * u32::try_from(args.batches).unwrap_or(u32::MAX);
    Ok(Figures { kind, combination, makespan, bound })
}

fn print_table(figures: &[Figures]) {
    let head =
        ["Device", "Devices", "Models", "Lanes", "Bytes", "Makespan ms", "Bound ms", "Achieved"];
    let rows: Vec<_> = figures
        .iter()
        .map(|Figures { kind, combination, makespan, bound }| {
            let Combination { devices, models, lanes, bytes } = combination;
            let millis = |time: &Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
            let achieved = 100.0 * bound.as_secs_f64() / makespan.as_secs_f64();
            [
                kind.name().to_owned(),
                devices.to_string(),
                models.to_string(),
                lanes.to_string(),
                bytes.to_string(),
                millis(makespan),
                millis(bound),
                format!("{achieved:.1} %"),
            ]
        })
        .collect();
    println!("{}", table::frame(head, &rows));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GpuArgs,
    }

    #[test]
    fn three_lanes_in_virtual_time_come_close_to_the_bound_and_one_does_not() {
        let line = Line::parse_from(["x", "--device=virtual", "--batches=50", "--bytes=100000"]);
        let achieved = |lanes, models| {
            let combination = Combination { devices: 2, models, lanes, bytes: 100_000 };
            let figures = measure(&line.args, Kind::Virtual, combination).unwrap();
            figures.bound.as_secs_f64() / figures.makespan.as_secs_f64()
        };
        assert!(achieved(3, 1) >= 0.95 && achieved(3, 2) >= 0.95, "{}", achieved(3, 1));
        assert!(achieved(1, 1) <= 0.5);
    }

    #[test]
    fn the_hosts_engines_do_all_batches() {
        let line = Line::parse_from(["x", "--device=host", "--batches=5"]);
        let combination = Combination { devices: 1, models: 2, lanes: 2, bytes: 10_000 };
        // It ends only when all have.
        measure(&line.args, Kind::Host, combination).unwrap();
    }
}
