use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    inference::{DataType, Shape, Signature, TensorSpec},
    repository::{Ensemble, EnsembleStep},
};

/// A step: its model's name, its inputs and outputs as `model's name=tensor`, and whether it is decoupled.
type StepText<'a> = (&'a str, &'a str, &'a str, bool);

fn specs(names: &str) -> Vec<TensorSpec> {
    let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, Shape::from([1]));
    names.split_whitespace().map(spec).collect()
}

fn signature(inputs: &str, outputs: &str) -> Signature {
    let (inputs, outputs) = (specs(inputs), specs(outputs));
    Signature { model: "m".into(), max_batch_size: 0, inputs, outputs }
}

fn plan(
    inputs: &str,
    outputs: &str,
    steps: &[StepText<'_>],
    max: Option<u32>,
) -> Arc<EnsemblePlan> {
    let pairs = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, tensor)| (name.into(), tensor.into())).collect()
    };
    let decoupled: Vec<bool> = steps.iter().map(|step| step.3).collect();
    let steps = steps.iter().map(|(model, inputs, outputs, _)| EnsembleStep {
        model: (*model).into(),
        namespace: String::new(),
        version: None,
        inputs: pairs(inputs),
        outputs: pairs(outputs),
    });
    let ensemble = Ensemble { steps: steps.collect(), max_inflight: max };
    Arc::new(EnsemblePlan::new(&ensemble, &signature(inputs, outputs), &decoupled))
}

#[test]
fn a_tensor_tells_who_takes_it() {
    let steps = [
        ("a", "x=in", "y=t z=both w=nobody", false),
        ("b", "x=t", "y=u", false),
        ("c", "x=t y=u z=both", "y=out", false),
    ];
    let plan = plan("in", "out both", &steps, None);
    let taken = |inputs: &[(usize, usize)], output| Takers { inputs: inputs.to_vec(), output };
    for (step, name, expected) in [
        (0, "y", taken(&[(1, 0), (2, 0)], None)),
        (0, "z", taken(&[(2, 2)], Some(1))),
        (0, "w", Takers::default()),
        (0, "none", Takers::default()),
        (1, "y", taken(&[(2, 1)], None)),
        (2, "y", taken(&[], Some(0))),
        (3, "y", Takers::default()),
    ] {
        assert_eq!(plan.takers(step, name), expected, "{step} {name}");
    }
    assert_eq!(plan.takers_of_input(0), taken(&[(0, 0)], None));
    assert_eq!(plan.takers_of_input(1), Takers::default());
}

#[test]
fn steps_stand_behind_those_that_they_wait_for() {
    let order = |outputs: &str, steps: &[StepText<'_>]| plan("in", outputs, steps, None).order();
    let steps = [
        ("d", "x=t y=u", "z=out", false),
        ("b", "x=s", "y=t", false),
        ("no", "x=s", "y=nobody", false),
        ("c", "x=s y=t", "y=u", false),
        ("a", "x=in", "y=s", false),
    ];
    assert_eq!(order("out", &steps), Some(vec![4, 1, 3, 0]));
    assert_eq!(order("t", &steps), Some(vec![4, 1]));
    assert_eq!(order("out never", &steps), None);
    assert_eq!(order("out", &[("a", "x=in", "y=out", true)]), None);
}

#[test]
fn the_last_step_is_the_one_that_all_others_lead_to() {
    let last = |outputs: &str, steps: &[StepText<'_>]| {
        let plan = plan("in", outputs, steps, None);
        plan.last_step().map(|LastStep { index, outputs }| {
            let outputs = outputs.into_iter().map(|(name, output)| format!("{name}={output}"));
            (index, outputs.collect::<Vec<_>>().join(" "))
        })
    };
    let found = |step, outputs: &str| Some((step, outputs.to_owned()));
    let chain = [("a", "x=in", "y=t", false), ("b", "x=t", "y=out z=no", false)];
    assert_eq!(last("out", &chain), found(1, "y=0"));
    assert_eq!(last("t out", &chain), found(1, "y=1"), "the first's answer is still to be read");
    let diamond = [
        ("d", "x=t y=u", "z=out", false),
        ("b", "x=s", "y=t", false),
        ("c", "x=s", "y=u", false),
        ("a", "x=in", "y=s", false),
    ];
    assert_eq!(last("out", &diamond), found(0, "z=0"));
    let fork = [("a", "x=in", "y=out", false), ("b", "x=in", "y=other", false)];
    assert_eq!(last("out other", &fork), None);
    let repeated = [("a", "x=in", "y=t", true), ("b", "x=t", "y=out", false)];
    assert_eq!(last("out", &repeated), None);
}

type Run = EnsembleRun<&'static str>;

/// A run that begins with these inputs, before any step.
fn begin<T: Clone>(
    plan: Arc<EnsemblePlan>,
    inputs: impl IntoIterator<Item = Option<T>>,
    wanted: impl IntoIterator<Item = usize>,
) -> EnsembleRun<T> {
    let inputs: Vec<Option<T>> = inputs.into_iter().collect();
    let places = plan.inputs.clone();
    let value = |tensor| inputs[places.iter().position(|it| *it == tensor).unwrap()].clone();
    EnsembleRun::new(plan, &[], value, wanted)
}

fn answer(run: &mut Run) -> Option<Vec<Option<&'static str>>> {
    run.next_response().map(ResponseOutputs::into_vec)
}

