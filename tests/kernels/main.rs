//! Every kernel on random shapes and values: its twin in Rust, by itself and as the host device runs it,
//! `kernels/*.cu` compiled for the processor over the shim, and, where there is a GPU, the embedded
//! image. Each is held against a plain reference in float64; what only moves or compares must be equal,
//! float32 arithmetic is right to 1e-6 of the result's range. A failure names its seed.

mod cast;
mod gather;
mod image;
mod machine;
mod nms;
mod on_device;
mod pad;
mod softmax;
mod take;
mod top_k;

use machine::{Machine, machines};

/// Runs a case for each seed, on every machine.
fn check(seeds: std::ops::Range<u64>, case: impl Fn(&mut fastrand::Rng, &[Box<dyn Machine>])) {
    let machines = machines();
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            case(&mut fastrand::Rng::with_seed(seed), &machines);
        }));
        if let Err(panic) = outcome {
            eprintln!("the case of seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Values of many sizes, now and then one that is special.
fn values(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    let size = 10f32.powi(random.i32(-3..4));
    (0..count).map(|_| (random.f32() * 2.0 - 1.0) * size).collect()
}

/// Whether `got` is `expected` to 1e-6 of the larger of `expected` and `range`.
fn assert_close(got: f64, expected: f64, range: f64, what: &str) {
    let is_close = (got - expected).abs() <= 1e-6 * expected.abs().max(range);
    assert!(
        is_close || got.is_nan() && expected.is_nan(),
        "{what}: expected {expected}, got {got}"
    );
}
