//! Where the libraries of back ends lie: `{directory}/{name}/…`, filled by
//! `nereid backend install NAME`.

use std::{env, path::PathBuf};

/// The environment variable that names the directory.
pub const ENVIRONMENT: &str = "NEREID_BACKEND_DIR";

/// The directory to use when no flag names one: that of [`ENVIRONMENT`], else
/// `$XDG_DATA_HOME/nereid/backends`, else `~/.local/share/nereid/backends`.
///
/// `None` when neither the variables nor a home directory are known.
pub fn default() -> Option<PathBuf> {
    choose(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(directory) = variable(ENVIRONMENT) {
        return Some(directory);
    }
    // The XDG base directory specification has relative paths ignored.
    let data = variable("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(variable("HOME")?.join(".local/share")))?;
    Some(data.join("nereid/backends"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_nearest_variable_wins() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
        let cases: [Case<'_>; 5] = [
            (&[(ENVIRONMENT, "/b"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")], Some("/b")),
            (&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")], Some("/x/nereid/backends")),
            (&[("XDG_DATA_HOME", "x"), ("HOME", "/h")], Some("/h/.local/share/nereid/backends")),
            (&[("HOME", "/h")], Some("/h/.local/share/nereid/backends")),
            (&[], None),
        ];
        for (variables, expected) in cases {
            let found = choose(|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            });
            assert_eq!(found.as_deref(), expected.map(Path::new), "{variables:?}");
        }
    }
}
