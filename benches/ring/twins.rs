//! What a request cannot cost less than.

use std::{
    hint::black_box,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixStream,
    },
    thread,
    time::Duration,
};

use nereid::runtime::pin_to;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv, send},
};

use crate::percentiles;

/// Two threads that wake each other by single bytes, the other one on the server's processor. Each sends,
/// waits until there is something to read, and reads it without waiting, as the two sides of the ring do.
pub fn doorbells(period: Duration, other_core: usize) -> (Duration, Duration) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let other = thread::spawn(move || {
        pin_to(&[other_core]).expect("the server's processor");
        while hear(&theirs) {
            ring(&theirs);
        }
    });
    let measured = percentiles(period, || {
        ring(&ours);
        hear(&ours);
    });
    drop(ours);
    other.join().expect("the other side ends");
    measured
}

fn ring(socket: &UnixStream) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // An error here means that the other side has ended, which `hear` is told too.
    let _ = send(socket.as_raw_fd(), &[1], flags);
}

/// Waits for a byte; `false` when the other side has ended.
fn hear(socket: &UnixStream) -> bool {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut sockets, PollTimeout::NONE).expect("the socket can be waited for");
    matches!(recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT), Ok(1..))
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
