//! A queue and what happens around it, one event after the other, held to what it promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
};

use super::{super::table::view::View, *};

/// What can happen. Numbers that are too large count from the beginning again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A request comes: `s` is START, `e` END, `d` has a deadline.
    Arrive { id: u64, flags: &'static str },
    /// The client of one that has no answer leaves.
    Cancel(usize),
    /// What can start on an instance starts.
    Run(usize),
    /// A batch that runs ends.
    End(usize),
    /// A batch that runs ends, and its requests are to run again.
    Again(usize),
    /// Time passes.
    Pass,
    /// A further instance is fed.
    Add,
    /// An instance is to leave, if it is not the last.
    Leave(usize),
    /// An instance on which nothing runs cannot run any more.
    Lose(usize),
    /// The release of a slot is broken.
    Break(Fault),
}

/// How the release of a slot can be broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    TooOften,
    Never,
}

/// What an event must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    AnsweredTwice,
    /// A request was taken, or turned away, against the rules.
    Admitted,
    /// It failed, and there was no reason.
    Failed,
    /// Nobody waits for it any more.
    InVain,
    /// It goes on without one that its client has taken back.
    Torn,
    OutOfOrder,
    /// Its sequence was elsewhere before.
    Moved,
    /// Its sequence carried something else.
    Carried,
    EmptyBatch,
    /// Who waits for a slot got one after somebody who came later.
    PassedOver,
    /// There is something to run, and nobody was told.
    NotWoken,
    /// An instance left that was not to, or in the middle of something.
    Left,
}

#[derive(Clone)]
pub struct World {
    queue: Queue,
    /// Of each instance.
    slots: u32,
    now: u64,
    instances: Vec<u32>,
    leaving: BTreeSet<u32>,
    running: Vec<(u32, Batch)>,
    asked: Vec<Asked>,
    been: BTreeMap<SequenceKey, Been>,
    wrong: Option<Wrong>,
}

/// A request that was accepted and has no answer yet.
#[derive(Clone, Copy)]
struct Asked {
    name: usize,
    key: SequenceKey,
    start: bool,
}

/// Where a sequence runs, and what it was given to carry.
#[derive(Clone, Copy)]
struct Been {
    place: (u32, usize),
    carried: u32,
}

const STEP_US: u64 = 700;

impl World {
    pub fn new(policy: SequencePolicy, instances: u32) -> Self {
        let slots = match policy.strategy {
            SequenceStrategy::Direct { .. } => policy.max_batch_size.max(1),
            SequenceStrategy::Oldest { max_candidates, .. } => max_candidates,
        };
        Self {
            queue: Queue::new(policy, instances, 0),
            slots,
            now: 0,
            instances: (0..instances).collect(),
            leaving: BTreeSet::new(),
            running: Vec::new(),
            asked: Vec::new(),
            been: BTreeMap::new(),
            wrong: None,
        }
    }

