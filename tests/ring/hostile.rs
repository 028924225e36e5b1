//! Clients that break the rules: each harms itself alone.

use std::{
    env,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nereid_ring::{
    DataType, HELLO_BYTES, Operation, Parameter, Request, SequenceId, Span, Submission, Tensor,
    Value, WELCOME_BYTES, Wanted, Words,
};
use nereid_ring_client::Options;

use crate::{
    raw::Raw,
    server::{DRIVERS, PATIENCE, Server, echo, submit, wait},
};

/// How many clients make noise; `make test-long` has more.
const NOISE: &str = "NEREID_TEST_RING_NOISE";
const NOISE_USUAL: u64 = 40;
/// Where in the arena the inputs of noisy clients lie.
const DATA_AT: u64 = 4096;

#[test]
fn who_writes_an_impossible_index_is_sent_away_and_nobody_else() {
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let mut other = server.client();
        for (word, value) in [
            (Words::SUBMISSION_TAIL, 17),
            (Words::SUBMISSION_TAIL, u32::MAX),
            (Words::COMPLETION_HEAD, 1),
            (Words::COMPLETION_HEAD, 0x8000_0000),
        ] {
            let mut raw = Raw::connect(&server);
            raw.set(word, value);
            assert!(raw.is_sent_away(), "{word} {value}");
            echo(&mut other, "fp32", &[1; 64]).unwrap();
        }
        server.wait_until("one client is left", |server| server.memories() == 1);
    }
}

#[test]
fn a_submission_that_makes_no_sense_has_its_completion() {
    let server = Server::start("epoll", &[]);
    let mut raw = Raw::connect(&server);
    let infer = |span| Submission { token: 9, operation: Operation::Infer, span }.encode();
    let mut unknown = infer(Span::default());
    unknown[8] = 77;
    let nonsense = [
        unknown,
        infer(Span { offset: 0, length: 0 }),
        infer(Span { offset: u64::MAX, length: 8 }),
        infer(Span { offset: 8, length: u64::MAX }),
        infer(Span { offset: 0, length: (1 << 16) + 1 }),
        infer(Span { offset: 0, length: 1 << 16 }),
    ];
    for (count, entry) in (1u32..).zip(nonsense) {
        raw.put(&entry);
        let tail = raw.memory.word(Words::COMPLETION_TAIL);
        let until = Instant::now() + PATIENCE;
        while tail.load(Ordering::Acquire) != count {
            assert!(Instant::now() < until, "no completion of submission {count}");
            thread::sleep(Duration::from_millis(1));
        }
        let mut completion = [0; 32];
        raw.memory.read(raw.header.completion_at(count as usize - 1), &mut completion);
        let completion = nereid_ring::Completion::parse(&completion).unwrap();
        assert_eq!((completion.token, completion.is_final), (9, true));
        assert_eq!(completion.status, nereid_ring::Status::InvalidArgument);
    }
}

#[test]
fn what_is_no_hello_is_refused() {
    let server = Server::start("epoll", &[]);
    let mut socket = UnixStream::connect(server.socket()).unwrap();
    socket.write_all(&[b'x'; HELLO_BYTES]).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[WELCOME_BYTES..]).into_owned();
    assert!(text.contains("the client's hello: expected magic bytes"), "{text}");
}

#[test]
fn who_says_nothing_or_asks_for_all_the_memory_keeps_nobody_else_from_it() {
    const BUDGET_BYTES: u64 = 64 << 20;
    for driver in DRIVERS {
        let mut server =
            Server::start(driver, &[&format!("--memory-budget-byte-size={BUDGET_BYTES}")]);
        let silent = UnixStream::connect(server.socket()).unwrap();
        let options = Options { arena_bytes: 16 << 20, ..Options::default() };
        let mut rings = Vec::new();
        let refused = loop {
            match server.connect(&options) {
                Ok(ring) => rings.push(ring),
                Err(error) => break error.to_string(),
            }
            assert!(rings.len() as u64 * options.arena_bytes <= BUDGET_BYTES);
        };
        assert!(refused.contains(&format!("would pass the budget of {BUDGET_BYTES}")), "{refused}");
        let mut small = server.connect(&Options { arena_bytes: 1 << 16, ..options }).unwrap();
        echo(&mut small, "fp32", &[1; 64]).unwrap();
        // What one gives back another can have.
        let own = rings.len();
        drop(rings.pop());
        server.wait_until("one has left", |server| server.memories() == own);
        echo(&mut server.connect(&options).unwrap(), "fp32", &[2; 64]).unwrap();
        assert!(server.stop().unwrap() < Duration::from_secs(5));
        drop(silent);
    }
}

#[test]
fn noise_all_over_the_memory_harms_nobody_else() {
    let clients = env::var(NOISE).ok().and_then(|clients| clients.parse().ok());
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let mut other = server.client();
        echo(&mut other, "fp32", &[1; 64]).unwrap();
        server.wait_until("one client is left", |server| server.memories() == 1);
        let descriptors = server.descriptors();
        for seed in 0..clients.unwrap_or(NOISE_USUAL) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut raw = Raw::connect(&server);
            for _ in 0..random.usize(1..40) {
                noise(&mut raw, &mut random);
            }
            let came_back = echo(&mut other, "fp32", &[1; 64]);
            assert_eq!(came_back.unwrap_or_default(), [1; 64], "seed {seed}\n{}", server.log());
        }
        server.wait_until("nothing of them is left", |server| {
            server.memories() == 1 && server.descriptors() == descriptors
        });
    }
}

