use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use smallvec::SmallVec;

use super::plan::{EnsemblePlan, TensorIndex};

/// Responses of a decoupled step that may wait for the steps behind it.
const BACKLOG_MAX: usize = 1024;

/// A call of a step's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The step, by its place in the plan.
    pub step: usize,
    /// Which call of the step it is, from 0.
    pub number: u64,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Steps run, or can.
    Going,
    /// All is answered.
    Done,
    /// Nothing can run any more, and an output was never given.
    Stuck,
}

/// One request's way through an ensemble. `T` is a tensor, cheap to clone.
pub struct EnsembleRun<T> {
    plan: Arc<EnsemblePlan>,
    steps: Vec<StepState>,
    tensors: Vec<TensorState<T>>,
    /// The outputs that are wanted, in the order of the signature.
    wanted: SmallVec<[Option<TensorIndex>; 4]>,
    /// Steps of which something that they wait for has changed.
    touched: VecDeque<usize>,
    open_calls: usize,
    responses: u64,
    /// Whether responses come any number of times.
    repeats: bool,
}

#[derive(Clone, Default)]
struct StepState {
    /// Whether anything that is wanted comes of it.
    is_needed: bool,
    is_touched: bool,
    /// Calls that were begun.
    begun: u64,
    open: usize,
    /// Responses that came of a decoupled step.
    responses: u64,
}

struct TensorState<T> {
    values: Values<T>,
    /// How often each value is taken; `None` for any number of times.
    takers: Option<usize>,
}

/// What a tensor has been given and not yet rid of.
enum Values<T> {
    /// Of a tensor that is given once, as number 0.
    One(Option<Value<T>>),
    /// Of one that is repeated, by number.
    Many(BTreeMap<u64, Value<T>>),
}

struct Value<T> {
    /// `None` is one that never comes.
    tensor: Option<T>,
    takers: Option<usize>,
}

impl<T> Values<T> {
    fn of(is_repeated: bool) -> Self {
        if is_repeated { Self::Many(BTreeMap::new()) } else { Self::One(None) }
    }

    fn len(&self) -> usize {
        match self {
            Self::One(value) => usize::from(value.is_some()),
            Self::Many(values) => values.len(),
        }
    }

    fn get(&self, number: u64) -> Option<&Value<T>> {
        match self {
            Self::One(value) => value.as_ref(),
            Self::Many(values) => values.get(&number),
        }
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Value<T>> {
        match self {
            Self::One(value) => value.as_mut(),
            Self::Many(values) => values.get_mut(&number),
        }
    }

    fn insert(&mut self, number: u64, value: Value<T>) {
        match self {
            Self::One(one) => *one = Some(value),
            Self::Many(values) => _ = values.insert(number, value),
        }
    }

    fn remove(&mut self, number: u64) -> Option<Value<T>> {
        match self {
            Self::One(value) => value.take(),
            Self::Many(values) => values.remove(&number),
        }
    }
}

impl<T: Clone> EnsembleRun<T> {
    /// Begins with the ensemble's inputs in the order of its signature, `None` for those left out, and
    /// the outputs that are wanted. Steps of which nothing is wanted do not run.
    pub fn new(
        plan: Arc<EnsemblePlan>,
        inputs: impl IntoIterator<Item = Option<T>>,
        wanted: impl IntoIterator<Item = usize>,
    ) -> Self {
        let wanted: SmallVec<[Option<TensorIndex>; 4]> =
            wanted.into_iter().map(|index| plan.outputs.get(index).copied().flatten()).collect();
        let steps = needed_steps(&plan, &wanted);
        let is_repeated = |tensor: &TensorIndex| plan.tensors[*tensor].repeated;
        let tensors = plan.tensors.iter().enumerate().map(|(index, tensor)| {
            let takers = tensor.to.iter().filter(|&&to| steps[to].is_needed);
            let repeatedly = !tensor.repeated && takers.clone().any(|&to| plan.steps[to].repeated);
            let answers = wanted.iter().flatten().filter(|wanted| **wanted == index).count();
            let is_kept = repeatedly || (answers > 0 && !tensor.repeated);
            let takers = (!is_kept).then(|| takers.count() + answers);
            TensorState { values: Values::of(tensor.repeated), takers }
        });
        let mut run = Self {
            repeats: wanted.iter().flatten().any(is_repeated),
            tensors: tensors.collect(),
            steps,
            wanted,
            touched: VecDeque::new(),
            open_calls: 0,
            responses: 0,
            plan,
        };
        let plan = run.plan.clone();
        for (&tensor, value) in plan.inputs.iter().zip(inputs) {
            run.give(tensor, 0, value);
        }
        run
    }

    /// The next call that can begin, and its inputs in the order of the step's, `None` for those that were
    /// left out or never given: whether it does without is for its model to say. To be called until there
    /// is none.
    pub fn next_call(&mut self) -> Option<(Call, Vec<Option<T>>)> {
        let plan = self.plan.clone();
        while let Some(&step) = self.touched.front() {
            if let Some(begun) = self.begin(&plan, step) {
                return Some(begun);
            }
            self.touched.pop_front();
            self.steps[step].is_touched = false;
        }
        None
    }