fn calls(run: &mut Run) -> Vec<(Call, Vec<Option<&'static str>>)> {
    let next = || run.next_call().map(|(call, inputs)| (call, inputs.into_vec()));
    std::iter::from_fn(next).collect()
}

/// How far it has come, when nothing more can begin.
fn progress(run: &mut Run) -> Progress {
    assert!(calls(run).is_empty());
    run.progress()
}

fn call(step: usize, number: u64) -> Call {
    Call { step, number }
}

#[test]
fn steps_that_do_not_wait_for_each_other_run_at_once() {
    let steps = [
        ("left", "i=IN", "o=L", false),
        ("right", "i=IN", "o=R", false),
        ("join", "a=L b=R", "o=OUT", false),
    ];
    let mut run = begin(plan("IN", "OUT", &steps, None), [Some("x")], [0]);
    let begun = calls(&mut run);
    assert_eq!(begun, [(call(0, 0), vec![Some("x")]), (call(1, 0), vec![Some("x")])]);
    run.answered(call(1, 0), |_| Some("r"));
    run.ended(call(1, 0));
    assert_eq!((calls(&mut run), run.progress()), (vec![], Progress::Going));
    run.answered(call(0, 0), |_| Some("l"));
    run.ended(call(0, 0));
    assert_eq!(calls(&mut run), [(call(2, 0), vec![Some("l"), Some("r")])]);
    assert_eq!(run.next_response(), None);
    run.answered(call(2, 0), |name| (name == "o").then_some("lr"));
    assert_eq!((answer(&mut run), answer(&mut run)), (Some(vec![Some("lr")]), None));
    assert_eq!(run.progress(), Progress::Going);
    run.ended(call(2, 0));
    assert_eq!((calls(&mut run), run.progress()), (vec![], Progress::Done));
}

#[test]
fn steps_of_which_nothing_is_wanted_do_not_run() {
    let steps =
        [("a", "i=IN", "o=A", false), ("b", "i=IN", "o=M", false), ("c", "i=M", "o=B", false)];
    let plan = plan("IN", "A B", &steps, None);
    let models = |wanted: &[usize]| -> Vec<usize> {
        let mut run = begin(plan.clone(), [Some("x")], wanted.iter().copied());
        calls(&mut run).into_iter().map(|(call, _)| call.step).collect()
    };
    assert_eq!([models(&[0]), models(&[1]), models(&[0, 1])], [vec![0], vec![1], vec![0, 1]]);
}

#[test]
fn an_input_that_is_left_out_is_left_out_of_the_steps_too() {
    let steps = [("a", "i=IN o=MORE", "o=A", false)];
    let plan = plan("IN MORE", "A", &steps, None);
    let mut run = begin(plan, [Some("x"), None], [0]);
    assert_eq!(calls(&mut run), [(call(0, 0), vec![Some("x"), None])]);
}

