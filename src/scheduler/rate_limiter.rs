//! Which instance may begin, when instances share resources that are not enough for all.
//!
//! An instance that has a batch [asks](RateLimiter::ask). Of those that wait, the one comes first that
//! ran least, where each run counts as often as its priority says, so one of priority 2 runs half as
//! often as one of priority 1. The first waits until everything that it needs is free, and the others
//! behind it: who needs much is not starved by many that need little.

use std::collections::{BTreeMap, BTreeSet};

use slab::Slab;

use crate::repository::Resource;

/// How much of a resource there is, as an operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// The resource's name.
    pub name: String,
    /// How much of it.
    pub count: u32,
    /// On which device; `None` for each. Of a global resource the device means nothing.
    pub device: Option<i32>,
}

/// Why an instance cannot take part. The texts are Triton's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LimitError {
    #[error(
        "Resource count for \"{name}\" is limited to {limit} which will prevent scheduling of one \
         or more model instances, the minimum required count is {needed}"
    )]
    TooFew { name: String, limit: u32, needed: u32 },
    #[error(
        "Resource \"{name}\" is present as both global and device-specific resource in the model \
         configuration."
    )]
    GlobalAndNot { name: String },
}

/// An instance that takes part. It is used up by [`RateLimiter::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(usize);

/// A resource on a device; global ones have none.
type Place = (String, Option<i32>);

/// The state machine.
#[derive(Default)]
pub struct RateLimiter {
    /// Empty when the operator said nothing: then there is as much of each resource as the instance
    /// needs that needs most.
    limits: Vec<ResourceLimit>,
    members: Slab<Joined>,
    in_use: BTreeMap<Place, u32>,
    /// Who waits: by how much it ran, then by how long it waits.
    waiting: BTreeSet<(u64, u64, Member)>,
    tickets: u64,
}

struct Joined {
    needs: BTreeMap<Place, u32>,
    weight: u64,
    /// Its runs, each counted `weight` times.
    ran: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waiting { ticket: u64 },
    Running,
}

impl RateLimiter {
    /// Nobody takes part yet. Where `limits` name a resource twice, the least counts; those that they do
    /// not name there are none of, unless they name none at all.
    pub fn new(limits: Vec<ResourceLimit>) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Lets an instance on `device` take part that needs all of `needs` to run. A priority of 0 counts
    /// as 1, the highest.
    ///
    /// # Errors
    /// When it could never run.
    pub fn join(
        &mut self,
        needs: &[Resource],
        priority: u32,
        device: i32,
    ) -> Result<Member, LimitError> {
        let needs: BTreeMap<Place, u32> = needs
            .iter()
            .map(|need| ((need.name.clone(), (!need.global).then_some(device)), need.count))
            .collect();
        let others = || self.members.iter().flat_map(|(_, member)| member.needs.keys());
        for (name, on) in needs.keys() {
            let mut same = needs.keys().chain(others()).filter(|(other, _)| other == name);
            if same.any(|(_, other)| other.is_some() != on.is_some()) {
                return Err(LimitError::GlobalAndNot { name: name.clone() });
            }
        }
        for (place, &needed) in &needs {
            if let Some(limit) = self.limit_told(place).filter(|&limit| limit < needed) {
                return Err(LimitError::TooFew { name: place.0.clone(), limit, needed });
            }
        }
        // Who comes later is not behind by all that the others ran before.
        let ran = self.members.iter().map(|(_, member)| member.ran).min().unwrap_or(0);
        let weight = u64::from(priority.max(1));
        Ok(Member(self.members.insert(Joined { needs, weight, ran, state: State::Idle })))
    }

    /// Takes an instance out, and back what it holds.
    pub fn leave(&mut self, member: Member) {
        self.settle(member);
        self.members.try_remove(member.0);
    }

    /// The instance wants to run.
    pub fn ask(&mut self, member: Member) {
        let ticket = self.tickets;
        let Some(joined) = self.members.get_mut(member.0) else { return };
        if joined.state == State::Idle {
            joined.state = State::Waiting { ticket };
            self.tickets += 1;
            self.waiting.insert((joined.ran, ticket, member));
        }
    }

    /// An instance that asked and may run now, until it [settles](Self::settle). To be called until there
    /// is none.
    pub fn grant(&mut self) -> Option<Member> {
        let &(ran, ticket, member) = self.waiting.first()?;
        let joined = self.members.get(member.0)?;
        let free = |place: &Place| {
            self.limit(place).saturating_sub(self.in_use.get(place).copied().unwrap_or(0))
        };
        if joined.needs.iter().any(|(place, &count)| count > free(place)) {
            return None;
        }
        self.waiting.remove(&(ran, ticket, member));
        let joined = self.members.get_mut(member.0)?;
        joined.state = State::Running;
        joined.ran = joined.ran.saturating_add(joined.weight);
        for (place, count) in &joined.needs {
            *self.in_use.entry(place.clone()).or_default() += count;
        }
        Some(member)
    }

