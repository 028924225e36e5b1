use std::path::PathBuf;

use object_store::path::Path as Key;

use super::Store;
use crate::repository::error::Error;

/// Where a model repository lies.
#[derive(Debug)]
pub(in crate::repository) enum Location {
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In an object store.
    Store(Store),
}

/// A URL as Triton writes it, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoreUrl {
    /// The whole of it.
    pub text: String,
    pub service: Service,
    /// What all names of objects of the repository begin with.
    pub root: Key,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Service {
    S3 {
        bucket: String,
        /// `http://host:port` of a service other than Amazon's.
        endpoint: Option<String>,
    },
    Google {
        bucket: String,
    },
    Azure {
        account: String,
        container: String,
    },
}

impl Location {
    /// What an operator calls a model repository: a path or a URL.
    ///
    /// # Errors
    /// A URL that is malformed, or no folder can be made for what is fetched from it.
    pub fn parse(text: PathBuf) -> Result<Self, Error> {
        match text.to_str().map(StoreUrl::parse) {
            Some(Some(Ok(url))) => Store::new(url).map(Self::Store),
            Some(Some(Err(expected))) => {
                Err(Error::BadLocation { location: text.to_string_lossy().into_owned(), expected })
            }
            Some(None) | None => Ok(Self::Folder(text)),
        }
    }
}

impl StoreUrl {
    /// `None` for what is no URL of a store; what was expected, for one that is malformed.
    pub fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let (scheme, rest) = text.split_once("://")?;
        let parsed = match scheme {
            "s3" => s3(rest),
            "gs" => google(rest),
            "as" => azure(rest),
            _ => return None,
        };
        Some(parsed.and_then(|(service, path)| {
            let path = path.trim_matches('/');
            let root = Key::parse(path).map_err(|_| "a path without empty parts, '.' and '..'")?;
            Ok(Self { text: text.trim_end_matches('/').to_owned(), service, root })
        }))
    }
}

/// `bucket/path`, `host:port/bucket/path` or `https://host/bucket/path`. Without a scheme a host is asked
/// by plain HTTP, as Triton does.
fn s3(rest: &str) -> Result<(Service, &str), &'static str> {
    const EXPECTED: &str = "s3://bucket/path or s3://https://host:port/bucket/path";
    let (scheme, address) = match rest.split_once("://") {
        Some((scheme @ ("http" | "https"), address)) => (Some(scheme), address),
        Some(_) => return Err(EXPECTED),
        None => (None, rest),
    };
    let (first, path) = split(address);
    let port = first.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if port.as_ref().is_some_and(|port| port.is_err()) {
        return Err(EXPECTED);
    }
    if scheme.is_none() && port.is_none() {
        let bucket = name(first).ok_or(EXPECTED)?;
        return Ok((Service::S3 { bucket, endpoint: None }, path));
    }
    let endpoint = Some(format!("{}://{first}", scheme.unwrap_or("http")));
    let (bucket, path) = split(path);
    let bucket = name(bucket).filter(|_| !first.is_empty()).ok_or(EXPECTED)?;
    Ok((Service::S3 { bucket, endpoint }, path))
}

fn google(rest: &str) -> Result<(Service, &str), &'static str> {
    let (bucket, path) = split(rest);
    let bucket = name(bucket).ok_or("gs://bucket/path")?;
    Ok((Service::Google { bucket }, path))
}

fn azure(rest: &str) -> Result<(Service, &str), &'static str> {
    let (account, path) = split(rest);
    let (container, path) = split(path);
    // Both are written.
    let account = account.strip_suffix(".blob.core.windows.net").unwrap_or(account);
    match (name(account), name(container)) {
        (Some(account), Some(container)) => Ok((Service::Azure { account, container }, path)),
        _ => Err("as://account/container/path"),
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or((text, ""))
}

/// The name of a bucket, a container or an account.
fn name(text: &str) -> Option<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!text.is_empty() && text.bytes().all(is_name)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> (Service, String) {
        let url = StoreUrl::parse(text).unwrap().unwrap();
        (url.service, url.root.to_string())
    }

    #[test]
    fn urls_are_written_as_triton_writes_them() {
        let s3 = |bucket: &str, endpoint: Option<&str>| Service::S3 {
            bucket: bucket.to_owned(),
            endpoint: endpoint.map(str::to_owned),
        };
        let azure = || Service::Azure { account: "account".into(), container: "container".into() };
        for (text, expected, root) in [
            ("s3://bucket", s3("bucket", None), ""),
            ("s3://bucket/", s3("bucket", None), ""),
            ("s3://my.bucket-1/a/b/", s3("my.bucket-1", None), "a/b"),
            ("s3://host:9000/bucket/a", s3("bucket", Some("http://host:9000")), "a"),
            ("s3://http://host:80/bucket", s3("bucket", Some("http://host:80")), ""),
            ("s3://https://host/bucket/a", s3("bucket", Some("https://host")), "a"),
            ("gs://bucket/a b", Service::Google { bucket: "bucket".into() }, "a b"),
            ("as://account/container/a", azure(), "a"),
            ("as://account.blob.core.windows.net/container", azure(), ""),
        ] {
            assert_eq!(service(text), (expected, root.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_told_how_it_should_be() {
        for text in [
            "s3://",
            "s3:///a",
            "s3://bucket/../a",
            "s3://bucket/a//b",
            "s3://host:port/bucket",
            "s3://ftp://host/bucket",
            "s3://https://host:1",
            "s3://https:///bucket",
            "s3://a\0b",
            "gs://",
            "gs://a?b",
            "as://account",
            "as:///container",
        ] {
            assert!(StoreUrl::parse(text).unwrap().is_err(), "{text:?}");
            let error = Location::parse(text.into()).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        for text in ["/models", "models", "c://x", "file:///x", "S3://bucket", ""] {
            assert!(StoreUrl::parse(text).is_none(), "{text}");
        }
    }
}
