use half::{bf16, f16};
use nereid::device::kernels::cast::{self, Narrow};

use super::{
    Machine, assert_close, check,
    machine::{Argument, read, value, write},
    values,
};

/// What a narrow type is in float64.
trait Exact: Narrow + bytemuck::Pod + PartialEq + std::fmt::Debug {
    fn exact(self) -> f64;
    /// Asserts that this is `expected`, which is before rounding and saturation.
    fn assert_is(self, unrounded: f64, zero_point: f64);
}

macro_rules! exact_integer {
    ($type:ty) => {
        impl Exact for $type {
            fn exact(self) -> f64 {
                self.into()
            }

            fn assert_is(self, unrounded: f64, zero_point: f64) {
                let expected = unrounded.round_ties_even() + zero_point;
                let expected = if expected.is_nan() { zero_point } else { expected };
                // The quotient is rounded to float32 before it is rounded to a whole number.
                let is_near_a_tie = ((unrounded - unrounded.floor()) - 0.5).abs() < 1e-4;
                let slack = if is_near_a_tie { 1.0 } else { 0.0 };
                let expected = expected.clamp(Self::MIN.into(), Self::MAX.into());
                assert!((self.exact() - expected).abs() <= slack, "{self} is not {unrounded}");
            }
        }
    };
}

exact_integer!(u8);
exact_integer!(i8);

macro_rules! exact_float {
    ($type:ty, $half_step:expr, $smallest:expr) => {
        impl Exact for $type {
            fn exact(self) -> f64 {
                self.to_f64()
            }

            fn assert_is(self, unrounded: f64, zero_point: f64) {
                let (got, expected) = (self.exact(), unrounded + zero_point);
                let largest = <$type>::MAX.to_f64();
                if expected.abs() > largest * (1.0 + $half_step) {
                    assert_eq!(got, expected.signum() * f64::INFINITY);
                } else if expected.abs() < largest {
                    let slack = expected.abs() * $half_step * 1.0001 + $smallest;
                    let range = 1e-6 * (unrounded.abs() + zero_point.abs());
                    assert!((got - expected).abs() <= slack + range, "{got} is not {expected}");
                }
            }
        }
    };
}

exact_float!(f16, 2f64.powi(-11), 2f64.powi(-25));
exact_float!(bf16, 2f64.powi(-8), 2f64.powi(-134));

fn all_ways<T: Exact>(random: &mut fastrand::Rng, machines: &[Box<dyn Machine>], zero_point: f32) {
    let count = random.usize(1..3000);
    let wide = values(random, count);
    let scale = 10f32.powf(random.f32() * 4.0 - 2.0);
    let mut results = vec![vec![T::zeroed(); wide.len()]; machines.len() + 1];
    T::narrow(&wide, &mut results[0], scale, zero_point);
    let grid = cast::grid(wide.len() as u64);
    for (machine, narrow) in machines.iter().zip(&mut results[1..]) {
        let arguments = vec![
            read(&wide),
            write(narrow),
            value(wide.len() as u64),
            value(scale),
            value(zero_point),
        ];
        machine.launch(&format!("narrow_{}", T::SUFFIX), &grid, arguments);
    }
    for narrow in &results {
        for (&narrow, &wide) in narrow.iter().zip(&wide) {
            narrow.assert_is(f64::from(wide) / f64::from(scale), zero_point.into());
        }
        assert_eq!(narrow, &results[0]);
    }

    let narrow = &results[0];
    let mut results = vec![vec![0f32; wide.len()]; machines.len() + 1];
    T::widen(narrow, &mut results[0], scale, zero_point);
    for (machine, wide) in machines.iter().zip(&mut results[1..]) {
        let arguments = vec![
            read(narrow),
            write(wide),
            value(narrow.len() as u64),
            value(scale),
            value(zero_point),
        ];
        machine.launch(&format!("widen_{}", T::SUFFIX), &grid, arguments);
    }
    for wide in &results {
        for (&wide, &narrow) in wide.iter().zip(narrow) {
            let expected = (narrow.exact() - f64::from(zero_point)) * f64::from(scale);
            let range = (narrow.exact().abs() + f64::from(zero_point).abs()) * f64::from(scale);
            if expected.is_finite() {
                assert_close(wide.into(), expected, range, "widened");
            }
        }
    }
}

