//! What clients that keep the rules get.

use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use nereid_ring_client::{Error, Options, Parameter, Request, SequenceId, Span, Status, Value};

use crate::server::{DRIVERS, Server, echo, placed, request, submit, wait};

#[test]
fn tensors_come_back_as_they_were_given() {
    for driver in DRIVERS {
        let server = Server::start(driver, &["--ring-spin"]);
        for spin in [false, true] {
            let options = Options { spin, ..Options::default() };
            let mut ring = server.connect(&options).unwrap();
            let strings = [&2u32.to_le_bytes()[..], b"ab"].concat();
            assert_eq!(echo(&mut ring, "bytes", &strings).unwrap(), strings);
            for length in [0, 64, 4096, 600_000, 4_000_000] {
                let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
                for model in ["fp32", "int64"] {
                    assert!(echo(&mut ring, model, &bytes).unwrap() == bytes, "{model} {length}");
                }
            }
            assert_eq!(ring.in_flight(), 0);
        }
    }
}

#[test]
fn an_output_goes_where_the_client_wants_it() {
    let server = Server::start("epoll", &[]);
    let mut ring = server.client();
    let mut input = ring.allocate(64).unwrap();
    input.fill(3);
    let (area, mut place) = (ring.allocate(512).unwrap(), ring.allocate(100).unwrap());
    place.fill(9);
    let request = Request {
        outputs: [placed("OUTPUT0", place.span())].into_iter().collect(),
        id: "id",
        ..request("fp32", &input, &area)
    };
    let completion = ring.infer(&request, vec![input, area, place]).unwrap();
    let answer = completion.answer().unwrap();
    assert_eq!((answer.model, answer.version, answer.id), ("fp32", 1, "id"));
    assert_eq!(answer.outputs[0].dims.as_slice(), [16]);
    drop(answer);
    let place = completion.into_blocks().unwrap().pop().unwrap();
    assert_eq!(place[..64], [3; 64]);
    assert_eq!(place[64..], [9; 36], "what lies behind the output is left alone");
}

/// Makes a request a wrong one; the span is that of a block that it may use.
type Change<'a> = &'a dyn Fn(&mut Request<'_>, Span);

#[test]
fn failures_say_what_is_wrong() {
    let server = Server::start("epoll", &["--ring-arena-byte-size-max=2000000"]);
    let mut ring = server.connect(&Options { arena_bytes: 1 << 20, ..Options::default() }).unwrap();
    let mut failure = |change: Change<'_>| {
        let (input, area) = (ring.allocate(64).unwrap(), ring.allocate(1024).unwrap());
        let other = ring.allocate(128).unwrap();
        let mut request = request("fp32", &input, &area);
        change(&mut request, other.span());
        match ring.infer(&request, vec![input, area, other]) {
            Err(error @ Error::Failed { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let reserved = Parameter { name: "priority", value: Value::Uint(1) };
    let cases: [(Change<'_>, &str); 8] = [
        (&|request, _| request.model = "absent", "unknown model: 'absent' is not found"),
        (
            &|request, _| request.inputs[0].data.offset = u64::MAX - 8,
            "input 'INPUT0' is out of bounds: an input: expected bytes within the arena of",
        ),
        (
            &|request, _| request.inputs[0].data.length = 60,
            "input byte size mismatch for input 'INPUT0' for model 'fp32'. Expected 64, got 60",
        ),
        (
            &|request, other| {
                request.outputs.push(placed("OUTPUT0", other));
                request
                    .outputs
                    .push(placed("OUTPUT1", Span { offset: other.offset + 63, length: 9 }));
            },
            "the place of output 'OUTPUT1' lies over that of output 'OUTPUT0'",
        ),
        (
            &|request, _| request.outputs.push(placed("OUTPUT0", request.area)),
            "the place of output 'OUTPUT0' lies over the area for answers",
        ),
        (
            &|request, other| {
                request.outputs.push(placed("OUTPUT0", Span { length: 63, ..other }));
            },
            "for output 'OUTPUT0' (63 bytes) should be at least 64 bytes",
        ),
        (
            &|request, _| request.area.length = 140,
            "area for answers is too small: the answer takes 80 bytes, ",
        ),
        (&|request, _| request.parameters.push(reserved), "parameter 'priority' is reserved"),
    ];
    for (change, expected) in cases {
        let message = failure(change);
        assert!(message.contains(expected), "expected {expected}, got {message}");
    }
    let refused = server.connect(&Options::default()).err().unwrap().to_string();
    assert!(refused.contains("an arena has at most 2000000 bytes"), "{refused}");
}

#[test]
fn as_many_requests_are_in_flight_as_may_be_and_all_are_answered() {
    for driver in DRIVERS {
        let server = Server::start(driver, &[]);
        let mut ring = server.connect(&Options { requests: 64, ..Options::default() }).unwrap();
        for _ in 0..10 {
            let mut tokens: HashSet<u64> =
                (0..64).map(|_| submit(&mut ring, "fp32", &[1; 64]).unwrap()).collect();
            assert!(matches!(submit(&mut ring, "fp32", &[1; 64]), Err(Error::Full { .. })));
            while !tokens.is_empty() {
                let completion = wait(&mut ring);
                assert!(tokens.remove(&completion.token));
                completion.answer().unwrap();
            }
        }
    }
}

#[test]
fn a_request_can_be_given_up_or_run_out_of_time() {
    let server = Server::start("epoll", &[]);
    let mut ring = server.client();
    let token = submit(&mut ring, "never", &[1; 64]).unwrap();
    assert!(ring.next(Some(Duration::from_millis(30))).unwrap().is_none());
    ring.cancel(token).unwrap();
    let completion = wait(&mut ring);
    assert_eq!((completion.token, completion.status), (token, Status::Cancelled));
    let (input, area) = (ring.allocate(64).unwrap(), ring.allocate(1024).unwrap());
    let request = Request { deadline_us: 5000, ..request("never", &input, &area) };
    let error = ring.infer(&request, vec![input, area]).unwrap_err().to_string();
    assert_eq!(error, "Unavailable: request deadline expired before the model ran");
    // Sequences and parameters are passed on, to a model that heeds neither.
    let (input, area) = (ring.allocate(64).unwrap(), ring.allocate(1024).unwrap());
    let request = Request {
        sequence: SequenceId::Number(7),
        sequence_start: true,
        parameters: [Parameter { name: "own", value: Value::Text("x") }].into_iter().collect(),
        ..crate::server::request("fp32", &input, &area)
    };
    ring.infer(&request, vec![input, area]).unwrap();
}

#[test]
fn the_socket_is_private_and_outlives_no_server() {
    let mut server = Server::start("epoll", &[]);
    let mode = fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.replace("epoll");
    let mut ring = server.client();
    echo(&mut ring, "fp32", &[1; 64]).unwrap();
    assert!(server.stop().unwrap() < Duration::from_secs(5));
    assert!(!server.socket().exists());
    assert!(matches!(ring.next(None), Err(Error::Closed)));
}
