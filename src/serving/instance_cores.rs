use std::collections::BTreeMap;

/// The processors that instances run on, by their system numbers.
#[derive(Clone, Debug, Default)]
pub struct InstanceCores {
    others: Vec<usize>,
    by_policy: BTreeMap<String, Vec<usize>>,
}

impl From<Vec<usize>> for InstanceCores {
    /// The same for all instances.
    fn from(others: Vec<usize>) -> Self {
        Self { others, by_policy: BTreeMap::new() }
    }
}

impl InstanceCores {
    /// Has instances of the host policy `name` run on `cores`.
    pub fn set(&mut self, name: String, cores: Vec<usize>) {
        self.by_policy.insert(name, cores);
    }

    /// Where instances run of which no host policy says anything.
    pub fn others(&self) -> &[usize] {
        &self.others
    }

    /// Where the operator wants instances of this host policy, if that was said.
    pub fn wanted(&self, policy: &str) -> Option<&[usize]> {
        self.by_policy.get(policy).map(Vec::as_slice)
    }

    /// Where instances of this host policy run.
    pub fn of(&self, policy: &str) -> &[usize] {
        self.wanted(policy).unwrap_or(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_its_processors() {
        let mut cores = InstanceCores::from(vec![2, 3]);
        cores.set("fast".to_owned(), vec![5]);
        assert_eq!(cores.of("fast"), [5]);
        assert_eq!(cores.of("cpu"), [2, 3]);
        assert_eq!(cores.wanted("cpu"), None);
    }
}