    /// The requests that have no answer.
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    pub fn instances(&self) -> usize {
        self.instances.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a sequence waits for a slot.
    pub fn has_backlog(&self) -> bool {
        self.queue.table.standings().iter().any(|it| it.slot.is_none() && !it.is_lost)
    }

    pub fn is_iterative(&self) -> bool {
        self.queue.policy.iterative
    }

    pub fn wrong(&self) -> Option<Wrong> {
        self.wrong
    }

    /// Lets something happen. Tells whether there was something to happen to.
    pub fn happen(&mut self, event: Event) -> bool {
        let before = self.queue.table.standings();
        let has_happened = match event {
            Event::Arrive { id, flags } => self.arrive(id, flags),
            Event::Cancel(which) => self.cancel(which),
            Event::Run(which) => self.run(which),
            Event::End(which) => self.end(which, false),
            Event::Again(which) => self.end(which, true),
            Event::Pass => {
                self.now += STEP_US;
                self.queue.expire(at(self.now));
                true
            }
            Event::Add => {
                let number = (0..).find(|it| !self.instances.contains(it)).unwrap_or_default();
                self.queue.add(number, at(self.now));
                self.instances.push(number);
                true
            }
            Event::Leave(which) => self.leave(which),
            Event::Lose(which) => self.lose(which),
            Event::Break(Fault::TooOften) => {
                self.queue.table.release_too_often(at(self.now));
                true
            }
            Event::Break(Fault::Never) => {
                self.queue.table.release_never();
                true
            }
        };
        for instance in self.queue.left() {
            let is_right = self.leaving.remove(&instance) && !self.is_busy(instance);
            self.expect(is_right, Wrong::Left);
            self.instances.retain(|other| *other != instance);
        }
        let after = self.queue.table.standings();
        self.been.retain(|key, _| after.iter().any(|it| it.key == *key));
        let had = |key| before.iter().any(|it| it.key == key && it.slot.is_some());
        let last = after.iter().rposition(|it| it.slot.is_some() && !had(it.key));
        let older = &after[..last.unwrap_or_default()];
        self.expect(older.iter().all(|it| it.slot.is_some() || it.is_lost), Wrong::PassedOver);
        has_happened
    }

    fn expect(&mut self, is_right: bool, wrong: Wrong) {
        if !is_right {
            self.wrong.get_or_insert(wrong);
        }
    }

    fn is_busy(&self, instance: u32) -> bool {
        self.running.iter().any(|(busy, _)| *busy == instance)
    }

    fn instance(&self, which: usize) -> Option<u32> {
        self.instances.get(which.checked_rem(self.instances.len())?).copied()
    }

    fn arrive(&mut self, id: u64, flags: &'static str) -> bool {
        let name = (1..).find(|name| self.asked.iter().all(|it| it.name != *name));
        let mut request = fake(name.unwrap_or_default(), id, flags);
        let (name, start) = (request.name, flags.contains('s'));
        request.deadline = flags.contains('d').then(|| at(self.now + STEP_US));
        let before = self.queue.clone();
        let goes_on = before.table.by_id(id).is_some_and(|it| !it.is_lost);
        let stays = self.instances.len() > self.leaving.len();
        let pushed = self.queue.push(request, at(self.now));
        self.expect(pushed.is_ok() == (goes_on || start && stays), Wrong::Admitted);
        let Ok(ready) = pushed else { return true };
        let of_queue = self.requests();
        let found = of_queue.iter().find(|(_, request)| request.name == name);
        let Some(key) = found.map(|(key, _)| *key) else { return true };
        self.asked.push(Asked { name, key, start });
        let is_told = ready.is_some() || self.is_wanted(&before) == self.is_wanted(&self.queue);
        self.expect(is_told, Wrong::NotWoken);
        true
    }

    /// The instances that run nothing, for which there is something to do now.
    fn is_wanted(&self, queue: &Queue) -> Vec<u32> {
        let is_wanted = |instance: &u32| {
            let mut hopeless = Vec::new();
            let decision = queue.clone().next(*instance, at(self.now), &mut hopeless);
            let runs = matches!(decision, SequenceDecision::Run(_));
            !self.is_busy(*instance) && (runs || !hopeless.is_empty())
        };
        self.instances.iter().copied().filter(is_wanted).collect()
    }

    fn cancel(&mut self, which: usize) -> bool {
        let Some(which) = which.checked_rem(self.asked.len()) else { return false };
        let name = self.asked[which].name;
        let of_instances = self.queue.instances.values_mut().flat_map(|instance| match instance {
            Instance::Direct(_) => None,
            Instance::Oldest(queue) => Some(queue.requests_mut().map(|front| &mut front.request)),
        });
        let of_batches = self.running.iter_mut().flat_map(|(_, batch)| &mut batch.rows);
        let of_batches = of_batches.flatten().map(|row| &mut row.request);
        let waiting = self.queue.table.requests_mut().chain(of_instances.flatten());
        let mut all = waiting.chain(of_batches);
        let Some(request) = all.find(|request| request.name == name) else { return false };
        !std::mem::replace(&mut request.cancelled, true)
    }

    fn run(&mut self, which: usize) -> bool {
        let instance = self.instance(which).filter(|instance| !self.is_busy(*instance));
        let Some(instance) = instance else { return false };
        let mut hopeless = Vec::new();
        let decision = self.queue.next(instance, at(self.now), &mut hopeless);
        let nothing_failed = hopeless.is_empty();
        self.fail(hopeless);
        let SequenceDecision::Run(batch) = decision else { return !nothing_failed };
        self.expect(batch.rows.iter().any(Option::is_some), Wrong::EmptyBatch);
        let is_direct = matches!(self.queue.policy.strategy, SequenceStrategy::Direct { .. });
        for (row, taken) in batch.rows.iter().enumerate() {
            let Some(SequenceRow { key, request, start, carried, .. }) = taken else { continue };
            let place = (instance, if is_direct { row } else { 0 });
            let late = request.deadline.is_some_and(|deadline| deadline <= at(self.now));
            self.expect(!request.cancelled && !late, Wrong::InVain);
            let first = self.asked.iter().find(|it| it.key == *key);
            self.expect(first.is_some_and(|it| it.name == request.name), Wrong::OutOfOrder);
            let been = self.been.entry(*key).or_insert(Been { place, carried: 0 });
            let expected = if *start { 0 } else { been.carried };
            let (stays, carries) = (been.place == place, *carried == expected);
            self.expect(stays, Wrong::Moved);
            self.expect(carries, Wrong::Carried);
        }
        self.running.push((instance, batch));
        true
    }

    /// Answers requests that must not run any more.
    fn fail(&mut self, hopeless: Vec<(Fake, Error)>) {
        let mut left = BTreeSet::new();
        for (request, error) in hopeless {
            let key = self.answer(request.name);
            let late = request.deadline.is_some_and(|deadline| deadline <= at(self.now));
            let is_right = match error {
                Error::Cancelled => request.cancelled,
                Error::DeadlineExpired => late,
                Error::SequenceLeft { .. } => left.contains(&key) && !starts(&request),
                _ => false,
            };
            left.insert(key);
            self.expect(is_right, Wrong::Failed);
        }
        for key in left.into_iter().flatten() {
            let first = self.asked.iter().find(|it| it.key == key);
            self.expect(first.is_none_or(|it| it.start), Wrong::Torn);
        }
    }

    fn answer(&mut self, name: usize) -> Option<SequenceKey> {
        let found = self.asked.iter().position(|it| it.name == name);
        self.expect(found.is_some(), Wrong::AnsweredTwice);
        found.map(|found| self.asked.remove(found).key)
    }

    fn end(&mut self, which: usize, again: bool) -> bool {
        let Some(which) = which.checked_rem(self.running.len()) else { return false };
        let (_, batch) = self.running.remove(which);
        for SequenceRow { key, mut request, carried, .. } in batch.rows.into_iter().flatten() {
            let carried = (carried + 1) % 2;
            if let Some(been) = self.been.get_mut(&key) {
                been.carried = carried;
            }
            if again {
                if let Some(sequence) = &mut request.sequence {
                    (sequence.start, sequence.end) = (false, false);
                }
                let is_back = self.queue.push_again(key, request, at(self.now)).is_ok();
                self.expect(is_back, Wrong::Admitted);
            } else {
                self.answer(request.name);
            }
            self.queue.finished(key, carried, at(self.now));
        }
        true
    }

    fn leave(&mut self, which: usize) -> bool {
        let staying = self.instances.iter().filter(|it| !self.leaving.contains(it));
        let staying: Vec<u32> = staying.copied().collect();
        if staying.len() < 2 {
            return false;
        }
        let instance = staying[which % staying.len()];
        self.queue.leave(instance);
        self.leaving.insert(instance);
        true
    }

    fn lose(&mut self, which: usize) -> bool {
        let instance = self.instance(which).filter(|instance| !self.is_busy(*instance));
        let Some(instance) = instance else { return false };
        self.instances.retain(|other| *other != instance);
        self.leaving.remove(&instance);
        let mut hopeless = Vec::new();
        self.queue.lose(instance, String::new(), at(self.now), &mut hopeless);
        for (request, error) in hopeless {
            self.answer(request.name);
            self.expect(matches!(error, Error::ModelUnavailable { .. }), Wrong::Failed);
        }
        true
    }

    /// The requests that wait, each with its sequence.
    fn requests(&self) -> Vec<(SequenceKey, &Fake)> {
        let of_instances = self.queue.instances.values().flat_map(|instance| match instance {
            Instance::Direct(_) => None,
            Instance::Oldest(queue) => Some(queue.waiting()),
        });
        let of_instances = of_instances.flatten().map(|(front, _)| (front.key, &front.request));
        self.queue.table.requests().chain(of_instances).collect()
    }

    /// Every slot of the instances that stay is free or held by one sequence, nobody holds one of another
    /// instance, none is free while a sequence waits for one, and none is kept for nothing.
    pub fn slots_are_right(&self) -> bool {
        let standings = self.queue.table.standings();
        let held: Vec<_> = standings.iter().filter_map(|it| it.slot).collect();
        let free = self.queue.table.free();
        let mut all: Vec<_> = held.iter().chain(&free).copied().collect();
        all.sort();
        let count = all.len();
        all.dedup();
        let staying = |slot: &&Slot| !self.leaving.contains(&slot.instance);
        let expected = (self.instances.len() - self.leaving.len()) * self.slots as usize;
        count == all.len()
            && all.iter().all(|slot| self.instances.contains(&slot.instance))
            && free.iter().all(|slot| staying(&slot))
            && all.iter().filter(staying).count() == expected
            && (free.is_empty() || standings.iter().all(|it| it.slot.is_some() || it.is_lost))
            && standings.iter().all(|it| {
                it.slot.is_none() || it.is_busy || it.has_waiting || self.been.contains_key(&it.key)
            })
    }

    /// Every request that has no answer waits or runs, in one place.
    pub fn requests_are_in_one_place(&self) -> bool {
        let waiting = self.requests();
        let running = self.running.iter().flat_map(|(_, batch)| batch.rows.iter().flatten());
        let running = running.map(|row| row.request.name);
        let mut found: Vec<_> = waiting.iter().map(|(_, it)| it.name).chain(running).collect();
        let mut asked: Vec<_> = self.asked.iter().map(|it| it.name).collect();
        found.sort_unstable();
        asked.sort_unstable();
        found == asked && self.queue.len() == waiting.len()
    }

    /// If nothing comes any more, a request is answered in every other round or oftener, and in the end
    /// there is no sequence.
    pub fn comes_to_its_end(&self) -> bool {
        let mut world = self.clone();
        for _ in 0..2 * self.asked.len() + 3 {
            (0..world.instances.len()).for_each(|which| _ = world.happen(Event::Run(which)));
            while world.happen(Event::End(0)) {}
            world.happen(Event::Pass);
            if world.wrong.is_some() || !world.slots_are_right() {
                return false;
            }
        }
        world.asked.is_empty() && world.queue.is_empty() && world.queue.live() == 0
    }

    fn seen(&self) -> Seen {
        let (queue, now) = (&self.queue, at(self.now));
        let delay = match queue.policy.strategy {
            SequenceStrategy::Direct { max_queue_delay, .. } => max_queue_delay,
            SequenceStrategy::Oldest { max_queue_delay, .. } => max_queue_delay,
        };
        let standings = queue.table.standings();
        let place = |key: SequenceKey| standings.iter().position(|it| it.key == key);
        let request = |request: &Fake, key: SequenceKey, waited: Duration| {
            let of_sequence = self.asked.iter().filter(|it| it.key == key);
            SeenRequest {
                place: of_sequence.map(|it| it.name).position(|name| name == request.name),
                starts: starts(request),
                is_cancelled: request.cancelled,
                left: request.deadline.map(|deadline| deadline - now),
                waited,
            }
        };
        let row = |row: u32, key: SequenceKey, request: Option<SeenRequest>| SeenRow {
            row,
            sequence: place(key),
            request,
        };
        let instances = queue.instances.iter().map(|(&number, instance)| match instance {
            Instance::Direct(ready) => {
                (number, ready.iter().map(|(&at, &key)| row(at, key, None)).collect(), None)
            }
            Instance::Oldest(queue) => {
                let fronts = queue.waiting().map(|(front, since)| {
                    let seen = request(&front.request, front.key, (now - since).min(delay));
                    row(0, front.key, Some(seen))
                });
                (number, fronts.collect(), queue.next_expiry().map(|expiry| expiry - now))
            }
        });
        let running = self.running.iter().map(|(instance, batch)| {
            let rows = batch.rows.iter().zip(0..).filter_map(|(taken, at)| {
                let SequenceRow { key, request: taken, .. } = taken.as_ref()?;
                Some(row(at, *key, Some(request(taken, *key, Duration::ZERO))))
            });
            (*instance, rows.collect())
        });
        let been = self.been.iter().map(|(key, it)| (place(*key), it.place, it.carried));
        let mut been: Vec<_> = been.collect();
        been.sort_unstable();
        Seen {
            table: queue.table.view(now, delay, request),
            instances: instances.collect(),
            running: running.collect(),
            order: self.instances.clone(),
            leaving: self.leaving.clone(),
            been,
            wrong: self.wrong,
        }
    }
}

fn starts(request: &Fake) -> bool {
    request.sequence.as_ref().is_some_and(|sequence| sequence.start)
}

/// What of a [`World`] can make a difference from now on. Names and the time of the day do not.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Seen {
    table: View<SeenRequest, u32>,
    /// By number: what can run, and when the first of it may expire.
    instances: Vec<(u32, Vec<SeenRow>, Option<Duration>)>,
    running: Vec<(u32, Vec<SeenRow>)>,
    order: Vec<u32>,
    leaving: BTreeSet<u32>,
    been: Vec<(Option<usize>, (u32, usize), u32)>,
    wrong: Option<Wrong>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SeenRow {
    row: u32,
    sequence: Option<usize>,
    request: Option<SeenRequest>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SeenRequest {
    /// Among those of its sequence that have no answer, in the order in which they came.
    place: Option<usize>,
    starts: bool,
    is_cancelled: bool,
    /// Until its deadline.
    left: Option<Duration>,
    waited: Duration,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seen().hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.seen() == other.seen()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#?}", self.seen())
    }
}
