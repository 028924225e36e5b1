//! What a request cannot cost less than.

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use nereid::runtime::pin_to;

use crate::percentiles;

/// Two threads that wake each other by single bytes, the other one on the server's processor.
pub fn doorbells(period: Duration, other_core: usize) -> (Duration, Duration) {
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let other = thread::spawn(move || {
        pin_to(&[other_core]).expect("the server's processor");
        let mut byte = [0];
        while theirs.read_exact(&mut byte).is_ok() {
            theirs.write_all(&byte).expect("the other side reads");
        }
    });
    let mut byte = [0];
    let measured = percentiles(period, || {
        ours.write_all(&[1]).expect("the other side reads");
        ours.read_exact(&mut byte).expect("the other side answers");
    });
    drop(ours);
    other.join().expect("the other side ends");
    measured
}

/// The time of one copy of so many bytes, each time to and from other places, as requests would.
pub fn copy(bytes: usize, period: Duration) -> Duration {
    const PLACES: usize = 8;
    let source = vec![1u8; bytes * PLACES];
    let mut target = vec![0u8; bytes * PLACES];
    let mut place = 0;
    let (median, _) = percentiles(period / 2, || {
        let range = place * bytes..(place + 1) * bytes;
        target[range.clone()].copy_from_slice(&source[range]);
        black_box(&mut target);
        place = (place + 1) % PLACES;
    });
    median
}
