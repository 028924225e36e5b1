//! What can be said of an ensemble only with its models at hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Severity};
use crate::{
    inference::{DataType, TensorSpec},
    repository::{Definition, Ensemble, EnsembleStep, Scheduling, layout},
};

/// All models by name; `None` for those that cannot be served.
type Models<'a> = BTreeMap<&'a str, Option<Definition>>;

pub(super) fn check(models: &Models<'_>, findings: &mut Vec<Finding>) {
    for definition in models.values().flatten() {
        let Scheduling::Ensemble(ensemble) = &definition.scheduling else { continue };
        for message in faults(definition, ensemble, models) {
            findings.push(Finding {
                path: definition.dir.join(layout::CONFIG_FILE),
                line: None,
                column: None,
                severity: Severity::Error,
                message,
            });
        }
    }
}

fn faults(definition: &Definition, ensemble: &Ensemble, models: &Models<'_>) -> Vec<String> {
    let name = &definition.name;
    let missing: BTreeSet<&str> = ensemble
        .steps
        .iter()
        .map(|step| step.model.as_str())
        .filter(|model| !matches!(models.get(model), Some(Some(_))))
        .collect();
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().collect();
        return vec![format!(
            "ensemble {name} contains models that are not available or ambiguous: {}",
            missing.join(", ")
        )];
    }
    if let Some(through) = returns_to(name, ensemble, models) {
        return vec![format!(
            "circular dependency between ensembles: {name} -> ... -> {through} -> {name}"
        )];
    }
    let mut faults = Vec::new();
    let mut types = BTreeMap::new();
    for tensor in definition.signature.inputs.iter().chain(&definition.signature.outputs) {
        types.insert(tensor.name.to_string(), (tensor.datatype, format!("ensemble '{name}'")));
    }
    for step in &ensemble.steps {
        if let Some(Some(model)) = models.get(step.model.as_str()) {
            check_step(definition, step, model, &mut types, &mut faults);
        }
    }
    faults
}

/// The last model of a way through steps that leads back to `name`.
fn returns_to(name: &str, ensemble: &Ensemble, models: &Models<'_>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<(String, &Ensemble)> = vec![(name.to_owned(), ensemble)];
    while let Some((from, ensemble)) = waiting.pop() {
        for step in &ensemble.steps {
            if step.model == name {
                return Some(from);
            }
            if let Some(Some(definition)) = models.get(step.model.as_str())
                && let Scheduling::Ensemble(inner) = &definition.scheduling
                && seen.insert(step.model.as_str())
            {
                waiting.push((step.model.clone(), inner));
            }
        }
    }
    None
}

fn check_step(
    definition: &Definition,
    step: &EnsembleStep,
    model: &Definition,
    types: &mut BTreeMap<String, (DataType, String)>,
    faults: &mut Vec<String>,
) {
    let ensemble = &definition.name;
    if let Some(version) = step.version.filter(|version| !model.versions.contains(version)) {
        faults.push(format!(
            "ensemble '{ensemble}' depends on '{}' whose required version {version} is not loaded",
            step.model
        ));
    }
    let signature = &model.signature;
    for input in signature.inputs.iter().filter(|input| !input.optional) {
        if !step.inputs.contains_key(&*input.name) {
            faults.push(format!(
                "in ensemble {ensemble}, input {} in model {} is not mapped to any ensemble \
                 tensors",
                input.name, step.model
            ));
        }
    }
    let mapped = step
        .inputs
        .iter()
        .map(|names| ("input", names, &signature.inputs))
        .chain(step.outputs.iter().map(|names| ("output", names, &signature.outputs)));
    for (direction, (tensor, ensemble_tensor), specs) in mapped {
        let Some(spec) = find(specs, tensor) else {
            faults.push(format!(
                "in ensemble {ensemble}, ensemble tensor {ensemble_tensor} is mapping to \
                 non-existing {direction} {tensor} in model {}",
                step.model
            ));
            continue;
        };
        let here = (spec.datatype, format!("model '{}'", step.model));
        let (known, owner) = types.entry(ensemble_tensor.clone()).or_insert_with(|| here.clone());
        if *known != spec.datatype {
            faults.push(format!(
                "in ensemble {ensemble}, ensemble tensor {ensemble_tensor}: inconsistent data \
                 type: {known} is inferred from {owner} while {} is inferred from model '{}'",
                spec.datatype, step.model
            ));
        }
    }
}

fn find<'a>(specs: &'a [TensorSpec], name: &str) -> Option<&'a TensorSpec> {
    specs.iter().find(|spec| &*spec.name == name)
}
