//! Clients beside each other: one that keeps its ring full takes no more than its turns.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use nereid_ring_client::{Error, Options, Ring};

use crate::server::{DRIVERS, Server, echo, request, submit, wait};

/// Answers that a greedy client may get between a request of another's and its answer: some of the turns
/// that the server takes, which are of 32 requests, and less than a tenth of what the client has waiting.
const BETWEEN_MAX: u64 = 200;
const WAITING: u32 = 4096;
const REQUESTS: usize = 100;

/// Keeps the ring full, whatever the server does, and counts the answers.
fn ask_for_ever(ring: &mut Ring, stop: &AtomicBool, answers: &AtomicU64) -> Result<(), Error> {
    let blocks: Vec<_> = (0..WAITING)
        .map(|_| Ok((ring.allocate(64)?, ring.allocate(1024)?)))
        .collect::<Result<_, Error>>()?;
    let mut put = 0;
    while !stop.load(Ordering::Relaxed) {
        while ring.in_flight() < WAITING as usize {
            let (input, area) = &blocks[put % blocks.len()];
            // SAFETY: nobody looks at what comes back, and the blocks outlive the ring's use here.
            match unsafe { ring.submit_lent(&request("fp32", input, area)) } {
                Ok(_) => put += 1,
                Err(Error::Full { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        ring.ring();
        while let Some(completion) = ring.try_next()? {
            completion.answer()?;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[test]
fn a_full_ring_starves_no_other() {
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let options = Options { requests: WAITING, ..Options::default() };
        let mut greedy = server.connect(&options).unwrap();
        let mut modest = server.client();
        let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut between = Vec::new();
        thread::scope(|threads| {
            let asking = threads.spawn(|| ask_for_ever(&mut greedy, &stop, &answers));
            server.wait_until("the greedy client is served", |_| {
                answers.load(Ordering::Relaxed) > u64::from(WAITING)
            });
            for _ in 0..REQUESTS {
                let before = answers.load(Ordering::Relaxed);
                submit(&mut modest, "fp32", &[1; 64]).unwrap();
                assert!(wait(&mut modest).answer().is_ok());
                between.push(answers.load(Ordering::Relaxed) - before);
            }
            stop.store(true, Ordering::Relaxed);
            asking.join().unwrap().unwrap();
        });
        between.sort_unstable();
        // The median: threads of the test that lose their processor for a while are not the server's doing.
        let median = between[REQUESTS / 2];
        assert!(median <= BETWEEN_MAX, "{driver}: {median} of {between:?}");
        assert!(answers.into_inner() > u64::from(WAITING));
        echo(&mut modest, "fp32", &[2; 64]).unwrap();
    }
}
