//! The models that are served, by their names: a snapshot that is read without a lock and replaced whole.

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{ensemble::StepVersion, version::LoadedVersion};
use crate::{
    inference::Error,
    repository::{EnsembleStep, ModelId},
};

/// All of them.
pub type Models = FxHashMap<Arc<str>, Namesakes>;

/// The models of one name: one, unless repositories are namespaces.
type Namesakes = SmallVec<[(ModelId, Arc<Versions>); 1]>;

/// The versions of a model that are served.
pub type Versions = BTreeMap<i64, Arc<LoadedVersion>>;

/// These models with `versions` in place of all that were served of `id`, and those. No versions mean
/// that the model is gone.
pub fn replaced(
    models: &Models,
    id: &ModelId,
    versions: &Arc<Versions>,
) -> (Models, Arc<Versions>) {
    let mut models = models.clone();
    let mut namesakes = models.remove(id.name.as_str()).unwrap_or_default();
    let before = match namesakes.iter().position(|(namesake, _)| namesake == id) {
        Some(at) => namesakes.remove(at).1,
        None => Arc::default(),
    };
    if !versions.is_empty() {
        namesakes.push((id.clone(), versions.clone()));
    }
    if !namesakes.is_empty() {
        models.insert(id.name.as_str().into(), namesakes);
    }
    (models, before)
}

/// What is served of a model.
pub fn served(models: &Models, id: &ModelId) -> Arc<Versions> {
    let mut namesakes = models.get(id.name.as_str()).into_iter().flatten();
    let served = namesakes.find(|(namesake, _)| namesake == id);
    served.map(|(_, versions)| versions.clone()).unwrap_or_default()
}

/// The version that a step of the ensemble `id` runs. Where names are not unique, that is the model in
/// the namespace that the step gives, else in the ensemble's own, else the only one of the name.
pub fn of_step(models: &Models, id: &ModelId, step: &EnsembleStep) -> Option<StepVersion> {
    let namesakes = models.get(step.model.as_str())?;
    let of =
        |namespace: &str| namesakes.iter().find(|(namesake, _)| namesake.namespace == namespace);
    let only = || namesakes.first().filter(|_| namesakes.len() == 1);
    let given = of(&step.namespace).filter(|_| !step.namespace.is_empty());
    let (_, versions) = given.or_else(|| of(&id.namespace)).or_else(only)?;
    let newest = versions.values().next_back()?;
    let wanted = match step.version {
        Some(version) => versions.get(&version),
        None => Some(newest),
    };
    let is_wanted = wanted.is_some();
    Some(StepVersion { version: wanted.unwrap_or(newest).clone(), is_wanted })
}

/// The versions of the model that a client means.
///
/// # Errors
/// When there is none, or several have the name.
pub fn find_model<'a>(models: &'a Models, model: &str) -> Result<&'a Versions, Error> {
    match models.get(model).map(SmallVec::as_slice) {
        Some([(_, versions)]) => Ok(versions),
        Some(namesakes @ [_, _, ..]) => {
            Err(Error::AmbiguousModel { model: model.to_owned(), count: namesakes.len() })
        }
        Some([]) | None => Err(Error::UnknownModel { model: model.to_owned() }),
    }
}

/// The version that a client means by these two; an empty version means the newest.
///
/// # Errors
/// When there is none.
pub fn find<'a>(
    models: &'a Models,
    model: &str,
    version: &str,
) -> Result<&'a Arc<LoadedVersion>, Error> {
    let versions = find_model(models, model)?;
    if version.is_empty() {
        let newest = versions.values().next_back();
        return newest.ok_or_else(|| Error::NoAvailableVersions { model: model.to_owned() });
    }
    let number: i64 =
        version.parse().map_err(|_| Error::MalformedVersion { version: version.to_owned() })?;
    if number < 0 {
        return Err(Error::NegativeVersion { version: version.to_owned() });
    }
    versions
        .get(&number)
        .ok_or_else(|| Error::UnknownVersion { model: model.to_owned(), version: number })
}
