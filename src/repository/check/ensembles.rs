//! The ensembles of a repository, with the models beside them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Severity};
use crate::repository::{
    Composing, Definition, Ensemble, Scheduling, ensemble_faults, layout, returns_to,
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
    let find = |model: &str| models.get(model).and_then(Option::as_ref);
    let names = ensemble.steps.iter().map(|step| step.model.as_str());
    let missing: BTreeSet<&str> = names.filter(|model| find(model).is_none()).collect();
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().collect();
        return vec![format!(
            "ensemble {name} contains models that are not available or ambiguous: {}",
            missing.join(", ")
        )];
    }
    let inner = |model: &str| match &find(model)?.scheduling {
        Scheduling::Ensemble(inner) => Some(inner.clone()),
        _ => None,
    };
    if let Some(through) = returns_to(name, ensemble, |step| inner(&step.model)) {
        return vec![format!(
            "circular dependency between ensembles: {name} -> ... -> {through} -> {name}"
        )];
    }
    let composing = ensemble.steps.iter().filter_map(|step| {
        let model = find(&step.model)?;
        let has_version = step.version.is_none_or(|version| model.versions.contains(&version));
        Some(Composing { signature: &model.signature, has_version })
    });
    ensemble_faults(&definition.signature, ensemble, &composing.collect::<Vec<_>>())
}
