//! Clients beside each other: one whose ring is full takes no more than its turns, and who takes no
//! answers gets none.

use std::{sync::atomic::Ordering, thread, time::Instant};

use nereid_ring::{DataType, Operation, Request, Span, Submission, Tensor, Words};

use crate::{
    raw::Raw,
    server::{DRIVERS, PATIENCE, Server, echo},
};

/// What the greedy client has waiting.
const WAITING: u32 = 8192;
/// How much of it may be done before the other's request, which came just behind, is. The server takes
/// turns of 32; the rest is for how long this thread takes to wake up.
const BEFORE_MAX: u32 = WAITING / 2;
const ROUNDS: usize = 3;

/// A submission of a small request, which lies at the start of the arena.
fn submission(client: &Raw) -> [u8; 32] {
    let input = Tensor {
        name: "INPUT0",
        datatype: DataType::Fp32,
        dims: [16].into_iter().collect(),
        data: Span { offset: 4096, length: 64 },
    };
    let request = Request {
        model: "fp32",
        area: Span { offset: 8192, length: 1024 },
        inputs: [input].into_iter().collect(),
        ..Request::default()
    };
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    client.memory.write(client.header.arena_at as usize, &bytes);
    let span = Span { offset: 0, length: bytes.len() as u64 };
    Submission { token: 1, operation: Operation::Infer, span }.encode()
}

fn wait_for(client: &Raw, count: u32) {
    let until = Instant::now() + PATIENCE;
    while client.completed() != count {
        assert!(Instant::now() < until, "{} of {count} completions", client.completed());
        thread::yield_now();
    }
    client.memory.word(Words::COMPLETION_HEAD).store(count, Ordering::Release);
}

#[test]
fn a_full_ring_starves_no_other() {
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let (mut greedy, mut modest) = (Raw::with_places(&server, WAITING), Raw::connect(&server));
        let (many, one) = (submission(&greedy), submission(&modest));
        let mut before = Vec::new();
        for round in 1..=ROUNDS as u32 {
            (0..WAITING).for_each(|_| greedy.lay(&many));
            let done = greedy.completed();
            greedy.tell();
            modest.put(&one);
            wait_for(&modest, round);
            before.push(greedy.completed().wrapping_sub(done));
            wait_for(&greedy, round * WAITING);
        }
        before.sort_unstable();
        // The median: this thread may lose its processor at any moment.
        assert!(before[ROUNDS / 2] <= BEFORE_MAX, "{driver}: {before:?}");
    }
}

#[test]
fn submissions_wait_until_completions_are_taken() {
    const PLACES: u32 = 16;
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let (mut lazy, mut other) = (Raw::with_places(&server, PLACES), server.client());
        let one = submission(&lazy);
        let fill = |client: &mut Raw| {
            (0..PLACES).for_each(|_| client.lay(&one));
            client.tell();
        };
        let fetched =
            |client: &Raw| client.memory.word(Words::SUBMISSION_HEAD).load(Ordering::Acquire);
        fill(&mut lazy);
        let until = Instant::now() + PATIENCE;
        while lazy.completed() != PLACES {
            assert!(Instant::now() < until, "{} completions", lazy.completed());
            thread::yield_now();
        }
        fill(&mut lazy);
        echo(&mut other, "fp32", &[1; 64]).unwrap();
        assert_eq!((fetched(&lazy), lazy.completed()), (PLACES, PLACES), "{driver}");
        // Three are taken: so many more are run, and no others.
        lazy.set(Words::COMPLETION_HEAD, 3);
        while lazy.completed() != PLACES + 3 {
            assert!(Instant::now() < until, "{} completions", lazy.completed());
            thread::yield_now();
        }
        echo(&mut other, "fp32", &[1; 64]).unwrap();
        assert_eq!((fetched(&lazy), lazy.completed()), (PLACES + 3, PLACES + 3), "{driver}");
    }
}
