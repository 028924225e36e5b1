//! Softmax and its logarithm over rows; `kernels/softmax.cu`.
//!
//! As with other frameworks, a row that holds NaN or +∞, or nothing but -∞, becomes NaN.

use super::Grid;

/// How `softmax` and `log_softmax` are launched.
pub fn grid(rows: u32, columns: u32) -> Grid {
    let grid = Grid::a_block_a_row(rows, columns);
    // Each warp leaves its largest value and its sum.
    Grid { shared_bytes: grid.warps() * 8, ..grid }
}

/// `exp(x) / Σ exp` over each row of `columns` elements.
pub fn softmax(from: &[f32], to: &mut [f32], columns: usize) {
    for (from, to) in rows(from, to, columns) {
        let largest = largest(from);
        for (to, &from) in to.iter_mut().zip(from) {
            *to = exp(from - largest);
        }
        let share = 1.0 / sum(to);
        for to in to {
            *to *= share;
        }
    }
}

/// `x - ln Σ exp` over each row of `columns` elements.
pub fn log_softmax(from: &[f32], to: &mut [f32], columns: usize) {
    for (from, to) in rows(from, to, columns) {
        let largest = largest(from);
        for (to, &from) in to.iter_mut().zip(from) {
            *to = exp(from - largest);
        }
        let logarithm = sum(to).ln();
        for (to, &from) in to.iter_mut().zip(from) {
            *to = (from - largest) - logarithm;
        }
    }
}

fn rows<'a>(
    from: &'a [f32],
    to: &'a mut [f32],
    columns: usize,
) -> impl Iterator<Item = (&'a [f32], &'a mut [f32])> {
    let columns = columns.max(1);
    from.chunks_exact(columns).zip(to.chunks_exact_mut(columns))
}

/// Partial results side by side: float32 operations may not be reordered by the compiler, so these
/// are what it makes vectors of.
const LANES: usize = 16;

fn largest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &value| largest.max(value))
}

fn sum(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// `e` to the power of `x` for `x` ≤ 0, within 2 units in the last place; 0 where the result would be
/// subnormal. Free of branches and calls, unlike the standard library's, so that loops over it become
/// vector code.
fn exp(x: f32) -> f32 {
    /// Adding this to a small number leaves the nearest whole number in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    /// ln 2 in two parts, of which the first has so few digits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// ln of the smallest normal float32.
    const SMALLEST: f32 = -87.336_54;
    let within = if x < SMALLEST { SMALLEST } else { x };
    let shifted = within * std::f32::consts::LOG2_E + ROUNDER;
    let power = shifted - ROUNDER;
    let rest = (within - power * LN_2_HIGH) - power * LN_2_LOW;
    // The Taylor series: |rest| ≤ ln 2 / 2, where its next term is below 6e-9.
    let series = 1.0
        + rest
            * (1.0
                + rest
                    * (1.0 / 2.0
                        + rest
                            * (1.0 / 6.0
                                + rest
                                    * (1.0 / 24.0
                                        + rest
                                            * (1.0 / 120.0
                                                + rest * (1.0 / 720.0 + rest / 5040.0))))));
    // Into the exponent's bits: the rounder's own lie above and fall off.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < SMALLEST { 0.0 } else { series * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_digits() {
        for step in 0..=880_000 {
            let x = -(step as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs();
            assert!(error <= expected * 2.5e-7 + f64::from(f32::MIN_POSITIVE), "exp({x})");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn what_is_no_number_spoils_its_row_alone() {
        let from = [1.0, f32::NAN, 0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let mut to = [0.0; 6];
        softmax(&from, &mut to, 2);
        assert!(to[0].is_nan() && to[1].is_nan());
        assert_eq!(to[2..4], [0.5, 0.5]);
        assert!(to[4].is_nan() && to[5].is_nan());
    }
}
