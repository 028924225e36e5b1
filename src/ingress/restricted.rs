//! Groups of calls that are answered only to those who send a header with an agreed value.

use std::str::FromStr;

use http::{HeaderMap, HeaderName};

/// What calls are restricted by, as tritonserver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ApiGroup {
    Health,
    Metadata,
    Inference,
    SharedMemory,
    ModelConfig,
    ModelRepository,
    Statistics,
    Trace,
    Logging,
}

const NAMES: [(&str, ApiGroup); 9] = [
    ("health", ApiGroup::Health),
    ("metadata", ApiGroup::Metadata),
    ("inference", ApiGroup::Inference),
    ("shared-memory", ApiGroup::SharedMemory),
    ("model-config", ApiGroup::ModelConfig),
    ("model-repository", ApiGroup::ModelRepository),
    ("statistics", ApiGroup::Statistics),
    ("trace", ApiGroup::Trace),
    ("logging", ApiGroup::Logging),
];

/// `<group>,<group>:<header>=<value>`: the header that opens these groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restriction {
    groups: Vec<ApiGroup>,
    header: String,
    value: String,
}

impl FromStr for Restriction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected <api>,<api>:<header>=<value>, got '{text}'");
        let (groups, key) = text.split_once(':').ok_or_else(expected)?;
        let (header, value) = key.split_once('=').ok_or_else(expected)?;
        if header.is_empty() || value.is_empty() {
            return Err(expected());
        }
        let group = |name: &str| {
            let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, group)| *group);
            known.ok_or_else(|| {
                let names = NAMES.map(|(name, _)| name).join(", ");
                format!("expected an api of {names}, got '{name}'")
            })
        };
        Ok(Self {
            groups: groups.split(',').map(group).collect::<Result<_, _>>()?,
            header: header.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Restrictions that do not go together, or that no header can meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestrictionError {
    /// Two headers for one group.
    #[error("the api '{api}' is restricted twice, expected one header for it")]
    Twice {
        /// The group's name.
        api: &'static str,
    },
    /// No client could send this header.
    #[error("'{name}' is no name of a header")]
    Header {
        /// What was given.
        name: String,
    },
}

/// Which header opens which group.
#[derive(Clone, Debug)]
pub struct Restrictions {
    /// One place for each group; those without a key are open.
    keys: [Option<Key>; NAMES.len()],
}

#[derive(Clone, Debug)]
struct Key {
    /// As it was given, for the answer.
    told: String,
    header: HeaderName,
    value: String,
}

impl Restrictions {
    /// Puts restrictions together, if there are any; `prefix` goes before each header's name.
    ///
    /// # Errors
    /// When a group is restricted twice, or a name cannot be a header's.
    pub fn new(
        restrictions: &[Restriction],
        prefix: &str,
    ) -> Result<Option<Self>, RestrictionError> {
        let mut keys = [const { None }; NAMES.len()];
        for Restriction { groups, header, value } in restrictions {
            let told = format!("{prefix}{header}");
            let name = HeaderName::from_str(&told)
                .map_err(|_| RestrictionError::Header { name: told.clone() })?;
            for group in groups {
                let place = &mut keys[*group as usize];
                if place.is_some() {
                    return Err(RestrictionError::Twice { api: NAMES[*group as usize].0 });
                }
                let (told, header, value) = (told.clone(), name.clone(), value.clone());
                *place = Some(Key { told, header, value });
            }
        }
        Ok((!restrictions.is_empty()).then_some(Self { keys }))
    }

    /// The header that opens `group`, when it is restricted and `headers` does not have it.
    pub fn missing(&self, group: ApiGroup, headers: &HeaderMap) -> Option<&str> {
        let key = self.keys[group as usize].as_ref()?;
        let sent = headers.get(&key.header).map(|value| value.as_bytes());
        (sent != Some(key.value.as_bytes())).then_some(&key.told)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn restrictions(texts: &[&str]) -> Result<Option<Restrictions>, RestrictionError> {
        let read: Vec<Restriction> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Restrictions::new(&read, "x-")
    }

    #[test]
    fn names_stand_in_the_order_of_their_groups() {
        for (place, (_, group)) in NAMES.iter().enumerate() {
            assert_eq!(*group as usize, place);
        }
    }

    #[test]
    fn only_the_agreed_value_opens_a_group() {
        let rules = restrictions(&["health,trace:Key=a=b", "inference:other=1"]).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(rules.missing(ApiGroup::Health, &headers), Some("x-Key"));
        assert_eq!(rules.missing(ApiGroup::Logging, &headers), None);
        for (value, opens) in [("a=b", true), ("A=b", false), ("", false)] {
            headers.insert("x-key", HeaderValue::from_static(value));
            assert_eq!(rules.missing(ApiGroup::Trace, &headers).is_none(), opens, "{value}");
            assert_eq!(rules.missing(ApiGroup::Inference, &headers), Some("x-other"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(restrictions(&[]).unwrap().is_none());
        assert_eq!(
            restrictions(&["health:a=1", "trace,health:b=1"]).unwrap_err().to_string(),
            "the api 'health' is restricted twice, expected one header for it"
        );
        assert_eq!(
            restrictions(&["health:a b=1"]).unwrap_err().to_string(),
            "'x-a b' is no name of a header"
        );
        for (bad, told) in [
            ("health", "expected <api>,<api>:<header>=<value>, got 'health'"),
            ("health:key", "expected <api>,<api>:<header>=<value>, got 'health:key'"),
            ("health:key=", "expected <api>,<api>:<header>=<value>, got 'health:key='"),
            ("health,all:a=1", "got 'all'"),
        ] {
            let error = bad.parse::<Restriction>().unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
