//! What a client of the ring can write: a submission and a request's description, from the first 32 bytes
//! and the rest; and what a client reads, an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nereid_ring::{Answer, Completion, Header, Request, SUBMISSION_BYTES, Submission};

fuzz_target!(|input: &[u8]| {
    let Some((entry, record)) = input.split_first_chunk::<SUBMISSION_BYTES>() else {
        return;
    };
    let header = Header::plan(8, 8, 1 << 20).expect("a small plan");
    if let (token, Ok(submission)) = Submission::parse(entry) {
        assert_eq!(Submission::parse(&submission.encode()).0, token);
        if let Ok(at) = header.arena_range("a description", submission.span) {
            assert!(at as u64 + submission.span.length <= header.total_bytes);
        }
    }
    assert!(Completion::parse(entry).is_ok());
    let area = Request::area_of(record);
    // What was read can be told again, and is read as the same.
    if let Ok(request) = Request::parse(record) {
        assert_eq!(request.area, area);
        let mut again = Vec::new();
        if request.encode(&mut again).is_ok() {
            let mut third = Vec::new();
            Request::parse(&again).expect("as it was told").encode(&mut third).expect("as before");
            assert_eq!(again, third);
        }
    }
    if let Ok(answer) = Answer::parse(record) {
        let mut again = Vec::new();
        answer.encode(&mut again).expect("as it was read");
        assert!(Answer::parse(&again).is_ok());
    }
});
