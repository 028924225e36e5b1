use std::{fmt, ops::BitOr};

/// What is noted of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level(u8);

impl Level {
    /// Nothing.
    pub const OFF: Self = Self(0);
    /// When each of its steps began and ended.
    pub const TIMESTAMPS: Self = Self(1);
    /// Its inputs and outputs.
    pub const TENSORS: Self = Self(2);

    const NAMED: [(Self, &str); 2] = [(Self::TIMESTAMPS, "TIMESTAMPS"), (Self::TENSORS, "TENSORS")];

    /// The level of this name; `None` for any other name than that of a single level.
    pub fn by_name(name: &str) -> Option<Self> {
        let named = Self::NAMED.into_iter().find(|(_, known)| *known == name);
        named.map(|(level, _)| level).or((name == "OFF").then_some(Self::OFF))
    }

    /// The names of all that it has, `OFF` when that is nothing.
    pub fn names(self) -> Vec<&'static str> {
        let named = Self::NAMED.into_iter().filter(|(level, _)| self.has(*level));
        let names: Vec<_> = named.map(|(_, name)| name).collect();
        if names.is_empty() { vec!["OFF"] } else { names }
    }

    /// Whether all of `other` is noted.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Level {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

/// How requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is noted.
    pub level: Level,
    /// One of so many requests is traced.
    pub rate: u32,
    /// How many more are traced; -1 for no limit.
    pub count: i32,
    /// How many traces a file has before the next one is begun; 0 for one file in all.
    pub log_frequency: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: Level::OFF, rate: 1000, count: -1, log_frequency: 0 }
    }
}

/// Settings of which some are given; the others are those of whoever is asked next: of a model the
/// server, of the server its flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fields {
    pub level: Option<Level>,
    pub rate: Option<u32>,
    pub count: Option<i32>,
    pub log_frequency: Option<u32>,
}

impl Fields {
    /// The settings, completed by `others`.
    pub fn over(self, others: Settings) -> Settings {
        Settings {
            level: self.level.unwrap_or(others.level),
            rate: self.rate.unwrap_or(others.rate),
            count: self.count.unwrap_or(others.count),
            log_frequency: self.log_frequency.unwrap_or(others.log_frequency),
        }
    }

    /// These, less what `change` clears, and with what it sets.
    pub fn changed(self, change: Change) -> Self {
        Self {
            level: change.level.unwrap_or(self.level),
            rate: change.rate.unwrap_or(self.rate),
            count: change.count.unwrap_or(self.count),
            log_frequency: change.log_frequency.unwrap_or(self.log_frequency),
        }
    }
}

/// What of the settings to change: `None` leaves one as it is, `Some(None)` gives it back to whoever
/// is asked next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Change {
    pub level: Option<Option<Level>>,
    pub rate: Option<Option<u32>>,
    pub count: Option<Option<i32>>,
    pub log_frequency: Option<Option<u32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        let both = Level::TIMESTAMPS | Level::TENSORS;
        assert_eq!(both.to_string(), "TIMESTAMPS,TENSORS");
        assert_eq!(Level::OFF.names(), ["OFF"]);
        assert_eq!(Level::by_name("TENSORS"), Some(Level::TENSORS));
        assert_eq!(Level::by_name("OFF"), Some(Level::OFF));
        assert_eq!(Level::by_name("MIN"), None);
        assert!(both.has(Level::TENSORS) && !Level::TENSORS.has(both));
    }

    #[test]
    fn what_is_not_given_is_somebody_elses() {
        let fields = Fields { rate: Some(7), ..Fields::default() };
        let change = Change { level: Some(Some(Level::TENSORS)), ..Change::default() };
        let changed = fields.changed(change);
        let expected = Settings { level: Level::TENSORS, rate: 7, ..Settings::default() };
        assert_eq!(changed.over(Settings::default()), expected);
        let cleared = changed.changed(Change { rate: Some(None), ..Change::default() });
        assert_eq!(cleared.over(Settings::default()).rate, 1000);
    }
}