#[test]
fn an_output_that_a_model_does_not_give_is_left_out_of_the_answer() {
    let steps = [("a", "i=IN", "o=A p=B", false), ("b", "i=B", "o=C", false)];
    let mut run = begin(plan("IN", "A B C", &steps, None), [Some("x")], [0, 1, 2]);
    calls(&mut run);
    run.answered(call(0, 0), |name| (name == "o").then_some("a"));
    run.ended(call(0, 0));
    assert_eq!(calls(&mut run), [(call(1, 0), vec![None])]);
    run.answered(call(1, 0), |_| None);
    run.ended(call(1, 0));
    let answer = run.next_response().map(|outputs| outputs.to_vec());
    assert_eq!((answer, progress(&mut run)), (Some(vec![Some("a"), None, None]), Progress::Done));
}

#[test]
fn a_step_that_never_answers_is_told() {
    let mut run =
        begin(plan("IN", "OUT", &[("a", "i=IN", "o=OUT", false)], None), [Some("x")], [0]);
    calls(&mut run);
    run.ended(call(0, 0));
    assert_eq!((run.next_response(), progress(&mut run)), (None, Progress::Stuck));
}

#[test]
fn what_follows_a_decoupled_step_runs_for_each_response_and_answers_in_their_order() {
    let steps = [("words", "i=IN", "o=W", true), ("shout", "i=W like=IN", "o=S", false)];
    let mut run = begin(plan("IN", "S", &steps, Some(2)), [Some("x")], [0]);
    assert_eq!(calls(&mut run).len(), 1);
    for word in ["a", "b", "c"] {
        run.answered(call(0, 0), |_| Some(word));
    }
    run.ended(call(0, 0));
    // Two at a time.
    let begun = calls(&mut run);
    assert_eq!(
        begun,
        [(call(1, 0), vec![Some("a"), Some("x")]), (call(1, 1), vec![Some("b"), Some("x")])]
    );
    run.answered(call(1, 1), |_| Some("B"));
    run.ended(call(1, 1));
    assert_eq!(run.next_response(), None, "the first is not there yet");
    assert_eq!(calls(&mut run), [(call(1, 2), vec![Some("c"), Some("x")])]);
    for (number, word) in [(0, "A"), (2, "C")] {
        run.answered(call(1, number), |_| Some(word));
        run.ended(call(1, number));
    }
    let answers: Vec<_> = std::iter::from_fn(|| run.next_response()).flatten().flatten().collect();
    assert_eq!((answers, progress(&mut run)), (vec!["A", "B", "C"], Progress::Done));
}

#[test]
fn decoupled_steps_behind_each_other_give_all_there_is() {
    let steps = [("a", "i=IN", "o=A", true), ("b", "i=A", "o=B", true)];
    let mut run = begin(plan("IN", "B", &steps, None), [Some("x")], [0]);
    calls(&mut run);
    for value in ["1", "2"] {
        run.answered(call(0, 0), |_| Some(value));
    }
    run.ended(call(0, 0));
    assert_eq!(calls(&mut run).len(), 2);
    for (number, value) in [(1, "2a"), (0, "1a"), (1, "2b")] {
        run.answered(call(1, number), |_| Some(value));
    }
    run.ended(call(1, 0));
    run.ended(call(1, 1));
    let answers: Vec<_> = std::iter::from_fn(|| run.next_response()).flatten().flatten().collect();
    assert_eq!((answers, progress(&mut run)), (vec!["2a", "1a", "2b"], Progress::Done));
}

#[test]
fn a_response_of_a_decoupled_step_may_lack_an_output() {
    let mut run =
        begin(plan("IN", "A B", &[("a", "i=IN", "x=A y=B", true)], None), [Some("x")], [0, 1]);
    calls(&mut run);
    run.answered(call(0, 0), |name| (name == "y").then_some("b"));
    run.answered(call(0, 0), |_| None);
    run.answered(call(0, 0), |name| (name == "x").then_some("a"));
    run.ended(call(0, 0));
    let answers: Vec<_> = std::iter::from_fn(|| answer(&mut run)).collect();
    assert_eq!(answers, [vec![None, Some("b")], vec![Some("a"), None]]);
    assert_eq!(progress(&mut run), Progress::Done);
}

