use nereid::device::kernels::take;

use super::{
    Machine, check,
    machine::{read, value, write},
};

fn all_ways<T: bytemuck::Pod + Default + PartialEq + std::fmt::Debug>(
    random: &mut fastrand::Rng,
    machines: &[Box<dyn Machine>],
    mut element: impl FnMut(&mut fastrand::Rng) -> T,
) {
    let (rows, count) = (random.usize(1..6), random.usize(0..50));
    let (wanted, each) = (random.usize(1..700), random.usize(1..9));
    let entries: Vec<T> = (0..rows * count * each).map(|_| element(random)).collect();
    // Now and then one that names no entry, by little or by far.
    let index = |random: &mut fastrand::Rng| match random.usize(..500) {
        0 => random.i32(..),
        1 => count as i32,
        _ => random.i32(0..=(count as i32 - 1).max(0)),
    };
    let indices: Vec<i32> = (0..rows * wanted).map(|_| index(random)).collect();
    let is_there = |index: i32| (0..count as i32).contains(&index);
    let expected: Vec<T> = (0..rows * wanted * each)
        .map(|at| match (at / each / wanted, indices[at / each]) {
            (row, index) if is_there(index) => {
                entries[(row * count + index as usize) * each + at % each]
            }
            _ => T::default(),
        })
        .collect();
    let expected_faults: Vec<i64> = indices
        .chunks(wanted)
        .flat_map(|row| match row.iter().position(|&index| !is_there(index)) {
            Some(place) => [place as i64, row[place].into()],
            None => [-1, 0],
        })
        .collect();
    let wide: Vec<i64> = indices.iter().copied().map(i64::from).collect();
    let mut taken = vec![T::zeroed(); expected.len()];
    take::take(&entries, &wide, &mut taken, [count, wanted, each]);
    assert_eq!(taken, expected);
    for (row, fault) in wide.chunks(wanted).zip(expected_faults.chunks(2)) {
        let first = take::first_fault(row, count);
        assert_eq!(first.map(|(place, index)| vec![place as i64, index]), {
            (fault[0] >= 0).then(|| fault.to_vec())
        });
    }
    for machine in machines {
        for index_bytes in [4u32, 8] {
            let named = || if index_bytes == 4 { read(&indices) } else { read(&wide) };
            let mut faults = vec![7i64; 2 * rows];
            let arguments = vec![
                named(),
                write(&mut faults),
                value(index_bytes),
                value(count as u64),
                value(wanted as u32),
            ];
            let grid = take::check_grid(rows as u32, wanted as u32);
            machine.launch("check_indices", &grid, arguments);
            assert_eq!(faults, expected_faults);
            taken.fill(element(random));
            let arguments = vec![
                read(&entries),
                named(),
                write(&mut taken),
                value(index_bytes),
                value(rows as u64),
                value(count as u64),
                value(wanted as u64),
                value(each as u64),
            ];
            let grid = take::grid(expected.len() as u64);
            machine.launch(&format!("take_{}", size_of::<T>()), &grid, arguments);
            assert_eq!(taken, expected);
        }
    }
}

#[test]
fn entries_are_taken_by_their_indices() {
    check(0..20, |random, machines| {
        all_ways(random, machines, |random| random.u8(..));
        all_ways(random, machines, |random| random.u16(..));
        all_ways(random, machines, |random| random.f32());
        all_ways(random, machines, |random| random.i64(..));
    });
}
