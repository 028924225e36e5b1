//! `nereid bench`: a load generator for any Triton-compatible server, to run in place of
//! perf_analyzer.
//!
//! [`run`] asks the server what the model takes ([`control`], [`model`]), encodes one request
//! ([`payload`], its tensors in [`shared`] memory if they are to be there), repeats it at each load ([`load`] over [`client`]), measures windows until they
//! agree ([`measure`]) and reports ([`report`]). It runs on the project's own runtime and knows the
//! server by its wire protocols only: nothing of Nereid's ingress, schedulers or back ends.

mod args;
mod client;
mod control;
mod cpu;
mod error;
pub mod gpu;
mod line;
mod load;
mod measure;
mod model;
mod payload;
mod progress;
mod recorder;
mod report;
mod shared;
mod statistics;
mod values;
mod window;

use std::{fs, path::Path, time::Duration};

pub use self::{
    args::{BenchArgs, InputData, SharedDevice, SharedMemory, Via},
    error::BenchError,
    line::BenchLine,
    load::Distribution,
    values::{InputShape, Range},
};
use self::{
    client::Payload,
    control::Control,
    load::{Level, RunningLoad},
    measure::{Measurement, measure},
    progress::Progress,
    report::Figures,
    shared::Region,
};
use crate::runtime::{ReactorHandle, ReactorSettings, Reactors, Topology, pin_to};

/// Messages that may wait at a client thread: its user is one thread that waits for answers.
const MAILBOX: usize = 1024;

/// Measures what the options ask for and reports it.
///
/// # Errors
/// When the options do not fit the model, the server does not answer, or the results cannot be
/// written. Loads that were measured before are reported all the same.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    let reactors = start_reactors(&args)?;
    let outcome = run_on(reactors.handles(), &args);
    reactors.stop();
    outcome
}

fn run_on(reactors: &[ReactorHandle], args: &BenchArgs) -> Result<(), BenchError> {
    let first = reactors.first().ok_or_else(|| BenchError::Client("it has no threads".into()))?;
    let control = Control::new(first.clone(), args);
    let model = control.model()?;
    let tensors = payload::tensors(args, &model)?;
    let inputs: Vec<_> = tensors.iter().map(|tensor| tensor.data.clone()).collect();
    let region = Region::share(&control, args, &inputs, model.outputs.len())?;
    let payload = payload::encode(args, &model, tensors, region.as_ref().map(|it| &it.layout))?;
    let progress = Progress::new(args.quiet, args.max_trials);
    let (mut figures, mut outcome) = (Vec::new(), Ok(()));
    for level in levels(args) {
        progress.level(level);
        match measure_level(reactors, args, &payload, level, &control, &progress) {
            Ok(measured) => figures.push(Figures::new(&measured, args)),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    progress.finish();
    report(args, &figures).and(outcome)
}

fn levels(args: &BenchArgs) -> Vec<Level> {
    match args.request_rate_range {
        Some(rates) => {
            rates.values().map(|rate| Level::Rate(rate, args.request_distribution)).collect()
        }
        None => {
            let range = args.concurrency_range.unwrap_or(Range::only(1));
            range.values().map(Level::Concurrency).collect()
        }
    }
}

fn measure_level(
    reactors: &[ReactorHandle],
    args: &BenchArgs,
    payload: &Payload,
    level: Level,
    control: &Control,
    progress: &Progress,
) -> Result<Measurement, BenchError> {
    let load = RunningLoad::start(reactors, args, payload, level)?;
    let measured = measure(&load, level, args, control, progress);
    load.stop()?;
    measured
}

fn report(args: &BenchArgs, figures: &[Figures]) -> Result<(), BenchError> {
    if figures.is_empty() {
        return Ok(());
    }
    if !args.quiet {
        print!("{}", report::table(figures));
    }
    if let Some(path) = &args.filename {
        write(path, &report::csv(figures))?;
    }
    if let Some(path) = &args.json {
        write(path, &report::json(args, figures))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|source| BenchError::Write { path: path.to_owned(), source })
}

/// Reactors on the last processors that the process may use, where a server's are not.
fn start_reactors(args: &BenchArgs) -> Result<Reactors, BenchError> {
    let client = |error: std::io::Error| BenchError::Client(error.to_string());
    let topology = Topology::read().map_err(client)?;
    let cores = topology.reactor_cores(topology.core_count());
    let last = cores.get(cores.len().saturating_sub(args.client_threads)..).unwrap_or(&cores);
    pin_to(last).map_err(client)?;
    let settings = ReactorSettings {
        count: args.client_threads,
        driver: args.driver(),
        idle_spin: Duration::ZERO,
        mailbox_capacity: MAILBOX,
    };
    Ok(Reactors::start(&settings, &Topology::read().map_err(client)?)?)
}

#[cfg(test)]
mod tests;