#[test]
fn a_decoupled_step_without_a_response_leaves_nothing_to_do() {
    let steps = [("a", "i=IN", "o=A", true), ("b", "i=A", "o=B", false)];
    let mut run = begin(plan("IN", "B", &steps, None), [Some("x")], [0]);
    calls(&mut run);
    run.ended(call(0, 0));
    assert_eq!((calls(&mut run), run.progress()), (vec![], Progress::Done));
}

#[test]
fn a_decoupled_step_that_is_too_fast_is_held_back() {
    let steps = [("a", "i=IN", "o=A", true), ("b", "i=A", "o=B", false)];
    let mut run = begin(plan("IN", "B", &steps, Some(3)), [Some("x")], [0]);
    calls(&mut run);
    let mut given = 0;
    while !run.is_behind(call(0, 0)) {
        run.answered(call(0, 0), |_| Some("v"));
        calls(&mut run);
        given += 1;
        assert!(given < 10);
    }
    // Three that run, three that wait.
    assert_eq!(given, 6);
    run.ended(call(1, 0));
    calls(&mut run);
    assert!(!run.is_behind(call(0, 0)));
}

/// A step of a random ensemble: what it takes, by places among all tensors before it, how many tensors it
/// gives, and how many responses it gives if it is decoupled.
#[derive(Clone, Debug)]
struct RandomStep {
    takes: Vec<usize>,
    gives: usize,
    responses: Option<u64>,
}

#[derive(Clone, Debug)]
enum Values {
    One(u64),
    Many(Vec<u64>),
}

