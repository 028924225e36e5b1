//! Which models are served for the sake of which ensembles, without threads.

use std::collections::{BTreeMap, BTreeSet};

use crate::repository::{Ensemble, ModelId};

/// What ensembles want of other models, and what clients want.
#[derive(Default)]
pub struct Dependencies {
    /// Ensembles that are to be served, also while they cannot be, with the names of their models.
    ensembles: BTreeMap<ModelId, BTreeSet<String>>,
    /// Models that were asked for, rather than loaded because an ensemble has a step for them.
    asked_for: BTreeSet<ModelId>,
}

impl Dependencies {
    /// The model was asked for, by a client or by being in a repository that is served whole.
    pub fn asked_for(&mut self, id: &ModelId) {
        self.asked_for.insert(id.clone());
    }

    /// This model is an ensemble, and is to be served.
    pub fn wants(&mut self, id: &ModelId, ensemble: &Ensemble) {
        let models = ensemble.steps.iter().map(|step| step.model.clone()).collect();
        self.ensembles.insert(id.clone(), models);
    }

    /// The model is no ensemble, or not to be served any more.
    pub fn wants_nothing(&mut self, id: &ModelId) {
        self.ensembles.remove(id);
    }

    /// Nobody asks for the model any more.
    pub fn let_go(&mut self, id: &ModelId) {
        self.asked_for.remove(id);
    }

    /// The ensembles that have a step for a model of this name.
    pub fn of(&self, model: &str) -> Vec<ModelId> {
        let dependents = self.ensembles.iter().filter(|(_, models)| models.contains(model));
        dependents.map(|(id, _)| id.clone()).collect()
    }

    /// The models that an ensemble has steps for.
    pub fn models(&self, id: &ModelId) -> BTreeSet<String> {
        self.ensembles.get(id).cloned().unwrap_or_default()
    }

    /// Whether a model of this name is an ensemble that is to be served.
    pub fn is_ensemble(&self, model: &str) -> bool {
        self.ensembles.keys().any(|id| id.name == model)
    }

    /// Whether nobody asked for the model and no ensemble has a step for it.
    pub fn is_orphan(&self, id: &ModelId) -> bool {
        !self.asked_for.contains(id)
            && !self.ensembles.values().any(|models| models.contains(&id.name))
    }
}

/// Names in an order in which each comes after those that it depends on, in groups that do not depend on
/// each other. Those that depend on themselves in a circle are the last group.
pub fn in_order(mut ensembles: BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let mut groups = Vec::new();
    while !ensembles.is_empty() {
        let is_free =
            |models: &BTreeSet<String>| !models.iter().any(|it| ensembles.contains_key(it));
        let free = ensembles.iter().filter(|(_, models)| is_free(models));
        let mut group: Vec<String> = free.map(|(name, _)| name.clone()).collect();
        if group.is_empty() {
            group.extend(ensembles.keys().cloned());
        }
        group.iter().for_each(|name| drop(ensembles.remove(name)));
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::EnsembleStep;

    fn id(name: &str) -> ModelId {
        ModelId { name: name.into(), namespace: String::new() }
    }

    fn ensemble(models: &[&str]) -> Ensemble {
        let step = |model: &&str| EnsembleStep {
            model: (*model).into(),
            namespace: String::new(),
            version: None,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        Ensemble { steps: models.iter().map(step).collect(), max_inflight: None }
    }

    #[test]
    fn a_model_that_nobody_wants_any_more_is_an_orphan() {
        let mut all = Dependencies::default();
        all.wants(&id("outer"), &ensemble(&["inner", "m"]));
        all.wants(&id("inner"), &ensemble(&["m"]));
        all.asked_for(&id("outer"));
        assert_eq!(all.of("m"), [id("inner"), id("outer")]);
        assert!(!all.is_orphan(&id("inner")) && !all.is_orphan(&id("m")));
        all.wants_nothing(&id("outer"));
        all.let_go(&id("outer"));
        assert!(all.is_orphan(&id("inner")) && !all.is_orphan(&id("m")));
        all.wants_nothing(&id("inner"));
        assert!(all.is_orphan(&id("m")));
        all.asked_for(&id("m"));
        assert!(!all.is_orphan(&id("m")));
    }

    #[test]
    fn what_depends_on_others_comes_after_them() {
        let wants = |pairs: &[(&str, &[&str])]| {
            let pairs = pairs.iter().map(|(name, models)| {
                (name.to_string(), models.iter().map(ToString::to_string).collect())
            });
            in_order(pairs.collect())
        };
        assert_eq!(
            wants(&[("a", &["b", "m"]), ("b", &["c"]), ("c", &["m"]), ("d", &[])]),
            [vec!["c", "d"], vec!["b"], vec!["a"]]
        );
        assert_eq!(
            wants(&[("a", &["b"]), ("b", &["a"]), ("c", &["m"])]),
            [vec!["c"], vec!["a", "b"]]
        );
        assert!(wants(&[]).is_empty());
    }
}
