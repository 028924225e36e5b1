//! The order of answers of models that answer their requests themselves, where it is to be that of the
//! requests.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::scheduler::InOrder;

/// Ends a request's answer.
pub type End = Box<dyn FnOnce()>;

/// The order of a queue's requests, at home.
#[derive(Default)]
pub struct AnswerOrder {
    in_order: RefCell<InOrder<Option<End>>>,
    /// Whose turn it is.
    next: Arc<AtomicU64>,
}

/// A request's place in that order.
pub struct AnswerTicket {
    /// Which of its home's orders it is of.
    pub of: u32,
    number: u64,
    next: Arc<AtomicU64>,
}

impl AnswerTicket {
    /// Whether all requests before it have been answered. Any thread may ask.
    pub fn is_next(&self) -> bool {
        self.next.load(Ordering::Acquire) == self.number
    }
}

impl AnswerOrder {
    /// The place of the request which is sent to an instance now, in this order, the number `of` at home.
    pub fn give(&self, of: u32) -> AnswerTicket {
        AnswerTicket { of, number: self.in_order.borrow_mut().ticket(), next: self.next.clone() }
    }

    /// Takes a ticket back, and ends all answers whose turn it is by that; `None` for a request that has been
    /// answered already.
    pub fn take_back(&self, ticket: &AnswerTicket, end: Option<End>) {
        let ready = self.in_order.borrow_mut().back(ticket.number, end);
        ready.into_iter().flatten().for_each(|end| end());
        self.next.store(self.in_order.borrow().next(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn who_is_early_waits_and_who_is_first_need_not() {
        let order = AnswerOrder::default();
        let ended = Rc::new(RefCell::new(Vec::new()));
        let end = |name: u32| -> Option<End> {
            let ended = ended.clone();
            Some(Box::new(move || ended.borrow_mut().push(name)))
        };
        let given: Vec<AnswerTicket> = (0..4).map(|_| order.give(0)).collect();
        let up = || given.iter().map(AnswerTicket::is_next).collect::<Vec<_>>();
        assert_eq!(up(), [true, false, false, false]);
        order.take_back(&given[1], end(1));
        assert_eq!((&*ended.borrow(), up()), (&vec![], vec![true, false, false, false]));
        order.take_back(&given[0], end(0));
        assert_eq!((&*ended.borrow(), up()), (&vec![0, 1], vec![false, false, true, false]));
        order.take_back(&given[2], None);
        assert_eq!((&*ended.borrow(), up()), (&vec![0, 1], vec![false, false, false, true]));
    }
}
