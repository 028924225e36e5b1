use nereid::device::kernels::top_k;

use super::{
    check,
    machine::{read, value, write},
    values,
};

/// Few different values, so that many are equal, and special ones.
fn with_ties(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
    let value = |random: &mut fastrand::Rng| match random.usize(..20) {
        0 => special[random.usize(..special.len())],
        _ => f32::from(random.i8(..)) / 16.0,
    };
    (0..count).map(|_| value(random)).collect()
}

#[test]
fn the_largest_come_first_and_of_equals_the_earlier() {
    check(0..60, |random, machines| {
        let (rows, columns) = (random.usize(1..4), [1, 5, 33, 1000, 2500][random.usize(..5)]);
        let k = if random.bool() { random.usize(1..=columns) } else { columns.min(5) };
        let count = rows * columns;
        let from = if random.bool() { values(random, count) } else { with_ties(random, count) };
        let expected: Vec<i64> = from
            .chunks(columns)
            .flat_map(|row| {
                let mut places: Vec<usize> = (0..columns).collect();
                places.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                places.into_iter().take(k).map(|place| place as i64)
            })
            .collect();
        let assert_right = |values: &[f32], places: &[i64]| {
            assert_eq!(places, expected);
            for (at, (&value, &place)) in values.iter().zip(places).enumerate() {
                let expected = from[at / k * columns + place as usize];
                assert_eq!(value.to_bits(), expected.to_bits());
            }
        };
        let (mut values, mut places) = (vec![0f32; rows * k], vec![0i64; rows * k]);
        top_k::top_k(&from, columns, k, &mut values, &mut places);
        assert_right(&values, &places);
        let mut firsts = vec![0i64; rows];
        top_k::argmax(&from, columns, &mut firsts);
        assert!(firsts.iter().eq(expected.iter().step_by(k)));
        let (columns, rows, k) = (columns as u32, rows as u32, k as u32);
        for machine in machines {
            values.fill(0.0);
            places.fill(-1);
            let arguments = vec![
                read(&from),
                write(&mut values),
                write(&mut places),
                value(columns),
                value(k),
                value(top_k::capacity(k)),
            ];
            machine.launch("top_k", &top_k::grid(rows, columns, k), arguments);
            assert_right(&values, &places);
            firsts.fill(-1);
            let arguments = vec![read(&from), write(&mut firsts), value(columns)];
            machine.launch("argmax", &top_k::argmax_grid(rows, columns), arguments);
            assert!(firsts.iter().eq(expected.iter().step_by(k as usize)));
        }
    });
}
