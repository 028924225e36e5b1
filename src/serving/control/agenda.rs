//! What is to be done to which model, without threads: one thing at a time for each model, in the
//! order in which it was asked for; different models in any order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Things to do, by the name of the model that they are done to.
pub struct Agenda<T> {
    /// What waits for what is being done to the same model. A model that is here without anything
    /// waiting is about to be worked on, or is being worked on.
    lanes: BTreeMap<Arc<str>, VecDeque<T>>,
    /// What can be begun.
    ready: VecDeque<(Arc<str>, T)>,
    /// How much of either kind there is.
    waiting: usize,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { lanes: BTreeMap::new(), ready: VecDeque::new(), waiting: 0 }
    }
}

impl<T> Agenda<T> {
    /// How much waits to be begun.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether something could be begun.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds something to do.
    pub fn push(&mut self, model: &str, task: T) {
        self.waiting += 1;
        if let Some(lane) = self.lanes.get_mut(model) {
            lane.push_back(task);
            return;
        }
        let model: Arc<str> = model.into();
        self.lanes.insert(model.clone(), VecDeque::new());
        self.ready.push_back((model, task));
    }

    /// Takes the next thing to do; nothing else of its model is given out until it is
    /// [finished](Self::finished).
    pub fn next(&mut self) -> Option<(Arc<str>, T)> {
        let next = self.ready.pop_front()?;
        self.waiting -= 1;
        Some(next)
    }

    /// What was taken for this model has been done.
    pub fn finished(&mut self, model: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(model) else { return };
        match lane.pop_front() {
            Some(task) => self.ready.push_back((model.clone(), task)),
            None => drop(self.lanes.remove(model)),
        }
    }

    /// Takes out everything that was not begun.
    pub fn abandon(&mut self) -> Vec<T> {
        self.waiting = 0;
        let mut tasks: Vec<T> = Vec::new();
        for (model, task) in self.ready.drain(..) {
            tasks.push(task);
            tasks.extend(self.lanes.remove(&model).into_iter().flatten());
        }
        for lane in self.lanes.values_mut() {
            tasks.extend(lane.drain(..));
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(agenda: &mut Agenda<u32>) -> Option<(Arc<str>, u32)> {
        agenda.next()
    }

    #[test]
    fn one_model_has_its_turns_one_after_the_other() {
        let mut agenda = Agenda::default();
        for (model, task) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            agenda.push(model, task);
        }
        assert_eq!(agenda.waiting(), 4);
        let (a, first) = taken(&mut agenda).unwrap();
        let (b, second) = taken(&mut agenda).unwrap();
        assert_eq!((&*a, first, &*b, second), ("a", 1, "b", 3));
        assert_eq!(taken(&mut agenda), None);
        agenda.finished(&a);
        assert_eq!(taken(&mut agenda), Some((a.clone(), 2)));
        assert!(!agenda.is_ready());
        agenda.finished(&b);
        agenda.finished(&a);
        assert_eq!(taken(&mut agenda), Some((a.clone(), 4)));
        agenda.finished(&a);
        assert_eq!((taken(&mut agenda), agenda.waiting(), agenda.lanes.len()), (None, 0, 0));
    }

    #[test]
    fn what_was_not_begun_can_be_abandoned() {
        let mut agenda = Agenda::default();
        for (model, task) in [("a", 1), ("a", 2), ("b", 3), ("b", 4)] {
            agenda.push(model, task);
        }
        let (a, _) = taken(&mut agenda).unwrap();
        let mut left = agenda.abandon();
        left.sort_unstable();
        assert_eq!(left, [2, 3, 4]);
        agenda.finished(&a);
        assert_eq!((taken(&mut agenda), agenda.waiting(), agenda.lanes.len()), (None, 0, 0));
    }

    proptest! {
        /// Whatever is pushed, begun and finished in whatever order: every task is given out once, those
        /// of a model in order, and never two of a model at a time.
        #[test]
        fn nothing_is_lost_doubled_or_overtaken(steps in prop::collection::vec(0_u8..8, 0..200)) {
            let mut agenda = Agenda::default();
            let mut pushed = 0_u32;
            let mut running: Vec<(Arc<str>, u32)> = Vec::new();
            let mut last: BTreeMap<Arc<str>, u32> = BTreeMap::new();
            let mut given = 0_u32;
            for step in steps.into_iter().chain(std::iter::repeat_n(7, 400)) {
                match step {
                    0..4 => {
                        pushed += 1;
                        agenda.push(["a", "b", "c", "d"][usize::from(step)], pushed);
                    }
                    4..6 => {
                        if let Some((model, task)) = agenda.next() {
                            prop_assert!(running.iter().all(|(other, _)| *other != model));
                            prop_assert!(last.insert(model.clone(), task).is_none_or(|it| it < task));
                            given += 1;
                            running.push((model, task));
                        }
                    }
                    _ => match running.pop() {
                        Some((model, _)) => agenda.finished(&model),
                        None => if let Some(next) = agenda.next() {
                            given += 1;
                            running.push(next);
                        },
                    },
                }
            }
            prop_assert_eq!(given, pushed);
            prop_assert!(agenda.lanes.is_empty());
        }
    }
}