fn mixed(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

fn value(step: usize, output: usize, response: u64, inputs: &[u64]) -> u64 {
    mixed((step, output, response, inputs))
}

/// What a decoupled step's model says with its `response`th response depends on nothing else.
fn evaluated(steps: &[RandomStep], inputs: usize) -> Vec<Values> {
    let mut tensors: Vec<Values> = (0..inputs as u64).map(Values::One).collect();
    for (index, step) in steps.iter().enumerate() {
        let taken: Vec<Values> = step.takes.iter().map(|&it| tensors[it].clone()).collect();
        let many = taken.iter().filter_map(|values| match values {
            Values::Many(values) => Some(values.len()),
            Values::One(_) => None,
        });
        let calls = many.min();
        let inputs = |number: usize| -> Vec<u64> {
            let pick = |values: &Values| match values {
                Values::One(value) => *value,
                Values::Many(values) => values[number],
            };
            taken.iter().map(pick).collect()
        };
        for output in 0..step.gives {
            tensors.push(match (calls, step.responses) {
                (None, None) => Values::One(value(index, output, 0, &inputs(0))),
                (None, Some(responses)) => {
                    let inputs = inputs(0);
                    Values::Many(
                        (0..responses).map(|it| value(index, output, it, &inputs)).collect(),
                    )
                }
                (Some(calls), _) => Values::Many(
                    (0..calls).map(|it| value(index, output, 0, &inputs(it))).collect(),
                ),
            });
        }
    }
    tensors
}

fn random_steps() -> impl Strategy<Value = (usize, Vec<RandomStep>)> {
    let step = (
        prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        1_usize..3,
        prop::option::weighted(0.3, 0_u64..4),
    );
    (1_usize..3, prop::collection::vec(step, 1..7)).prop_map(|(inputs, random)| {
        let mut repeated = vec![false; inputs];
        let mut steps = Vec::new();
        for (takes, gives, responses) in random {
            let takes: Vec<usize> = takes.iter().map(|it| it.index(repeated.len())).collect();
            let is_repeated = takes.iter().any(|&it| repeated[it]);
            // The order in which several calls of one give their responses would be the machine's.
            let responses = responses.filter(|_| !is_repeated);
            repeated.extend(std::iter::repeat_n(is_repeated || responses.is_some(), gives));
            steps.push(RandomStep { takes, gives, responses });
        }
        (inputs, steps)
    })
}

proptest! {
    /// Whatever the graph, the outputs wanted, the bound, the steps that have run before and the order in which
    /// calls end: the answers are those of running step by step, and no step begins without need, again or
    /// beyond the bound.
    #[test]
    fn any_order_gives_what_one_after_the_other_gives(
        (inputs, steps) in random_steps(),
        wanted in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        max in prop::option::of(1_u32..4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
        before in any::<prop::sample::Index>(),
    ) {
        let count = inputs + steps.iter().map(|step| step.gives).sum::<usize>();
        let name = |tensor: usize| format!("t{tensor}");
        let mut next = inputs;
        let texts: Vec<(String, String)> = steps.iter().map(|step| {
            let takes = step.takes.iter().enumerate().map(|(at, it)| format!("i{at}={}", name(*it)));
            let gives = (0..step.gives).map(|at| format!("o{at}={}", name(next + at)));
            let text = (takes.collect::<Vec<_>>().join(" "), gives.collect::<Vec<_>>().join(" "));
            next += step.gives;
            text
        }).collect();
        let texts: Vec<StepText<'_>> = texts.iter().zip(&steps)
            .map(|((takes, gives), step)| ("m", takes.as_str(), gives.as_str(), step.responses.is_some()))
            .collect();
        let all = |range: std::ops::Range<usize>| range.map(name).collect::<Vec<_>>().join(" ");
        let plan = plan(&all(0..inputs), &all(inputs..count), &texts, max);
        let wanted: Vec<usize> = wanted.iter().map(|it| it.index(count - inputs)).collect();

        let tensors = evaluated(&steps, inputs);
        let mut done = plan.order().unwrap_or_default();
        let is_once = steps.iter().all(|step| step.responses.is_none());
        prop_assert_eq!(done.len(), if is_once { steps.len() } else { 0 });
        done.truncate(before.index(done.len() + 1));
        let given = |tensor: usize| match &tensors[tensor] {
            Values::One(value) => Some(*value),
            Values::Many(_) => None,
        };
        let mut run = EnsembleRun::new(plan, &done, given, wanted.iter().copied());
        let mut order = order.iter().cycle();
        // Calls that run: what they were given, and how many responses they have still to give.
        let mut open: Vec<(Call, Vec<u64>, u64, u64)> = Vec::new();
        let mut begun = vec![0; steps.len()];
        let mut answers = Vec::new();
        loop {
            while let Some((call, given)) = run.next_call() {
                let given: Vec<u64> = given.into_iter().map(Option::unwrap).collect();
                open.push((call, given, 0, steps[call.step].responses.unwrap_or(1)));
                begun[call.step] += 1;
                let of_step = open.iter().filter(|(it, ..)| it.step == call.step).count();
                prop_assert!(max.is_none_or(|max| of_step <= max as usize));
            }
            let complete = |response: ResponseOutputs<u64>| -> Vec<u64> {
                response.into_iter().map(Option::unwrap).collect()
            };
            answers.extend(std::iter::from_fn(|| run.next_response()).map(complete));
            if open.is_empty() {
                break;
            }
            let at = order.next().unwrap().index(open.len());
            let (call, given, responded, responses) = &mut open[at];
            if responded == responses {
                run.ended(*call);
                open.swap_remove(at);
            } else {
                run.answered(*call, |name| {
                    let output = name.trim_start_matches('o').parse().unwrap();
                    Some(value(call.step, output, *responded, given))
                });
                *responded += 1;
            }
        }

        let outputs: Vec<&Values> = wanted.iter().map(|it| &tensors[inputs + it]).collect();
        let many = outputs.iter().filter_map(|values| match values {
            Values::Many(values) => Some(values.len()),
            Values::One(_) => None,
        });
        let expected: Vec<Vec<u64>> = (0..many.min().unwrap_or(1)).map(|number| {
            let pick = |values: &&Values| match values {
                Values::One(value) => *value,
                Values::Many(values) => values[number],
            };
            outputs.iter().map(pick).collect()
        }).collect();
        prop_assert_eq!(answers, expected);
        prop_assert_eq!(run.progress(), Progress::Done);

        let mut needed = vec![false; steps.len()];
        let mut walk: Vec<usize> = wanted.iter().map(|it| inputs + it).collect();
        while let Some(tensor) = walk.pop() {
            let mut first = inputs;
            for (index, step) in steps.iter().enumerate() {
                if (first..first + step.gives).contains(&tensor) && !needed[index] {
                    needed[index] = true;
                    walk.extend(&step.takes);
                }
                first += step.gives;
            }
        }
        for (index, (needed, begun)) in needed.iter().zip(begun).enumerate() {
            prop_assert!((*needed && !done.contains(&index)) || begun == 0);
        }
    }
}
