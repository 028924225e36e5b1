use std::collections::BTreeMap;

/// Gives things back in the order in which they were sent out, whatever comes back first.
pub struct InOrder<T> {
    sent: u64,
    /// The ticket of what is to be given back next.
    next: u64,
    held: BTreeMap<u64, T>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { sent: 0, next: 0, held: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    /// The ticket of what is sent out now.
    pub fn ticket(&mut self) -> u64 {
        self.sent += 1;
        self.sent - 1
    }

    /// The ticket of what is to be given back next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes back what has this ticket, and gives back all whose turn it is by that.
    pub fn back(&mut self, ticket: u64, thing: T) -> Vec<T> {
        self.held.insert(ticket, thing);
        let mut ready = Vec::new();
        while let Some(thing) = self.held.remove(&self.next) {
            ready.push(thing);
            self.next += 1;
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_comes_back_in_any_order_is_given_back_in_one(
            order in Just((0..20_u64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut queue = InOrder::default();
            prop_assert!(order.iter().zip(0..).all(|(_, ticket)| queue.ticket() == ticket));
            let mut given = Vec::new();
            for (seen, &ticket) in order.iter().enumerate() {
                given.extend(queue.back(ticket, ticket));
                let missing = (0..20).find(|missing| !order[..=seen].contains(missing));
                prop_assert_eq!(given.len() as u64, missing.unwrap_or(20));
            }
            prop_assert_eq!(given, (0..20).collect::<Vec<_>>());
        }
    }
}
