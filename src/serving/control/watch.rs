//! Which changes of a repository are taken up, without clocks and files: those that two looks in
//! succession agree upon, so that nothing is loaded while it is still being copied.

use std::collections::BTreeMap;

/// What to do about a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new or has changed.
    Load,
    /// It is gone.
    Unload,
}

/// What was seen of models so far. `K` says which model, `F` tells its states apart.
pub struct Watch<K, F>(BTreeMap<K, Watched<F>>);

struct Watched<F> {
    /// As it was when it was last taken up; `None` when it was not, or is unloaded.
    taken_up: Option<F>,
    last: Seen<F>,
}

#[derive(PartialEq)]
enum Seen<F> {
    Absent,
    /// It is there, and cannot be told.
    Unclear,
    As(F),
}

impl<K: Ord + Clone, F: PartialEq + Clone> Watch<K, F> {
    /// Begins with models that are taken up as they are.
    pub fn new(models: BTreeMap<K, Option<F>>) -> Self {
        let watched = models.into_iter().map(|(model, state)| {
            let last = state.clone().map_or(Seen::Unclear, Seen::As);
            (model, Watched { taken_up: state, last })
        });
        Self(watched.collect())
    }

    /// Takes in what is there now, `None` for a model whose state cannot be told, and says what to do.
    pub fn look(&mut self, mut now: BTreeMap<K, Option<F>>) -> Vec<(K, Change)> {
        let mut changes = Vec::new();
        for model in
            now.keys().filter(|model| !self.0.contains_key(model)).cloned().collect::<Vec<_>>()
        {
            self.0.insert(model, Watched { taken_up: None, last: Seen::Absent });
        }
        self.0.retain(|model, watched| {
            let seen = match now.remove(model) {
                None => Seen::Absent,
                Some(None) => Seen::Unclear,
                Some(Some(state)) => Seen::As(state),
            };
            let settled = seen == watched.last;
            watched.last = seen;
            match &watched.last {
                Seen::As(state) if settled && watched.taken_up.as_ref() != Some(state) => {
                    watched.taken_up = Some(state.clone());
                    changes.push((model.clone(), Change::Load));
                }
                Seen::Absent if settled => {
                    changes.push((model.clone(), Change::Unload));
                    return false;
                }
                _ => {}
            }
            true
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a model `m` goes through: what is seen (`-` nothing, `?` unclear), and what is done.
    fn story(begins_as: &str, looks: &[(&str, Option<Change>)]) {
        let state = |seen: &str| -> BTreeMap<&str, Option<String>> {
            match seen {
                "-" => BTreeMap::new(),
                "?" => [("m", None)].into(),
                state => [("m", Some(state.to_owned()))].into(),
            }
        };
        let mut watch = Watch::new(state(begins_as));
        for (index, (seen, expected)) in looks.iter().enumerate() {
            let changes = watch.look(state(seen));
            let expected: Vec<_> = expected.iter().map(|change| ("m", *change)).collect();
            assert_eq!(changes, expected, "look {index} of {looks:?}");
        }
        assert!(watch.0.len() <= 1);
    }

    #[test]
    fn only_what_two_looks_agree_upon_is_taken_up() {
        let (load, unload) = (Some(Change::Load), Some(Change::Unload));
        story("a", &[("a", None), ("a", None)]);
        story("a", &[("b", None), ("b", load), ("b", None)]);
        // Being copied: it grows from look to look.
        story("-", &[("1", None), ("12", None), ("123", None), ("123", load), ("123", None)]);
        story("a", &[("-", None), ("-", unload), ("-", None)]);
        // Moved away and back between two looks, as some tools do.
        story("a", &[("-", None), ("a", None), ("a", None)]);
        story("a", &[("-", None), ("b", None), ("b", load)]);
        story("a", &[("-", None), ("-", unload), ("a", None), ("a", load)]);
        // A change that is taken back before it settled.
        story("a", &[("b", None), ("a", None), ("a", None)]);
        // Not readable for a while.
        story("a", &[("?", None), ("?", None), ("a", None), ("a", None)]);
        story("a", &[("?", None), ("b", None), ("b", load)]);
        story("?", &[("a", None), ("a", load)]);
        story("?", &[("-", None), ("-", unload)]);
    }

    #[test]
    fn a_model_that_is_gone_is_forgotten() {
        let mut watch = Watch::new([("m", Some(1))].into());
        watch.look(BTreeMap::new());
        watch.look(BTreeMap::new());
        assert!(watch.0.is_empty());
    }
}
