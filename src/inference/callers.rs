use std::sync::Arc;

/// The models whose instances wait for a request to be answered, because it is theirs, or their
/// caller's, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers(Vec<Caller>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Caller {
    model: Arc<str>,
    version: i64,
    instances: usize,
}

impl Callers {
    /// The callers of a request that an instance of `model` makes while it runs requests which
    /// themselves have `callers`.
    pub fn of<'a>(
        model: &Arc<str>,
        version: i64,
        callers: impl Iterator<Item = &'a Callers>,
    ) -> Self {
        let mut all = Self::default();
        for caller in callers.flat_map(|callers| &callers.0) {
            let place = all.place(&caller.model, caller.version);
            // Requests that run together wait in the same instances.
            place.instances = place.instances.max(caller.instances);
        }
        all.place(model, version).instances += 1;
        all
    }

    /// How many instances of this version wait.
    pub fn waiting(&self, model: &str, version: i64) -> usize {
        let found = self.0.iter().find(|it| *it.model == *model && it.version == version);
        found.map_or(0, |caller| caller.instances)
    }

    fn place(&mut self, model: &Arc<str>, version: i64) -> &mut Caller {
        let found = self.0.iter().position(|it| it.model == *model && it.version == version);
        let at = found.unwrap_or_else(|| {
            self.0.push(Caller { model: model.clone(), version, instances: 0 });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_that_waits_is_counted_once() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = Callers::of(&a, 1, std::iter::empty());
        assert_eq!((first.waiting("a", 1), first.waiting("a", 2)), (1, 0));
        let second = Callers::of(&b, 1, [&first, &first].into_iter());
        assert_eq!((second.waiting("a", 1), second.waiting("b", 1)), (1, 1));
        let third = Callers::of(&a, 1, [&first, &second].into_iter());
        assert_eq!((third.waiting("a", 1), third.waiting("b", 1)), (2, 1));
    }
}