#[test]
fn float32_narrows_and_widens() {
    check(0..25, |random, machines| {
        let zero_point = f32::from(random.u8(..));
        all_ways::<u8>(random, machines, zero_point);
        let zero_point = f32::from(random.i8(..));
        all_ways::<i8>(random, machines, zero_point);
        let zero_point = random.f32() * 10.0 - 5.0;
        all_ways::<f16>(random, machines, zero_point);
        all_ways::<bf16>(random, machines, zero_point);
    });
}

/// Any bit pattern, as a plain conversion.
#[test]
fn every_kind_of_float_narrows_as_ieee_754_has_it() {
    check(0..4, |random, machines| {
        let mut wide: Vec<f32> = (0..20_000).map(|_| f32::from_bits(random.u32(..))).collect();
        // Many of the sizes that float16 has, its subnormals, and the ties between its values.
        wide.extend((0..20_000).map(|_| f16::from_bits(random.u16(..)).to_f32()));
        wide.extend((0..20_000).map(|_| {
            let below = f16::from_bits(random.u16(..0x7bff));
            let above = f16::from_bits(below.to_bits() + 1);
            f32::midpoint(below.to_f32(), above.to_f32())
        }));
        let count = wide.len() as u64;
        for machine in machines {
            let launch = |kernel: &str, narrow: &mut [u16]| {
                let arguments =
                    vec![read(&wide), write(narrow), value(count), value(1f32), value(0f32)];
                machine.launch(kernel, &cast::grid(count), arguments);
            };
            let mut narrow = vec![0u16; wide.len()];
            launch("narrow_f16", &mut narrow);
            for (&wide, &narrow) in wide.iter().zip(&narrow) {
                let (expected, got) = (f16::from_f32(wide + 0.0), f16::from_bits(narrow));
                assert!(got == expected || got.is_nan() && expected.is_nan(), "{wide:?}: {got:?}");
            }
            launch("narrow_bf16", &mut narrow);
            for (&wide, &narrow) in wide.iter().zip(&narrow) {
                let (expected, got) = (bf16::from_f32(wide + 0.0), bf16::from_bits(narrow));
                assert!(got == expected || got.is_nan() && expected.is_nan(), "{wide:?}: {got:?}");
            }
        }
    });
}

#[test]
fn integers_saturate_and_nan_is_the_zero_point() {
    let wide = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 0.5, 1.5, -0.5, 126.5];
    let unsigned: [u8; 9] = [7, 255, 0, 255, 0, 7, 9, 7, 133];
    let signed: [i8; 9] = [7, 127, -128, 127, -128, 7, 9, 7, 127];
    check(0..1, |_, machines| {
        let mut narrow = [0u8; 9];
        u8::narrow(&wide, &mut narrow, 1.0, 7.0);
        assert_eq!(narrow, unsigned);
        let mut narrow = [0i8; 9];
        i8::narrow(&wide, &mut narrow, 1.0, 7.0);
        assert_eq!(narrow, signed);
        for machine in machines {
            let launch = |kernel: &str, to: Argument<'_>| {
                let arguments = vec![read(&wide), to, value(9u64), value(1f32), value(7f32)];
                machine.launch(kernel, &cast::grid(9), arguments);
            };
            let mut narrow = [0u8; 9];
            launch("narrow_u8", write(&mut narrow));
            assert_eq!(narrow, unsigned);
            let mut narrow = [0i8; 9];
            launch("narrow_i8", write(&mut narrow));
            assert_eq!(narrow, signed);
        }
    });
}
