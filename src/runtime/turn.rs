use std::{cell::Cell, time::Duration};

use super::stall::polls;

/// How long a reactor may do work at once, in one poll, before others get their turn.
pub const TURN: Duration = Duration::from_micros(100);

thread_local! {
    /// How long work was done at once, and in which poll.
    static SPENT: Cell<(Duration, u64)> = const { Cell::new((Duration::ZERO, 0)) };
}

/// Notes how long work was done at once in the poll that the current reactor is in.
pub fn spend_turn(time: Duration) {
    SPENT.set((spent() + time, polls()));
}

/// Whether so much was done at once in this poll that others should get their turn.
pub fn turn_is_over() -> bool {
    spent() >= TURN
}

fn spent() -> Duration {
    match SPENT.get() {
        (spent, poll) if poll == polls() => spent,
        _ => Duration::ZERO,
    }
}
