use std::{collections::BTreeMap, sync::Arc};

use smallvec::SmallVec;

use super::plan::{EnsemblePlan, Need, TensorIndex};

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

/// The values of a step's inputs, in their order.
pub type StepInputs<T> = SmallVec<[Option<T>; 2]>;

/// The outputs of a response, of those that are wanted.
pub type ResponseOutputs<T> = SmallVec<[Option<T>; 2]>;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Steps run, or can.
    Going,
    /// All is answered.
    Done,
    /// Nothing can run any more, and a step that gives an output has not answered.
    Stuck,
}

/// One request's way through an ensemble. `T` is a tensor, cheap to clone.
pub struct EnsembleRun<T> {
    plan: Arc<EnsemblePlan>,
    state: State<T>,
    /// The outputs that are wanted, in the order of the signature.
    wanted: SmallVec<[Option<TensorIndex>; 4]>,
    responses: u64,
    /// Whether responses come any number of times.
    repeats: bool,
}

/// What of it changes, apart from the plan.
struct State<T> {
    steps: SmallVec<[StepState; 4]>,
    tensors: SmallVec<[TensorState<T>; 4]>,
    /// Steps of which something that they wait for has changed, in this order.
    touched: SmallVec<[usize; 4]>,
    open_calls: usize,
}

#[derive(Default)]
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
    /// Begins with the ensemble's inputs and what the steps `done` gave, which have run once each, before
    /// any that waits for them: the tensors' values, `None` for those that were left out, were never given or
    /// are not taken any more; and with the outputs that are wanted. Steps of which nothing is wanted do not
    /// run.
    pub fn new(
        plan: Arc<EnsemblePlan>,
        done: &[usize],
        mut value: impl FnMut(TensorIndex) -> Option<T>,
        wanted: impl IntoIterator<Item = usize>,
    ) -> Self {
        let wanted: SmallVec<[Option<TensorIndex>; 4]> =
            wanted.into_iter().map(|index| plan.outputs.get(index).copied().flatten()).collect();
        // Of most requests all outputs are wanted, and the plan knows what that takes.
        let found;
        let need = match wanted[..] == plan.outputs[..] && done.is_empty() {
            true => &plan.need,
            false => {
                found = Need::of(&plan, &wanted, done);
                &found
            }
        };
        let steps = need.steps.iter();
        let steps = steps.map(|&is_needed| StepState { is_needed, ..StepState::default() });
        let tensors = plan
            .tensors
            .iter()
            .zip(&need.takers)
            .map(|(tensor, &takers)| TensorState { values: Values::of(tensor.repeated), takers });
        let mut state = State {
            steps: steps.collect(),
            tensors: tensors.collect(),
            touched: SmallVec::new(),
            open_calls: 0,
        };
        let repeats = need.repeats;
        let given = done.iter().filter_map(|&step| plan.steps.get(step));
        let given = given.flat_map(|step| step.outputs.iter().map(|(_, tensor)| tensor));
        for &tensor in plan.inputs.iter().chain(given) {
            state.give(&plan, tensor, 0, value(tensor));
        }
        Self { plan, state, wanted, responses: 0, repeats }
    }

    /// The next call that can begin, and its inputs in the order of the step's, `None` for those that were
    /// left out or never given: whether it does without is for its model to say. To be called until there
    /// is none.
    pub fn next_call(&mut self) -> Option<(Call, StepInputs<T>)> {
        let Self { plan, state, .. } = self;
        while let Some(&step) = state.touched.first() {
            if let Some(begun) = state.begin(plan, step) {
                return Some(begun);
            }
            state.touched.remove(0);
            state.steps[step].is_touched = false;
        }
        None
    }

    /// Takes a response to a call in: its tensors by the model's names, `None` for one that it has not.
    pub fn answered(&mut self, call: Call, mut output: impl FnMut(&str) -> Option<T>) {
        let Self { plan, state, .. } = self;
        let Some(step) = plan.steps.get(call.step) else { return };
        if !step.decoupled {
            for (name, tensor) in &step.outputs {
                state.give(plan, *tensor, call.number, output(name));
            }
            return;
        }
        let values = step.outputs.iter().map(|(name, tensor)| (*tensor, output(name)));
        let values: SmallVec<[_; 4]> = values.collect();
        if values.iter().all(|(_, value)| value.is_none()) {
            // It says no more than that there is nothing.
            return;
        }
        let responses = &mut state.steps[call.step].responses;
        let number = *responses;
        *responses += 1;
        for (tensor, value) in values {
            state.give(plan, tensor, number, value);
        }
    }

    /// No more responses come to a call.
    pub fn ended(&mut self, call: Call) {
        let Some(step) = self.state.steps.get_mut(call.step) else { return };
        step.open -= 1;
        self.state.open_calls -= 1;
        self.state.touch(call.step);
    }

    /// Whether the steps behind a call's have so much to do that its responses should wait.
    pub fn is_behind(&self, call: Call) -> bool {
        let Some(step) = self.plan.steps.get(call.step) else { return false };
        let most = BACKLOG_MAX.min(self.plan.calls_max);
        step.decoupled
            && step
                .outputs
                .iter()
                .any(|(_, tensor)| self.state.tensors[*tensor].values.len() >= most)
    }

    /// The next response, if all of it is there: the wanted outputs in the order of the signature, `None`
    /// for those that their steps did not give.
    pub fn next_response(&mut self) -> Option<ResponseOutputs<T>> {
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
            self.state.tensors[tensor].values.get(number).is_some()
        };
        if !places.iter().all(is_there) {
            return None;
        }
        self.responses += 1;
        let tensors = &mut self.state.tensors;
        let take = |(tensor, number): (TensorIndex, u64)| tensors[tensor].take(number);
        Some(places.into_iter().map(take).collect())
    }

    /// How far the request has come, once there is no [next response](Self::next_response).
    pub fn progress(&self) -> Progress {
        let is_over = self.state.open_calls == 0 && self.state.touched.is_empty();
        match (is_over, self.repeats || self.responses > 0) {
            (true, true) => Progress::Done,
            (true, false) => Progress::Stuck,
            (false, _) => Progress::Going,
        }
    }
}

impl<T: Clone> State<T> {
    fn begin(&mut self, plan: &EnsemblePlan, index: usize) -> Option<(Call, StepInputs<T>)> {
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
        let mut inputs = StepInputs::new();
        for (at, input) in step.inputs.iter().enumerate() {
            // A tensor may be the value of several inputs; it counts as taken once.
            let same = step.inputs[..at].iter().position(|other| other.tensor == input.tensor);
            inputs.push(match same {
                Some(same) => inputs[same].clone(),
                None => self.tensors[input.tensor].take(place(input.tensor)),
            });
        }
        self.open_calls += 1;
        Some((Call { step: index, number }, inputs))
    }

    fn give(&mut self, plan: &EnsemblePlan, tensor: TensorIndex, number: u64, value: Option<T>) {
        let state = &mut self.tensors[tensor];
        if state.takers != Some(0) {
            state.values.insert(number, Value { tensor: value, takers: state.takers });
        }
        plan.tensors[tensor].to.iter().for_each(|&to| self.touch(to));
    }

    fn touch(&mut self, step: usize) {
        let state = &mut self.steps[step];
        if state.is_needed && !std::mem::replace(&mut state.is_touched, true) {
            self.touched.push(step);
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
