use std::fmt;

use compact_str::CompactString;

use super::{Parameter, Parameters};

/// The sequence that a request belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Which sequence of the model's.
    pub id: CorrelationId,
    /// Whether the request is its first.
    pub start: bool,
    /// Whether the request is its last.
    pub end: bool,
}

/// The name of a sequence, chosen by its client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CorrelationId {
    /// A number; 0 names no sequence.
    Number(u64),
    /// A text; the empty one names no sequence.
    Text(CompactString),
}

impl CorrelationId {
    /// Whether it names no sequence.
    pub fn is_none(&self) -> bool {
        match self {
            Self::Number(number) => *number == 0,
            Self::Text(text) => text.is_empty(),
        }
    }
}

impl Default for CorrelationId {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl Sequence {
    /// Takes the parameters of a request that speak of its sequence; `None` without any. Those of
    /// another type are left.
    pub fn take(parameters: &mut Parameters) -> Option<Box<Self>> {
        if parameters.is_empty() {
            return None;
        }
        let id = match parameters.get("sequence_id") {
            Some(Parameter::Uint(number)) => Some(CorrelationId::Number(*number)),
            Some(Parameter::Int(number)) => Some(CorrelationId::Number(number.cast_unsigned())),
            Some(Parameter::String(text)) => Some(CorrelationId::Text(text.clone())),
            _ => None,
        };
        let flag = |name| match parameters.get(name) {
            Some(Parameter::Bool(flag)) => Some(*flag),
            _ => None,
        };
        let (start, end) = (flag("sequence_start"), flag("sequence_end"));
        let given = [
            ("sequence_id", id.is_some()),
            ("sequence_start", start.is_some()),
            ("sequence_end", end.is_some()),
        ];
        let mut any = false;
        for (name, _) in given.into_iter().filter(|(_, given)| *given) {
            any = true;
            parameters.remove(name);
        }
        any.then(|| {
            Box::new(Self {
                id: id.unwrap_or_default(),
                start: start.unwrap_or_default(),
                end: end.unwrap_or_default(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_right_type_are_taken() {
        let mut parameters = Parameters::default();
        assert_eq!(Sequence::take(&mut parameters), None);
        parameters.insert("x", Parameter::Int(1));
        assert_eq!(Sequence::take(&mut parameters), None);
        parameters.insert("sequence_id", Parameter::Int(-1));
        parameters.insert("sequence_start", Parameter::Bool(true));
        parameters.insert("sequence_end", Parameter::Int(1));
        let expected = Sequence { id: CorrelationId::Number(u64::MAX), start: true, end: false };
        assert_eq!(Sequence::take(&mut parameters).as_deref(), Some(&expected));
        let left: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["x", "sequence_end"]);
        assert!(!expected.id.is_none() && CorrelationId::Text("".into()).is_none());
    }
}