/// A request with some of its bytes changed, or bytes anywhere.
fn noise(raw: &mut Raw, random: &mut fastrand::Rng) {
    let mut bytes = Vec::new();
    described(random, |request| request.encode(&mut bytes).unwrap());
    for _ in 0..random.usize(0..4) {
        let at = random.usize(0..bytes.len());
        bytes[at] = random.u8(..);
    }
    raw.memory.write(raw.header.arena_at as usize, &bytes);
    let mut data = [0; 64];
    random.fill(&mut data);
    raw.memory.write(raw.header.arena_at as usize + DATA_AT as usize, &data);
    let length = bytes.len() as u64;
    let span = Span { offset: 0, length };
    // Few names, so that what is given up is sometimes there.
    let token = random.u64(0..4);
    let mut entry = Submission { token, operation: Operation::Infer, span }.encode();
    match random.u8(0..9) {
        0 => raw.set(64 * random.usize(2..8), random.u32(..)),
        1 => random.fill(&mut entry),
        2 => {
            let mut page = [0; 4096];
            random.fill(&mut page);
            raw.memory.write(4096 * random.usize(0..raw.memory.len() / 4096), &page);
        }
        3 => entry = Submission { token, operation: Operation::Cancel, span }.encode(),
        _ => {}
    }
    raw.put(&entry);
    // What was put is taken, so that requests go on being read.
    let tail = raw.memory.word(Words::COMPLETION_TAIL).load(Ordering::Acquire);
    raw.set(Words::COMPLETION_HEAD, tail);
}

/// A request that makes sense, or would if the strings in its input did.
fn described(random: &mut fastrand::Rng, tell: impl FnOnce(Request<'_>)) {
    let (model, datatype, dims) = random
        .choice([
            ("int64", DataType::Int64, &[8][..]),
            ("fp32", DataType::Fp32, &[16]),
            ("bytes", DataType::Bytes, &[1]),
            ("late", DataType::Fp32, &[2, 8]),
        ])
        .unwrap();
    let dims = dims.into();
    let data = Span { offset: DATA_AT, length: 64 };
    let offset = random.u64(DATA_AT - 64..DATA_AT + 256);
    let output = Wanted {
        name: "OUTPUT0",
        classes: random.u32(0..3),
        place: random.bool().then_some(Span { offset, length: 64 }),
    };
    let parameter = Parameter { name: "own", value: Value::Text("text") };
    tell(Request {
        model,
        area: Span { offset: 8192, length: 4096 },
        sequence: if random.bool() { SequenceId::Text("one") } else { SequenceId::None },
        timeout_us: random.u64(0..100),
        deadline_us: random.u64(0..100),
        inputs: [Tensor { name: "INPUT0", datatype, dims, data }].into_iter().collect(),
        outputs: random.bool().then_some(output).into_iter().collect(),
        parameters: random.bool().then_some(parameter).into_iter().collect(),
        ..Request::default()
    });
}

#[test]
fn memory_that_changes_under_the_server_is_copied_before_it_is_checked() {
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let options = Options { requests: 4, ..Options::default() };
        let mut ring = server.connect(&options).unwrap();
        let mut other = server.client();
        // Two strings of any lengths, which a second thread changes all the while.
        let mut input = ring.allocate(4096).unwrap();
        input.fill(0);
        let place = input.address().expose_provenance();
        let (is_over, area) = (AtomicBool::new(false), ring.allocate(8192).unwrap());
        let mut torn = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let first = std::ptr::with_exposed_provenance_mut::<u32>(place);
                // SAFETY: the block lives until the scope ends, and is aligned; all use it as it is.
                let first = unsafe { std::sync::atomic::AtomicU32::from_ptr(first) };
                while !is_over.load(Ordering::Relaxed) {
                    for length in [4092, 4088, u32::MAX, 0] {
                        first.store(length, Ordering::Relaxed);
                    }
                }
            });
            let mut request = crate::server::request("bytes", &input, &area);
            request.inputs[0].dims = [1].into_iter().collect();
            for _ in 0..300 {
                // SAFETY: both blocks live until the scope ends, and nobody looks at the area before the
                // completion.
                unsafe { ring.submit_lent(&request) }.unwrap();
                let completion = wait(&mut ring);
                let Ok(answer) = completion.answer() else { continue };
                // What was checked is what came back, whatever has become of it in its place.
                let string = area.part(answer.outputs[0].data).unwrap();
                let length = u32::from_le_bytes(string[..4].try_into().unwrap());
                if length as usize + 4 != string.len() {
                    torn.push(length);
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(torn.is_empty(), "{driver}: strings of 4092 bytes say {torn:?}");
        echo(&mut other, "fp32", &[1; 64]).unwrap();
        submit(&mut ring, "bytes", &[0; 4]).unwrap();
        wait(&mut ring);
    }
}