    /// The instance has run, or does not want to any more.
    pub fn settle(&mut self, member: Member) {
        let Some(joined) = self.members.get_mut(member.0) else { return };
        match std::mem::replace(&mut joined.state, State::Idle) {
            State::Idle => {}
            State::Waiting { ticket } => {
                self.waiting.remove(&(joined.ran, ticket, member));
            }
            State::Running => {
                for (place, count) in &joined.needs {
                    if let Some(used) = self.in_use.get_mut(place) {
                        *used -= count;
                        if *used == 0 {
                            self.in_use.remove(place);
                        }
                    }
                }
            }
        }
    }

    fn limit(&self, place: &Place) -> u32 {
        self.limit_told(place).unwrap_or_else(|| {
            let needs = self.members.iter().filter_map(|(_, member)| member.needs.get(place));
            needs.copied().max().unwrap_or(0)
        })
    }

    /// What the operator said, if anything.
    fn limit_told(&self, (name, device): &Place) -> Option<u32> {
        if self.limits.is_empty() {
            return None;
        }
        let of_name = self.limits.iter().filter(|limit| limit.name == *name);
        let least = |on: Option<i32>| {
            let there = of_name.clone().filter(|limit| limit.device == on);
            there.map(|limit| limit.count).min()
        };
        let told = match device {
            Some(_) => least(*device).or_else(|| least(None)),
            None => of_name.clone().map(|limit| limit.count).min(),
        };
        Some(told.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need(name: &str, count: u32) -> Resource {
        Resource { name: name.into(), global: false, count }
    }

    fn global(name: &str, count: u32) -> Resource {
        Resource { global: true, ..need(name, count) }
    }

    fn limit(name: &str, count: u32, device: Option<i32>) -> ResourceLimit {
        ResourceLimit { name: name.into(), count, device }
    }

    fn too_few(name: &str, limit: u32, needed: u32) -> Result<Member, LimitError> {
        Err(LimitError::TooFew { name: name.into(), limit, needed })
    }

    /// Everyone wants to run all the time, and one at a time does.
    fn shares(limiter: &mut RateLimiter, members: &[Member], rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; members.len()];
        for _ in 0..rounds {
            members.iter().for_each(|&member| limiter.ask(member));
            let granted = limiter.grant().unwrap();
            counts[members.iter().position(|&member| member == granted).unwrap()] += 1;
            limiter.settle(granted);
        }
        counts
    }

    #[test]
    fn priorities_weigh_the_runs() {
        let mut limiter = RateLimiter::default();
        let members =
            [0, 1, 2, 4].map(|priority| limiter.join(&[need("R", 1)], priority, 0).unwrap());
        assert_eq!(shares(&mut limiter, &members, 110), [40, 40, 20, 10]);
    }

    #[test]
    fn a_resource_is_as_large_as_the_largest_need_unless_it_is_told() {
        let mut limiter = RateLimiter::default();
        let small = [0; 3].map(|_| limiter.join(&[need("R", 2)], 0, 0).unwrap());
        let large = limiter.join(&[need("R", 4)], 0, 0).unwrap();
        small.iter().for_each(|&member| limiter.ask(member));
        assert_eq!([(); 3].map(|()| limiter.grant()), [Some(small[0]), Some(small[1]), None]);
        // The large one waits for both, and the third small one waits behind nobody who ran more.
        limiter.ask(large);
        limiter.settle(small[0]);
        assert_eq!(limiter.grant(), Some(small[2]));
        limiter.settle(small[1]);
        assert_eq!(limiter.grant(), None);
        limiter.ask(small[1]);
        assert_eq!(limiter.grant(), None, "it would starve the large one");
        limiter.settle(small[2]);
        assert_eq!([limiter.grant(), limiter.grant()], [Some(large), None]);
        limiter.leave(large);
        assert_eq!(limiter.grant(), Some(small[1]));
        assert_eq!(limiter.in_use.values().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_could_never_run_does_not_take_part() {
        let limits = vec![
            limit("R", 9, Some(0)),
            limit("R", 3, Some(0)),
            limit("R", 5, Some(0)),
            limit("G", 2, Some(7)),
        ];
        let mut limiter = RateLimiter::new(limits);
        assert_eq!(limiter.join(&[need("R", 4)], 0, 0), too_few("R", 3, 4));
        assert_eq!(limiter.join(&[need("R", 1)], 0, 1), too_few("R", 0, 1));
        assert_eq!(limiter.join(&[need("X", 1)], 0, 0), too_few("X", 0, 1));
        assert_eq!(limiter.join(&[global("G", 3)], 0, 0), too_few("G", 2, 3));
        assert!(limiter.join(&[need("R", 3), global("G", 2)], 0, 0).is_ok());
        let both = Err(LimitError::GlobalAndNot { name: "R".into() });
        assert_eq!(limiter.join(&[global("R", 1)], 0, 0), both);
        assert_eq!(limiter.members.len(), 1, "a refused one leaves nothing behind");
        let mut everywhere = RateLimiter::new(vec![limit("R", 3, None)]);
        assert!(everywhere.join(&[need("R", 3)], 0, 5).is_ok());
    }

    #[test]
    fn devices_have_their_own_and_share_what_is_global() {
        let mut limiter = RateLimiter::default();
        let own = [0, 1].map(|device| limiter.join(&[need("R", 1)], 0, device).unwrap());
        own.iter().for_each(|&member| limiter.ask(member));
        assert!(limiter.grant().is_some() && limiter.grant().is_some());
        let shared = [0, 1].map(|device| limiter.join(&[global("G", 1)], 0, device).unwrap());
        shared.iter().for_each(|&member| limiter.ask(member));
        assert!(limiter.grant().is_some() && limiter.grant().is_none());
    }

    #[test]
    fn who_comes_later_does_not_keep_the_others_out() {
        let mut limiter = RateLimiter::default();
        let old = limiter.join(&[need("R", 1)], 0, 0).unwrap();
        shares(&mut limiter, &[old], 1000);
        let new = limiter.join(&[need("R", 1)], 0, 0).unwrap();
        assert_eq!(shares(&mut limiter, &[old, new], 20), [10, 10]);
    }

    proptest! {
        /// Whoever joins, asks, settles and leaves in whatever order: no more is used than there is, and
        /// when all settle, everyone who still waits gets its turn and nothing stays in use.
        #[test]
        fn limits_hold_nobody_is_forgotten_and_nothing_is_lost(
            steps in prop::collection::vec((0_u8..5, any::<prop::sample::Index>(), 0_u32..4), 0..200),
            told in any::<bool>(),
        ) {
            let limits = vec![limit("R", 3, None), limit("G", 3, None)];
            let mut limiter = RateLimiter::new(if told { limits } else { Vec::new() });
            let mut members: Vec<Member> = Vec::new();
            let mut waiting: BTreeSet<Member> = BTreeSet::new();
            let mut running: BTreeSet<Member> = BTreeSet::new();
            for (step, at, count) in steps {
                if step == 0 {
                    let needs = [need("R", count), global("G", 3 - count)];
                    members.push(limiter.join(&needs, count, (count % 2) as i32).unwrap());
                    continue;
                }
                if members.is_empty() {
                    continue;
                }
                let member = members[at.index(members.len())];
                match step {
                    1 | 2 => {
                        limiter.ask(member);
                        if !running.contains(&member) {
                            waiting.insert(member);
                        }
                    }
                    3 => {
                        limiter.settle(member);
                        waiting.remove(&member);
                        running.remove(&member);
                    }
                    _ => {
                        limiter.leave(member);
                        members.retain(|&other| other != member);
                        waiting.remove(&member);
                        running.remove(&member);
                    }
                }
                while let Some(granted) = limiter.grant() {
                    prop_assert!(waiting.remove(&granted) && running.insert(granted));
                }
                let (mut r, mut g) = ([0, 0], 0);
                for member in &running {
                    for ((name, device), count) in &limiter.members[member.0].needs {
                        match (name.as_str(), device) {
                            ("R", Some(device)) => r[*device as usize] += count,
                            _ => g += count,
                        }
                    }
                }
                prop_assert!(g <= 3 && r.iter().all(|&used| used <= 3));
                prop_assert!(!running.is_empty() || waiting.is_empty(), "nobody runs, some wait");
            }
            let mut turns = 0;
            while let Some(member) = running.pop_first() {
                limiter.settle(member);
                while let Some(granted) = limiter.grant() {
                    prop_assert!(waiting.remove(&granted) && running.insert(granted));
                    turns += 1;
                    prop_assert!(turns < 500);
                }
            }
            prop_assert!(waiting.is_empty() && limiter.waiting.is_empty());
            prop_assert!(limiter.in_use.is_empty());
        }
    }
}
