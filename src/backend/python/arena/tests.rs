use std::sync::atomic::{AtomicUsize, Ordering};

use super::{reach::KEPT_BYTES, *};

fn arena(bytes: usize) -> (Arc<Arena>, Arc<AtomicUsize>) {
    let returned = Arc::new(AtomicUsize::new(0));
    let count = returned.clone();
    let arena = Arena::new(bytes, move |_, length| {
        count.fetch_add(usize::try_from(length).unwrap(), Ordering::Relaxed);
    });
    (arena.unwrap(), returned)
}

#[test]
fn a_loan_ends_when_the_process_and_every_tensor_in_it_are_done() {
    let (arena, _) = arena(1 << 20);
    let range = arena.lend(6, [&b"abc"[..], b"def"].into_iter()).unwrap();
    let part = arena.own(Range { offset: range.offset + 1, length: 4 }).unwrap();
    assert_eq!(part, &b"bcde"[..]);
    arena.take_back(range.offset).unwrap();
    assert_eq!(arena.lent_bytes(), 6);
    drop(part);
    assert_eq!(arena.lent_bytes(), 0);
    assert!(arena.take_back(range.offset).is_err());
}

#[test]
fn what_the_process_lent_goes_back_with_the_last_reference() {
    let (arena, returned) = arena(1 << 20);
    let offset = arena.half() as u64;
    let bytes = arena.borrowed(Range { offset, length: 100 }).unwrap();
    let part = bytes.slice(10..20);
    drop(bytes);
    assert_eq!(returned.load(Ordering::Relaxed), 0);
    drop(part);
    assert_eq!(returned.load(Ordering::Relaxed), 100);
}

#[test]
fn what_is_not_there_cannot_be_named() {
    let (arena, _) = arena(1 << 20);
    let half = arena.half() as u64;
    for range in [
        Range { offset: 0, length: 1 },
        Range { offset: half - 1, length: 2 },
        Range { offset: half, length: half + 1 },
        Range { offset: u64::MAX, length: 2 },
        Range { offset: half, length: u64::MAX },
    ] {
        assert!(arena.borrowed(range).is_err(), "{range:?}");
    }
    let lent = arena.lend(64, [&[0; 64][..]].into_iter()).unwrap();
    for range in [
        Range { offset: lent.offset, length: 65 },
        Range { offset: lent.offset + 64, length: 1 },
        Range { offset: half, length: 1 },
    ] {
        assert!(arena.own(range).is_err(), "{range:?}");
    }
}

#[test]
fn a_full_half_refuses_and_takes_again_when_there_is_room() {
    let (arena, _) = arena(1 << 20);
    let all = vec![1; arena.half()];
    let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
    assert!(arena.lend(1, [&b"x"[..]].into_iter()).is_none());
    arena.take_back(range.offset).unwrap();
    assert!(arena.lend(1, [&b"x"[..]].into_iter()).is_some());
}

#[test]
fn whoever_waits_for_room_is_woken_when_there_is_some() {
    let (arena, _) = arena(1 << 20);
    let all = vec![1; arena.half()];
    let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
    let waiting = arena.clone();
    let long = Duration::from_secs(60);
    let waiter = std::thread::spawn(move || {
        let since = std::time::Instant::now();
        waiting.wait_for_room(long);
        since.elapsed()
    });
    while arena.books().waiting == 0 {
        std::thread::yield_now();
    }
    arena.take_back(range.offset).unwrap();
    assert!(waiter.join().unwrap() < long / 2);
    assert_eq!(arena.books().waiting, 0);
}

/// Bytes that the system has given for an arena.
fn resident(arena: &Arena) -> usize {
    let blocks = nix::sys::stat::fstat(arena.file()).unwrap().st_blocks;
    usize::try_from(blocks).unwrap() * 512
}

#[test]
fn pages_stay_for_the_next_batch_and_go_back_when_none_comes() {
    let (arena, _) = arena(128 << 20);
    let all = vec![1; 40 << 20];
    for _ in 0..3 {
        let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
        arena.take_back(range.offset).unwrap();
        assert!(resident(&arena) >= all.len());
        assert_eq!(arena.trim(), None);
    }
    // The while that has just begun, and the one before it, have seen none.
    arena.trim();
    arena.trim();
    assert!(resident(&arena) <= KEPT_BYTES, "{}", resident(&arena));
    assert!(arena.lend(arena.half(), [&all[..]].into_iter()).is_some());
}

#[test]
fn pages_that_are_used_when_the_rest_goes_back_follow_later() {
    let (arena, _) = arena(128 << 20);
    let all = vec![1; 40 << 20];
    let range = arena.lend(all.len(), [&all[..]].into_iter()).unwrap();
    (0..3).for_each(|_| _ = arena.trim());
    assert!(resident(&arena) >= all.len());
    arena.take_back(range.offset).unwrap();
    assert!(resident(&arena) <= KEPT_BYTES);
}

#[test]
fn the_process_is_told_to_give_back_what_the_server_has_not_seen_for_a_while() {
    let (arena, _) = arena(128 << 20);
    let half = arena.half() as u64;
    drop(arena.borrowed(Range { offset: half, length: 40 << 20 }).unwrap());
    let told: Vec<_> = (0..4).map(|_| arena.trim()).collect();
    assert_eq!(told, [None, None, Some(half + KEPT_BYTES as u64), None]);
}
