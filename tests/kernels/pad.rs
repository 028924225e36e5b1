use nereid::device::kernels::pad;

use super::{
    Machine, check,
    machine::{bits, read, value, write},
};

fn all_ways<T: bytemuck::Pod + PartialEq + std::fmt::Debug>(
    random: &mut fastrand::Rng,
    machines: &[Box<dyn Machine>],
    mut element: impl FnMut(&mut fastrand::Rng) -> T,
) {
    let (rows, length) = (random.usize(1..8), random.usize(1..400));
    let mut offsets = vec![0];
    for _ in 0..rows {
        // Some are longer than a row.
        offsets.push(offsets[offsets.len() - 1] + random.usize(..=length + 5));
    }
    let from: Vec<T> = (0..offsets[rows]).map(|_| element(random)).collect();
    let fill = element(random);
    let expected: Vec<T> = (0..rows * length)
        .map(|at| match offsets[at / length] + at % length {
            place if place < offsets[at / length + 1] => from[place],
            _ => fill,
        })
        .collect();
    // What a sequence has beyond the row's length stays as it is.
    let expected_back: Vec<T> = (0..from.len())
        .map(|at| {
            let row = offsets.partition_point(|&offset| offset <= at) - 1;
            if at - offsets[row] < length { from[at] } else { fill }
        })
        .collect();
    let expected_mask: Vec<i64> = (0..rows * length)
        .map(|at| (at % length < offsets[at / length + 1] - offsets[at / length]).into())
        .collect();
    let mut mask = vec![7i64; rows * length];
    pad::mask(&offsets, &mut mask, length);
    assert_eq!(mask, expected_mask);
    let mut padded = vec![fill; expected.len()];
    let mut back = vec![fill; from.len()];
    pad::pad(&from, &offsets, &mut padded, length, fill);
    assert_eq!(padded, expected);
    pad::unpad(&padded, &offsets, &mut back, length);
    assert_eq!(back, expected_back);

    let offsets: Vec<u64> = offsets.iter().map(|&offset| offset as u64).collect();
    let grid = pad::grid(rows as u32, length as u64);
    let bytes = size_of::<T>();
    for machine in machines {
        padded.fill(T::zeroed());
        back.fill(fill);
        let arguments =
            vec![read(&from), read(&offsets), write(&mut padded), value(length as u64), bits(fill)];
        machine.launch(&format!("pad_{bytes}"), &grid, arguments);
        assert_eq!(padded, expected);
        let arguments = vec![read(&padded), read(&offsets), write(&mut back), value(length as u64)];
        machine.launch(&format!("unpad_{bytes}"), &grid, arguments);
        assert_eq!(back, expected_back);
        mask.fill(7);
        let arguments = vec![read(&offsets), write(&mut mask), value(length as u64)];
        machine.launch("pad_mask", &grid, arguments);
        assert_eq!(mask, expected_mask);
    }
}

#[test]
fn sequences_become_rows_and_rows_sequences() {
    check(0..25, |random, machines| {
        all_ways(random, machines, |random| random.u8(..));
        all_ways(random, machines, |random| random.u16(..));
        all_ways(random, machines, |random| random.f32());
        all_ways(random, machines, |random| random.i64(..));
    });
}
