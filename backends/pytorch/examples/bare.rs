//! A TorchScript module run bare: tch in a loop, with nothing of the server's library.
//!
//! `bare MODEL SECONDS CHANNELS HEIGHT WIDTH SIZE...`
//!
//! The module takes one FP32 tensor of the shape [SIZE, CHANNELS, HEIGHT, WIDTH]. Prints, as JSON, the
//! seconds that a run takes at each batch size: on the clock ("wall") and of the CPU ("cpu"). It runs on
//! one thread and without gradients; inputs are made beforehand, and each result is dropped at once.

use std::{env, error::Error, time::Instant};

use tch::{CModule, Device, Kind, Tensor};

const ROUNDS: u32 = 3;
/// Torch optimises a module in its first runs at each batch size.
const WARM_UP_RUNS: u32 = 4;
const USAGE: &str = "usage: bare MODEL SECONDS CHANNELS HEIGHT WIDTH SIZE...";

/// What the runs at one batch size took.
struct Size {
    input: Tensor,
    rows: i64,
    runs: u32,
    wall_seconds: f64,
    cpu_seconds: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, seconds, shape @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let seconds: f64 = seconds.parse()?;
    let numbers: Vec<i64> = shape.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let [channels, height, width, rows @ ..] = numbers.as_slice() else {
        return Err(USAGE.into());
    };
    tch::set_num_threads(1);
    let _no_gradient = tch::no_grad_guard();
    let module = CModule::load_on_device(model, Device::Cpu)?;
    let mut sizes: Vec<Size> = rows
        .iter()
        .map(|&rows| {
            let dims = [rows, *channels, *height, *width];
            let input = Tensor::rand(dims, (Kind::Float, Device::Cpu));
            Size { input, rows, runs: 0, wall_seconds: 0.0, cpu_seconds: 0.0 }
        })
        .collect();
    for size in &sizes {
        for _ in 0..WARM_UP_RUNS {
            drop(module.forward_ts(&[&size.input])?);
        }
    }
    let share = seconds / f64::from(ROUNDS) / sizes.len() as f64;
    for _ in 0..ROUNDS {
        for size in &mut sizes {
            let (begun, cpu_begun) = (Instant::now(), cpu_seconds());
            while begun.elapsed().as_secs_f64() < share {
                drop(module.forward_ts(&[&size.input])?);
                size.runs += 1;
            }
            size.wall_seconds += begun.elapsed().as_secs_f64();
            size.cpu_seconds += cpu_seconds() - cpu_begun;
        }
    }
    let lines: Vec<String> = sizes
        .iter()
        .map(|size| {
            let runs = f64::from(size.runs);
            let (wall, cpu) = (size.wall_seconds / runs, size.cpu_seconds / runs);
            format!("\"{}\": {{\"wall\": {wall:.9}, \"cpu\": {cpu:.9}}}", size.rows)
        })
        .collect();
    println!("{{{}}}", lines.join(", "));
    Ok(())
}

/// The processors' time that this process has taken.
fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the place, and knows this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}
