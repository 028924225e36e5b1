//! `nereid bench gpu`: what this machine's devices do, and how well the lanes use them.
//!
//! `overlap` sends batches of a synthetic model through lanes: first single ones, which tell what each stage
//! takes by itself, then as many as keep them busy; the bound is their number times the longest stage, and what
//! is printed is the part of it that was achieved. `copies`, `gather` and `graphs` put work on streams themselves
//! (`bare`). Knows devices and lanes by what they offer to all.

mod args;
mod bare;
mod copies;
mod gather;
mod graphs;
mod model;
mod overlap;
mod rig;

use std::fs;

use serde_json::Value;

pub use self::args::GpuArgs;
use self::{
    args::{Kind, Measure},
    rig::GpuBenchError,
};

/// Measures what the options ask for, on each kind of device, and prints a table of each.
///
/// # Errors
/// When a device cannot be had that was asked for by name, or something on it fails. What was measured before
/// that is reported all the same.
pub fn run(args: &GpuArgs) -> Result<(), GpuBenchError> {
    let mut figures = Vec::new();
    let outcome = measure(args, &mut figures);
    let written = args.json.as_ref().map_or(Ok(()), |path| {
        let text = format!("{:#}\n", Value::Array(figures));
        fs::write(path, text).map_err(|source| GpuBenchError::Write { path: path.clone(), source })
    });
    outcome.and(written)
}

fn measure(args: &GpuArgs, figures: &mut Vec<Value>) -> Result<(), GpuBenchError> {
    for kind in args.kinds() {
        // Held, so that contexts are made once.
        let _gpus = match (kind, rig::gpus(args)) {
            (Kind::Cuda, Err(reason)) if args.device.is_empty() => {
                println!("cuda: {reason}");
                continue;
            }
            (Kind::Cuda, found) => found?,
            _ => Vec::new(),
        };
        for what in &args.measure {
            figures.extend(match what {
                Measure::Overlap => overlap::run(args, kind)?,
                _ if kind == Kind::Virtual => Vec::new(),
                Measure::Copies => copies::run(args, kind)?,
                Measure::Gather => gather::run(args, kind)?,
                Measure::Graphs => graphs::run(args, kind)?,
            });
        }
    }
    Ok(())
}
