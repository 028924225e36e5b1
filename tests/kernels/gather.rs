use nereid::device::kernels::{PLACES_MAX, gather};

use super::{
    check,
    machine::{Argument, read, value, write},
};

/// Segments at any alignment, as lengths and as places in one buffer.
fn segments(random: &mut fastrand::Rng) -> (Vec<u8>, Vec<std::ops::Range<usize>>) {
    let count = random.usize(1..=PLACES_MAX);
    let longest = [3, 100, 5000][random.usize(..3)];
    let mut end = 0;
    let ranges = (0..count).map(|_| {
        let start = end + random.usize(..20);
        end = start + random.usize(..=longest);
        start..end
    });
    let ranges: Vec<_> = ranges.collect();
    let bytes = (0..end).map(|_| random.u8(..)).collect();
    (bytes, ranges)
}

fn offsets(ranges: &[std::ops::Range<usize>]) -> Vec<u64> {
    let mut offsets = vec![0];
    for range in ranges {
        offsets.push(offsets[offsets.len() - 1] + range.len() as u64);
    }
    offsets
}

#[test]
fn many_places_become_one_batch() {
    check(0..40, |random, machines| {
        let (bytes, ranges) = segments(random);
        let sources: Vec<&[u8]> = ranges.iter().map(|range| &bytes[range.clone()]).collect();
        let (expected, offsets) = (sources.concat(), offsets(&ranges));
        let mut batch = vec![0; expected.len()];
        gather::gather(sources.iter().copied(), &mut batch);
        assert_eq!(batch, expected);
        for machine in machines {
            batch.fill(0);
            let arguments = vec![
                Argument::ReadTable(sources.clone()),
                read(&offsets),
                value(sources.len() as u32),
                write(&mut batch),
                value(gather::STRETCH),
            ];
            machine.launch("gather", &gather::grid(expected.len() as u64), arguments);
            assert_eq!(batch, expected);
        }
    });
}

#[test]
fn one_batch_becomes_many_places() {
    check(0..40, |random, machines| {
        let (bytes, ranges) = segments(random);
        let batch: Vec<u8> =
            ranges.iter().flat_map(|range| bytes[range.clone()].to_vec()).collect();
        let offsets = offsets(&ranges);
        let empty: Vec<Vec<u8>> = ranges.iter().map(|range| vec![0; range.len()]).collect();
        let expected: Vec<&[u8]> = ranges.iter().map(|range| &bytes[range.clone()]).collect();
        let mut places = empty.clone();
        gather::scatter(&batch, places.iter_mut().map(Vec::as_mut_slice));
        assert_eq!(places, expected);
        for machine in machines {
            places.clone_from(&empty);
            let arguments = vec![
                Argument::WriteTable(places.iter_mut().map(Vec::as_mut_slice).collect()),
                read(&offsets),
                value(ranges.len() as u32),
                // The kernel takes it as memory that could be written.
                read(&batch),
                value(gather::STRETCH),
            ];
            machine.launch("scatter", &gather::grid(batch.len() as u64), arguments);
            assert_eq!(places, expected);
        }
    });
}
