//! Which of the versions present are served.

use crate::proto::{ModelConfig, model_version_policy::PolicyChoice};

/// The versions that the policy of `config` takes from those `present` (ascending), ascending.
///
/// `None` when it takes none.
pub(super) fn select(config: &ModelConfig, present: &[i64]) -> Option<Vec<i64>> {
    let choice = config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref());
    let chosen: Vec<i64> = match choice {
        Some(PolicyChoice::Latest(latest)) => {
            let count = usize::try_from(latest.num_versions).unwrap_or(usize::MAX);
            let older = present.len().saturating_sub(count);
            present.iter().skip(older).copied().collect()
        }
        Some(PolicyChoice::Specific(specific)) => {
            present.iter().filter(|version| specific.versions.contains(version)).copied().collect()
        }
        // A policy that is there but chooses nothing is "all" to Triton.
        Some(PolicyChoice::All(_)) | None => present.to_vec(),
    };
    (!chosen.is_empty()).then_some(chosen)
}

/// The versions that a `specific` policy names and that are not `present`.
pub(super) fn absent(config: &ModelConfig, present: &[i64]) -> Vec<i64> {
    match config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref()) {
        Some(PolicyChoice::Specific(specific)) => {
            specific.versions.iter().filter(|version| !present.contains(version)).copied().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{
        ModelVersionPolicy,
        model_version_policy::{All, Latest, Specific},
    };

    fn config(choice: PolicyChoice) -> ModelConfig {
        let version_policy = Some(ModelVersionPolicy { policy_choice: Some(choice) });
        ModelConfig { name: "m".into(), version_policy, ..ModelConfig::default() }
    }

    #[test]
    fn each_policy_takes_its_versions() {
        let latest = |num_versions| PolicyChoice::Latest(Latest { num_versions });
        let specific =
            |versions: &[i64]| PolicyChoice::Specific(Specific { versions: versions.into() });
        let cases: [(PolicyChoice, &[i64]); 6] = [
            (latest(1), &[12]),
            (latest(2), &[3, 12]),
            (latest(9), &[1, 3, 12]),
            (PolicyChoice::All(All {}), &[1, 3, 12]),
            (specific(&[3, 12]), &[3, 12]),
            (specific(&[1, 7]), &[1]),
        ];
        for (choice, expected) in cases {
            assert_eq!(select(&config(choice), &[1, 3, 12]).as_deref(), Some(expected));
        }
        assert_eq!(absent(&config(specific(&[1, 7])), &[1, 3, 12]), [7]);
    }

    #[test]
    fn a_policy_may_take_nothing() {
        let none = [
            (PolicyChoice::Latest(Latest { num_versions: 0 }), vec![1]),
            (PolicyChoice::Latest(Latest { num_versions: 1 }), vec![]),
            (PolicyChoice::Specific(Specific { versions: vec![4] }), vec![1]),
        ];
        for (choice, present) in none {
            assert_eq!(select(&config(choice), &present), None);
        }
    }

    proptest! {
        #[test]
        fn latest_takes_the_greatest(
            present in prop::collection::btree_set(1_i64.., 1..20), count in 1_u32..30,
        ) {
            let present: Vec<i64> = present.into_iter().collect();
            let choice = PolicyChoice::Latest(Latest { num_versions: count });
            let chosen = select(&config(choice), &present).unwrap();
            prop_assert_eq!(chosen.len(), present.len().min(count as usize));
            prop_assert!(present.ends_with(&chosen));
        }
    }
}
