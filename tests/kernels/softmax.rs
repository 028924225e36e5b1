use nereid::device::kernels::softmax;

use super::{
    assert_close, check,
    machine::{read, value, write},
    values,
};

#[test]
fn rows_become_shares_and_their_logarithms() {
    check(0..40, |random, machines| {
        let (rows, columns) = (random.usize(1..6), [1, 7, 32, 1000, 3001][random.usize(..5)]);
        let from = values(random, rows * columns);
        let logarithms: Vec<f64> = from
            .chunks(columns)
            .flat_map(|row| {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let below = row.iter().map(move |&value| f64::from(value) - f64::from(largest));
                let sum: f64 = below.clone().map(f64::exp).sum();
                below.map(move |below| below - sum.ln())
            })
            .collect();
        let assert_right = |shares: &[f32], logs: &[f32]| {
            for ((&share, &log), &expected) in shares.iter().zip(logs).zip(&logarithms) {
                assert_close(share.into(), expected.exp(), 1.0, "softmax");
                // A small share has as many right digits as a large one.
                let slack = 2e-6 * expected.exp() + f64::from(f32::MIN_POSITIVE);
                let slack = slack * (1.0 + expected.abs() / 16.0);
                assert!((f64::from(share) - expected.exp()).abs() <= slack, "softmax");
                assert_close(log.into(), expected, 1.0, "log_softmax");
            }
        };
        let mut shares = vec![0.0; from.len()];
        let mut logs = shares.clone();
        softmax::softmax(&from, &mut shares, columns);
        softmax::log_softmax(&from, &mut logs, columns);
        assert_right(&shares, &logs);
        for machine in machines {
            let grid = softmax::grid(rows as u32, columns as u32);
            for (kernel, to) in [("softmax", &mut shares), ("log_softmax", &mut logs)] {
                to.fill(0.0);
                machine.launch(kernel, &grid, vec![read(&from), write(to), value(columns as u32)]);
            }
            assert_right(&shares, &logs);
        }
    });
}
