//! Every order of events in small worlds, and random ones in larger worlds.

use proptest::prelude::*;
use stateright::{Checker, Model, Property};

use super::{
    world::{Event, Fault, World},
    *,
};

/// A small world: all that can happen there happens, in every order.
struct Small {
    policy: SequencePolicy,
    /// The most that are fed, and fed at first.
    instances: (usize, u32),
    ids: u64,
    /// The most requests that have no answer.
    requests: usize,
    fault: Option<Fault>,
}

impl Model for Small {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.policy.clone(), self.instances.1)]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        let flags: &[_] = match world.is_iterative() {
            true => &["s", ""],
            false => &["s", "", "e", "se", "d"],
        };
        if world.asked() < self.requests {
            let of_id = |id| flags.iter().map(move |flags| Event::Arrive { id, flags });
            events.extend((1..=self.ids).flat_map(of_id));
        }
        events.extend((0..world.asked()).map(Event::Cancel));
        for which in 0..world.instances() {
            events.push(Event::Run(which));
            if self.instances.0 > 1 {
                events.extend([Event::Leave(which), Event::Lose(which)]);
            }
        }
        for which in 0..world.running() {
            events.push(Event::End(which));
            events.extend(world.is_iterative().then_some(Event::Again(which)));
        }
        if world.instances() < self.instances.0 {
            events.push(Event::Add);
        }
        events.push(Event::Pass);
        events.extend(self.fault.map(Event::Break));
    }

    fn next_state(&self, before: &World, event: Event) -> Option<World> {
        let mut world = before.clone();
        world.happen(event).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SLOTS, |_, world: &World| world.slots_are_right()),
            Property::always("a request waits, runs or is answered, once", |_, world: &World| {
                world.requests_are_in_one_place()
            }),
            Property::always("no event does wrong", |_, world: &World| world.wrong().is_none()),
            Property::always("all comes to its end", |_, world: &World| world.comes_to_its_end()),
            Property::sometimes("a sequence waits for a slot", |_, world: &World| {
                world.has_backlog()
            }),
        ]
    }
}

const SLOTS: &str = "a slot is free or has one holder";

/// How many events follow each other, and one more.
fn depth() -> usize {
    std::env::var("NEREID_SEQUENCE_DEPTH").map_or(6, |depth| depth.parse().unwrap())
}

#[test]
fn every_order_of_events_keeps_what_is_promised() {
    let iterative = |policy| SequencePolicy { iterative: true, ..policy };
    for (policy, instances, ids, requests) in [
        (direct(1), (1, 1), 2, 3),
        (oldest(1, 1), (1, 1), 2, 3),
        (direct(2), (1, 1), 3, 3),
        (oldest(2, 2), (1, 1), 3, 3),
        (direct(1), (2, 2), 2, 3),
        (oldest(1, 1), (2, 2), 2, 3),
        (iterative(direct(1)), (2, 1), 2, 3),
        (iterative(oldest(1, 1)), (2, 1), 2, 3),
    ] {
        let small = Small { policy, instances, ids, requests, fault: None };
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        let checker = small.checker().threads(threads).target_max_depth(depth()).spawn_bfs().join();
        checker.assert_properties();
    }
}

#[test]
fn a_release_that_is_broken_is_found() {
    for fault in [Fault::TooOften, Fault::Never] {
        for policy in [direct(1), oldest(1, 1)] {
            let instances = (1, 1);
            let small = Small { policy, instances, ids: 2, requests: 2, fault: Some(fault) };
            let checker = small.checker().target_max_depth(4).spawn_bfs().join();
            let found = checker.discovery(SLOTS).map(|path| path.into_actions());
            assert!(found.is_some_and(|events| events.contains(&Event::Break(fault))));
        }
    }
}

fn events() -> impl Strategy<Value = Event> {
    let flags = prop::sample::select(vec!["s", "", "", "e", "se", "sd", "d"]);
    let which = || 0..16_usize;
    prop_oneof![
        8 => (1..5_u64, flags).prop_map(|(id, flags)| Event::Arrive { id, flags }),
        4 => which().prop_map(Event::Run),
        4 => which().prop_map(Event::End),
        2 => which().prop_map(Event::Cancel),
        2 => Just(Event::Pass),
        2 => Just(Event::Add),
        2 => which().prop_map(Event::Leave),
        1 => which().prop_filter_map("seldom", |it| (it < 8).then_some(Event::Lose(it))),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_all_is_kept_that_is_promised(
        events in prop::collection::vec(events(), 0..60),
        slots in 1..4_u32,
        instances in 1..3_u32,
        is_direct in any::<bool>(),
    ) {
        let policy = if is_direct { direct(slots) } else { oldest(2, slots) };
        let mut world = World::new(policy, instances);
        for event in events {
            world.happen(event);
            prop_assert_eq!(world.wrong(), None);
            prop_assert!(world.slots_are_right() && world.requests_are_in_one_place(), "{:?}", world);
        }
        prop_assert!(world.comes_to_its_end(), "{:?}", world);
    }
}
