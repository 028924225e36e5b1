//! As whom a store is asked: what `TRITON_CLOUD_CREDENTIAL_PATH` names, a JSON file with credentials by the
//! beginning of the URL that they are for, or else what the environment says. No message tells a secret.

use std::{collections::BTreeMap, env, fs};

use serde::Deserialize;

use super::location::{Service, StoreUrl};
use crate::repository::layout;

/// Names the file of credentials.
const FILE: &str = "TRITON_CLOUD_CREDENTIAL_PATH";

/// Credentials by the beginning of the URL that they are for; the empty one is for all.
type ByUrl<T> = BTreeMap<String, T>;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Credentials {
    s3: ByUrl<S3>,
    gs: ByUrl<String>,
    #[serde(rename = "as")]
    azure: ByUrl<Azure>,
}

/// Those for S3.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct S3 {
    pub key_id: String,
    pub secret_key: String,
    pub session_token: String,
    pub region: String,
    pub profile: String,
}

/// Those for Azure.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Azure {
    pub account_str: String,
    pub account_key: String,
}

/// What the file says for a URL.
#[derive(Clone)]
pub enum Credential {
    S3(S3),
    /// The path of the application's credentials.
    Google(String),
    Azure(Azure),
}

/// What is said of `url` in the file of credentials; `None` without such a file, or where it says nothing.
pub fn of(url: &StoreUrl) -> Result<Option<Credential>, String> {
    let Some(path) = env::var_os(FILE).filter(|path| !path.is_empty()) else { return Ok(None) };
    let named = format!("the file of credentials '{}' ({FILE})", path.display());
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {named}: {}", layout::describe(&error)))?;
    // The parser's own message could show a secret.
    let all: Credentials = serde_json::from_str(&text).map_err(|error| {
        format!("{named} is malformed at line {} column {}", error.line(), error.column())
    })?;
    Ok(all.choose(url))
}

impl Credentials {
    fn choose(&self, url: &StoreUrl) -> Option<Credential> {
        match url.service {
            Service::S3 { .. } => longest(&self.s3, &url.text).map(Credential::S3),
            Service::Google { .. } => longest(&self.gs, &url.text).map(Credential::Google),
            Service::Azure { .. } => longest(&self.azure, &url.text).map(Credential::Azure),
        }
    }
}

/// What the longest beginning of `url` has.
fn longest<T: Clone>(all: &ByUrl<T>, url: &str) -> Option<T> {
    let fits = all.iter().filter(|(begin, _)| is_beginning(begin, url));
    fits.max_by_key(|(begin, _)| begin.len()).map(|(_, value)| value.clone())
}

/// Whether `url` is `begin` or lies below it.
fn is_beginning(begin: &str, url: &str) -> bool {
    let begin = begin.trim_end_matches('/');
    match url.strip_prefix(begin) {
        Some(rest) => begin.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_counts() {
        let all: Credentials = serde_json::from_str(
            r#"{
                "gs": { "": "all", "gs://bucket": "bucket", "gs://bucket/a/": "a" },
                "s3": { "s3://bucket": { "key_id": "id", "secret_key": "key" } },
                "as": { "": { "account_str": "account", "account_key": "key" } }
            }"#,
        )
        .unwrap();
        let google = |url: &str| match all.choose(&StoreUrl::parse(url).unwrap().unwrap()) {
            Some(Credential::Google(path)) => path,
            _ => panic!("not Google's"),
        };
        for (url, expected) in [
            ("gs://bucket/a/b", "a"),
            ("gs://bucket/ab", "bucket"),
            ("gs://bucket", "bucket"),
            ("gs://bucket2", "all"),
        ] {
            assert_eq!(google(url), expected, "{url}");
        }
        let of = |url: &str| all.choose(&StoreUrl::parse(url).unwrap().unwrap());
        assert!(matches!(of("s3://bucket/x"), Some(Credential::S3(it)) if it.key_id == "id"));
        assert!(of("s3://other").is_none());
        assert!(matches!(of("as://a/b"), Some(Credential::Azure(it)) if it.account_key == "key"));
    }
}
