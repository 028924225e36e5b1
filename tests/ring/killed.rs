//! Clients that die in the middle of it leave nothing behind.

use std::{
    env,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nereid_ring_client::Options;

use crate::server::{DRIVERS, Server, echo, submit};

/// Where the client that is to be killed finds the server.
const SOCKET: &str = "NEREID_TEST_RING_SOCKET";
/// How many are killed; `make test-long` kills more.
const KILLS: &str = "NEREID_TEST_KILLS";
const KILLS_USUAL: usize = 12;
const ARENA_BYTES: u64 = 32 << 20;
const BUDGET_BYTES: u64 = 512 << 20;

#[test]
fn killed_clients_leave_nothing_and_disturb_nobody() {
    let kills = env::var(KILLS).ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS_USUAL);
    for driver in DRIVERS {
        let budget = format!("--memory-budget-byte-size={BUDGET_BYTES}");
        let server = Server::start(driver, &[&budget]);
        let mut other = server.client();
        echo(&mut other, "fp32", &[1; 64]).unwrap();
        server.wait_until("one client is left", |server| server.memories() == 1);
        let descriptors = server.descriptors();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..kills {
            let mut client = Command::new(env::current_exe().unwrap())
                .args(["--exact", "killed::a_client_that_is_killed", "--ignored"])
                .env(SOCKET, server.socket())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            server.wait_until("the client has come", |server| server.memories() > 1);
            let until = Instant::now() + Duration::from_micros(random.u64(0..20_000));
            while Instant::now() < until {
                echo(&mut other, "fp32", &[1; 64]).unwrap();
            }
            client.kill().unwrap();
            client.wait().unwrap();
            echo(&mut other, "fp32", &[2; 64]).unwrap();
        }
        server.wait_until("nothing is left", |server| {
            server.memories() == 1 && server.descriptors() == descriptors
        });
        // All of the budget but what this test's own client has.
        let own = Options::default().arena_bytes;
        let rest = Options { arena_bytes: BUDGET_BYTES - own - (2 << 20), ..Options::default() };
        let mut rest = server.connect(&rest).unwrap();
        echo(&mut rest, "fp32", &[1; 64]).unwrap();
    }
}

/// Runs in a process of its own, until that is killed.
#[test]
#[ignore = "a part of killed_clients_leave_nothing_and_disturb_nobody"]
fn a_client_that_is_killed() {
    let Some(socket) = env::var_os(SOCKET) else { return };
    let options = Options { arena_bytes: ARENA_BYTES, ..Options::default() };
    let mut ring = nereid_ring_client::Ring::connect(socket, &options).unwrap();
    let large = vec![3; 2_000_000];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        for model in ["fp32", "int64", "late"] {
            // Full is as it may be.
            let _ = submit(&mut ring, model, &[1; 64]);
            let _ = submit(&mut ring, model, &large);
        }
        ring.ring();
        while ring.in_flight() > 100 && ring.try_next().unwrap().is_some() {}
        thread::yield_now();
    }
}
