//! Between float32 and narrower types, with a scale and a zero point; `kernels/cast.cu`.
//!
//! `narrow = saturate(round(wide / scale) + zero_point)`, `wide = (narrow - zero_point) * scale`, to
//! the nearest, ties to even. Integers saturate and NaN becomes the zero point; float16 and bfloat16
//! round only once, by the conversion, and overflow to infinity.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::Grid;

/// A type that float32 is narrowed to.
pub trait Narrow: Copy {
    /// The end of its kernels' names.
    const SUFFIX: &'static str;

    /// Narrows as many elements as both slices have.
    fn narrow(from: &[f32], to: &mut [Self], scale: f32, zero_point: f32);

    /// Widens as many elements as both slices have.
    fn widen(from: &[Self], to: &mut [f32], scale: f32, zero_point: f32);
}

/// How `narrow_*` and `widen_*` are launched on `count` elements.
pub fn grid(count: u64) -> Grid {
    Grid::over(count)
}

/// Adding and taking this away rounds a float32 of less than 2²² to a whole number, ties to even, in
/// instructions that every processor has for vectors.
const ROUNDER: f32 = 12_582_912.0;
/// Beyond the range of all narrow integers whatever the zero point, and within the rounder's.
const FAR: f32 = 1_048_576.0;

fn narrowed(value: f32, scale: f32, zero_point: f32, low: f32, high: f32) -> f32 {
    let rounded = ((value / scale).clamp(-FAR, FAR) + ROUNDER) - ROUNDER;
    let moved = rounded + zero_point;
    if moved.is_nan() { zero_point } else { moved.clamp(low, high) }
}

macro_rules! narrow_integer {
    ($type:ty, $suffix:literal) => {
        impl Narrow for $type {
            const SUFFIX: &'static str = $suffix;

            fn narrow(from: &[f32], to: &mut [Self], scale: f32, zero_point: f32) {
                let (low, high) = (f32::from(Self::MIN), f32::from(Self::MAX));
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = narrowed(from, scale, zero_point, low, high) as Self;
                }
            }

            fn widen(from: &[Self], to: &mut [f32], scale: f32, zero_point: f32) {
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = (f32::from(from) - zero_point) * scale;
                }
            }
        }
    };
}

narrow_integer!(u8, "u8");
narrow_integer!(i8, "i8");

/// Elements that are converted together, through a buffer that stays in the nearest cache.
const STRETCH: usize = 256;

macro_rules! narrow_float {
    ($type:ty, $suffix:literal) => {
        impl Narrow for $type {
            const SUFFIX: &'static str = $suffix;

            fn narrow(from: &[f32], to: &mut [Self], scale: f32, zero_point: f32) {
                let mut scaled = [0.0; STRETCH];
                for (to, from) in to.chunks_mut(STRETCH).zip(from.chunks(STRETCH)) {
                    let len = to.len().min(from.len());
                    for (scaled, &from) in scaled.iter_mut().zip(from) {
                        *scaled = from / scale + zero_point;
                    }
                    to[..len].convert_from_f32_slice(&scaled[..len]);
                }
            }

            fn widen(from: &[Self], to: &mut [f32], scale: f32, zero_point: f32) {
                for (to, from) in to.chunks_mut(STRETCH).zip(from.chunks(STRETCH)) {
                    let len = to.len().min(from.len());
                    let to = &mut to[..len];
                    from[..len].convert_to_f32_slice(to);
                    for to in to {
                        *to = (*to - zero_point) * scale;
                    }
                }
            }
        }
    };
}

narrow_float!(f16, "f16");
narrow_float!(bf16, "bf16");