    /// Takes a response to a call in: its tensors by the model's names, `None` for one that it has not.
    pub fn answered(&mut self, call: Call, mut output: impl FnMut(&str) -> Option<T>) {
        let plan = self.plan.clone();
        let Some(step) = plan.steps.get(call.step) else { return };
        let values = step.outputs.iter().map(|(name, tensor)| (*tensor, output(name)));
        let values: SmallVec<[_; 4]> = values.collect();
        let number = match step.decoupled {
            false => call.number,
            // It says no more than that there is nothing.
            true if values.iter().all(|(_, value)| value.is_none()) => return,
            true => {
                let state = &mut self.steps[call.step];
                state.responses += 1;
                state.responses - 1
            }
        };
        for (tensor, value) in values {
            self.give(tensor, number, value);
        }
    }

    /// No more responses come to a call.
    pub fn ended(&mut self, call: Call) {
        let Some(state) = self.steps.get_mut(call.step) else { return };
        state.open -= 1;
        self.open_calls -= 1;
        self.touch(call.step);
    }

    /// Whether the steps behind a call's have so much to do that its responses should wait.
    pub fn is_behind(&self, call: Call) -> bool {
        let Some(step) = self.plan.steps.get(call.step) else { return false };
        let most = BACKLOG_MAX.min(self.plan.calls_max);
        step.decoupled
            && step.outputs.iter().any(|(_, tensor)| self.tensors[*tensor].values.len() >= most)
    }

    /// The next response, if all of it is there: the wanted outputs in the order of the signature. Of
    /// several responses, one may lack outputs that a decoupled step did not give with its own.
    pub fn next_response(&mut self) -> Option<Vec<Option<T>>> {
        if !self.repeats && self.responses > 0 {
            return None;
        }
        let number = self.responses;
        let place = |tensor: Option<TensorIndex>| {
            let tensor = tensor?;
            Some((tensor, if self.plan.tensors[tensor].repeated { number } else { 0 }))
        };
        let places: Option<SmallVec<[_; 4]>> = self.wanted.iter().map(|&it| place(it)).collect();
        let places = places?;
        let is_there = |&(tensor, number): &(TensorIndex, u64)| {
            let value = self.tensors[tensor].values.get(number);
            value.is_some_and(|value| self.repeats || value.tensor.is_some())
        };
        if !places.iter().all(is_there) {
            return None;
        }
        self.responses += 1;
        let take = |(tensor, number): (TensorIndex, u64)| self.tensors[tensor].take(number);
        Some(places.into_iter().map(take).collect())
    }

    /// How far the request has come, once there is no [next response](Self::next_response).
    pub fn progress(&self) -> Progress {
        let is_over = self.open_calls == 0 && self.touched.is_empty();
        match (is_over, self.repeats || self.responses > 0) {
            (true, true) => Progress::Done,
            (true, false) => Progress::Stuck,
            (false, _) => Progress::Going,
        }
    }

    fn begin(&mut self, plan: &EnsemblePlan, index: usize) -> Option<(Call, Vec<Option<T>>)> {
        let step = &plan.steps[index];
        let state = &self.steps[index];
        let number = state.begun;
        if !state.is_needed || state.open >= plan.calls_max || (!step.repeated && number > 0) {
            return None;
        }
        let place = |tensor: TensorIndex| if plan.tensors[tensor].repeated { number } else { 0 };
        let is_there =
            |tensor: TensorIndex| self.tensors[tensor].values.get(place(tensor)).is_some();
        if !step.inputs.iter().all(|input| is_there(input.tensor)) {
            return None;
        }
        let state = &mut self.steps[index];
        state.begun += 1;
        state.open += 1;
        // A tensor may be the value of several inputs; it counts as taken once.
        let mut taken: SmallVec<[(TensorIndex, Option<T>); 4]> = SmallVec::new();
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for input in &step.inputs {
            let known = taken.iter().find(|(tensor, _)| *tensor == input.tensor);
            let value = match known {
                Some((_, value)) => value.clone(),
                None => {
                    let value = self.tensors[input.tensor].take(place(input.tensor));
                    taken.push((input.tensor, value.clone()));
                    value
                }
            };
            inputs.push(value);
        }
        self.open_calls += 1;
        Some((Call { step: index, number }, inputs))
    }

    fn give(&mut self, tensor: TensorIndex, number: u64, value: Option<T>) {
        let state = &mut self.tensors[tensor];
        if state.takers != Some(0) {
            state.values.insert(number, Value { tensor: value, takers: state.takers });
        }
        let plan = self.plan.clone();
        plan.tensors[tensor].to.iter().for_each(|&to| self.touch(to));
    }

    fn touch(&mut self, step: usize) {
        let state = &mut self.steps[step];
        if state.is_needed && !std::mem::replace(&mut state.is_touched, true) {
            self.touched.push_back(step);
        }
    }
}

impl<T: Clone> TensorState<T> {
    /// The value, which is let go of when nobody else takes it.
    fn take(&mut self, number: u64) -> Option<T> {
        let value = self.values.get_mut(number)?;
        if let Some(takers) = &mut value.takers {
            *takers = takers.saturating_sub(1);
            if *takers == 0 {
                return self.values.remove(number)?.tensor;
            }
        }
        value.tensor.clone()
    }
}

/// What comes to be by walking back from the wanted outputs.
fn needed_steps(plan: &EnsemblePlan, wanted: &[Option<TensorIndex>]) -> Vec<StepState> {
    let mut steps = vec![StepState::default(); plan.steps.len()];
    let mut tensors: Vec<TensorIndex> = wanted.iter().copied().flatten().collect();
    while let Some(tensor) = tensors.pop() {
        let Some(from) = plan.tensors[tensor].from else { continue };
        if !std::mem::replace(&mut steps[from].is_needed, true) {
            tensors.extend(plan.steps[from].inputs.iter().map(|input| input.tensor));
        }
    }
    steps
}
