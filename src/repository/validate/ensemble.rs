use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Fault, platform};
use crate::proto::{ModelConfig, ModelEnsembling};

const FIELD: &str = "ensemble_scheduling";
/// The most pairs of an input and an output of one step, over all steps.
const CONNECTIONS_MAX: usize = 1 << 20;

/// A tensor of an ensemble and the steps' edges through it.
#[derive(Default)]
struct Node<'a> {
    is_output: bool,
    before: Vec<&'a str>,
    after: Vec<&'a str>,
}

type Graph<'a> = BTreeMap<&'a str, Node<'a>>;

pub(super) fn check(config: &ModelConfig, ensemble: &ModelEnsembling) -> Result<(), Fault> {
    let name = &config.name;
    if config.platform != platform::ENSEMBLE {
        return Err(Fault::new(
            FIELD,
            format!(
                "ensemble scheduling cannot be set for model '{name}' whose platform is not \
                 ensemble"
            ),
        ));
    }
    let forbidden = [
        ("instance_group", "instance group should", !config.instance_group.is_empty()),
        ("optimization", "optimization should", config.optimization.is_some()),
        ("model_warmup", "model_warmup can", !config.model_warmup.is_empty()),
    ];
    for (field, subject, given) in forbidden {
        if given {
            let message = format!("{subject} not be specified for ensemble '{name}'");
            return Err(Fault::new(field, message));
        }
    }
    if ensemble.step.is_empty() {
        return Err(Fault::new(FIELD, format!("must specify 'step' for ensemble '{name}'")));
    }
    let graph = build(name, ensemble)?;
    let ready = flow(config, &graph)?;
    check_outputs(config, &graph, &ready)?;
    check_used(config, &graph, &ready)
}

fn build<'a>(name: &str, ensemble: &'a ModelEnsembling) -> Result<Graph<'a>, Fault> {
    let mut graph = Graph::new();
    let mut connections = 0_usize;
    for (index, step) in ensemble.step.iter().enumerate() {
        let at = |message: String| Fault::new(format!("{FIELD}.step[{index}]"), message);
        let missing = [
            ("model_name", step.model_name.is_empty()),
            ("input_map", step.input_map.is_empty()),
            ("output_map", step.output_map.is_empty()),
        ];
        for (field, is_missing) in missing {
            if is_missing {
                return Err(at(format!(
                    "must specify '{field}' in step {index} of ensemble '{name}'"
                )));
            }
        }
        connections = step
            .input_map
            .len()
            .checked_mul(step.output_map.len())
            .map_or(usize::MAX, |count| connections.saturating_add(count));
        if connections > CONNECTIONS_MAX {
            return Err(at(format!(
                "ensemble '{name}' connects more than {CONNECTIONS_MAX} pairs of tensors by \
                 step {index}"
            )));
        }
        for tensor in step.output_map.values() {
            let node = graph.entry(tensor).or_default();
            if std::mem::replace(&mut node.is_output, true) {
                return Err(at(format!(
                    "ensemble tensor '{tensor}' can appear in an output map only once for ensemble \
                     '{name}' step {index}"
                )));
            }
            node.before.extend(step.input_map.values().map(String::as_str));
        }
        for tensor in step.input_map.values() {
            let node = graph.entry(tensor).or_default();
            node.after.extend(step.output_map.values().map(String::as_str));
        }
    }
    Ok(graph)
}

/// The tensors that get a value once the ensemble's inputs have theirs.
fn flow<'a>(config: &ModelConfig, graph: &Graph<'a>) -> Result<BTreeSet<&'a str>, Fault> {
    let mut ready = BTreeSet::new();
    let mut queue = VecDeque::new();
    for (index, input) in config.input.iter().enumerate() {
        let Some((&tensor, node)) = graph.get_key_value(input.name.as_str()) else {
            return Err(Fault::new(
                format!("input[{index}]"),
                format!("ensemble input '{}' for ensemble {} is not used", input.name, config.name),
            ));
        };
        ready.insert(tensor);
        queue.push_back(node);
    }
    while let Some(node) = queue.pop_front() {
        for &next in &node.after {
            let Some(next_node) = graph.get(next) else { continue };
            if !ready.contains(next) && next_node.before.iter().all(|tensor| ready.contains(tensor))
            {
                ready.insert(next);
                queue.push_back(next_node);
            }
        }
    }
    Ok(ready)
}

fn check_outputs(
    config: &ModelConfig,
    graph: &Graph<'_>,
    ready: &BTreeSet<&str>,
) -> Result<(), Fault> {
    for (index, output) in config.output.iter().enumerate() {
        let at = |message: String| Fault::new(format!("output[{index}]"), message);
        let Some((&tensor, _)) = graph.get_key_value(output.name.as_str()) else {
            return Err(at(format!(
                "ensemble output '{}' for ensemble {} is not used",
                output.name, config.name
            )));
        };
        if !ready.contains(tensor) {
            let mut message =
                format!("output '{tensor}' for ensemble '{}' is not written", config.name);
            let source = first_unconnected(tensor, graph, ready);
            if source != tensor {
                message.push_str(&format!(
                    ": at least one of its depending tensors, '{source}', is not connected"
                ));
            }
            return Err(at(message));
        }
    }
    Ok(())
}

/// The first tensor upstream of `tensor` that nothing gives a value; circles are walked once.
fn first_unconnected<'a>(tensor: &'a str, graph: &Graph<'a>, ready: &BTreeSet<&str>) -> &'a str {
    let mut seen = BTreeSet::new();
    let mut last = tensor;
    while let Some(next) = graph.get(last).and_then(|node| {
        node.before.iter().find(|name| !ready.contains(*name) && seen.insert(**name))
    }) {
        last = next;
    }
    last
}

fn check_used(
    config: &ModelConfig,
    graph: &Graph<'_>,
    ready: &BTreeSet<&str>,
) -> Result<(), Fault> {
    let outputs: BTreeSet<&str> = config.output.iter().map(|output| output.name.as_str()).collect();
    let unused = graph.iter().find(|(tensor, node)| {
        !outputs.contains(*tensor) && (!ready.contains(*tensor) || node.after.is_empty())
    });
    match unused {
        None => Ok(()),
        Some((tensor, _)) => Err(Fault::new(
            FIELD,
            format!("ensemble tensor '{tensor}' is unused in ensemble '{}'", config.name),
        )),
    }
}
