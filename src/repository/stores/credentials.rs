//! As whom a store is asked: what `TRITON_CLOUD_CREDENTIAL_PATH` names, a JSON file with credentials by the
//! beginning of the URL that they are for, or else what the environment says. No message tells a secret.

use std::{collections::BTreeMap, env, fs};

use serde::Deserialize;

use crate::repository::layout;

/// Names the file of credentials.
const FILE: &str = "TRITON_CLOUD_CREDENTIAL_PATH";

/// Credentials by the beginning of the URL that they are for; the empty one is for all.
type ByUrl<T> = BTreeMap<String, T>;

/// What the file of credentials says.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Credentials {
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
    /// The account, if not the one that the URL names.
    pub account_str: String,
    pub account_key: String,
    /// How to say who asks: `key`, `managed_identity` or `default`.
    pub auth_type: String,
    /// Which of several managed identities.
    pub client_id: String,
}

impl Credentials {
    /// Those of the file; none without one.
    ///
    /// # Errors
    /// The file cannot be read or is malformed.
    pub fn read() -> Result<Self, String> {
        let path = variable(FILE);
        if path.is_empty() {
            return Ok(Self::default());
        }
        let named = format!("the file of credentials '{path}' ({FILE})");
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {named}: {}", layout::describe(&error)))?;
        // The parser's own message could show a secret.
        serde_json::from_str(&text).map_err(|error| {
            format!("{named} is malformed at line {} column {}", error.line(), error.column())
        })
    }

    /// What the file says for a URL of S3.
    pub fn s3(&self, url: &str) -> Option<S3> {
        longest(&self.s3, url)
    }

    /// The path of an application's credentials that the file names for a URL of Google's.
    pub fn google(&self, url: &str) -> Option<String> {
        longest(&self.gs, url)
    }

    /// What the file, or else the environment, says for a URL of Azure's.
    pub fn azure(&self, url: &str) -> Azure {
        longest(&self.azure, url).unwrap_or_else(|| Azure {
            account_str: variable("AZURE_STORAGE_ACCOUNT"),
            account_key: variable("AZURE_STORAGE_KEY"),
            auth_type: variable("AZURE_STORAGE_AUTH_TYPE"),
            client_id: variable("AZURE_STORAGE_CLIENT_ID"),
        })
    }
}

/// A variable of the environment; empty where there is none, or it is no text.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
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
        for (url, expected) in [
            ("gs://bucket/a/b", "a"),
            ("gs://bucket/ab", "bucket"),
            ("gs://bucket", "bucket"),
            ("gs://bucket2", "all"),
        ] {
            assert_eq!(all.google(url).as_deref(), Some(expected), "{url}");
        }
        assert_eq!(all.s3("s3://bucket/x").map(|it| it.key_id).as_deref(), Some("id"));
        assert!(all.s3("s3://other").is_none());
        assert_eq!(all.azure("as://a/b").account_key, "key");
    }
}
