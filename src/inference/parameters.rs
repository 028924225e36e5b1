use compact_str::CompactString;

/// The value of a request or response parameter.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(CompactString),
}

/// Named parameters in the order they came; a name given twice keeps its last value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Vec<(CompactString, Parameter)>);

impl<const N: usize> From<[(&str, Parameter); N]> for Parameters {
    /// Names that differ, and their values.
    fn from(parameters: [(&str, Parameter); N]) -> Self {
        Self(parameters.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

impl Parameters {
    /// Sets `name`, replacing an earlier value.
    pub fn insert(&mut self, name: impl Into<CompactString>, value: Parameter) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Removes `name` and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<Parameter> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
