//! The connection to a store, and what is done over it.

use std::{error::Error as _, path::PathBuf, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use object_store::{
    ClientOptions, GetOptions, ObjectMeta, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
};
use sha2::{Digest as _, Sha256};

use super::{
    credentials::{self, Credential},
    location::{Service, StoreUrl},
};
use crate::runtime::choose_cryptography;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a failing request is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const RETRIES_MAX: usize = 3;

/// Makes the connection, with the credentials that the file or the environment have now.
pub fn make(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, String> {
    choose_cryptography();
    let credential = credentials::of(url)?;
    let options = ClientOptions::new()
        // Where the operator names such an address; nothing else leads to one.
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout_disabled();
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    let made: object_store::Result<Arc<dyn ObjectStore>> = match &url.service {
        Service::S3 { bucket, endpoint } => {
            let mut builder = AmazonS3Builder::from_env();
            if let Some(Credential::S3(it)) = credential {
                if !it.profile.is_empty() {
                    return Err("its credential names a profile, and those are not read".to_owned());
                }
                builder = AmazonS3Builder::new();
                if !it.key_id.is_empty() {
                    builder =
                        builder.with_access_key_id(it.key_id).with_secret_access_key(it.secret_key);
                }
                if !it.session_token.is_empty() {
                    builder = builder.with_token(it.session_token);
                }
                if !it.region.is_empty() {
                    builder = builder.with_region(it.region);
                }
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
            }
            let builder = builder.with_bucket_name(bucket).with_client_options(options);
            builder.with_retry(retry).build().map(|made| Arc::new(made) as _)
        }
        Service::Google { bucket } => {
            let mut builder = GoogleCloudStorageBuilder::from_env();
            if let Some(Credential::Google(path)) = credential {
                builder = GoogleCloudStorageBuilder::new().with_application_credentials(path);
            }
            let builder = builder.with_bucket_name(bucket).with_client_options(options);
            builder.with_retry(retry).build().map(|made| Arc::new(made) as _)
        }
        Service::Azure { account, container } => {
            // Triton's names for them, which the crate does not know.
            let key = std::env::var("AZURE_STORAGE_KEY").ok().filter(|key| !key.is_empty());
            let mut builder = MicrosoftAzureBuilder::from_env();
            if let Some(Credential::Azure(it)) = credential {
                builder = builder.with_access_key(it.account_key);
            } else if let Some(key) = key {
                builder = builder.with_access_key(key);
            }
            let builder = builder.with_account(account).with_container_name(container);
            let builder = builder.with_client_options(options).with_retry(retry);
            builder.build().map(|made| Arc::new(made) as _)
        }
    };
    made.map_err(|error| describe(&error))
}

/// Writes an object into the file `part`, unless it is another by now than was listed, and returns the
/// SHA-256 of what was written.
pub async fn download(
    client: &dyn ObjectStore,
    object: &ObjectMeta,
    part: &PathBuf,
) -> object_store::Result<[u8; 32]> {
    let failed = |source: std::io::Error| object_store::Error::Generic {
        store: "the file that it is written to",
        source: Box::new(source),
    };
    let options = GetOptions { if_match: object.e_tag.clone(), ..GetOptions::default() };
    let mut stream = client.get_opts(&object.location, options).await?.into_stream();
    let mut file = std::fs::File::create_new(part).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut bytes = 0_u64;
    while let Some(chunk) = stream.try_next().await? {
        digest.update(&chunk);
        bytes += chunk.len() as u64;
        std::io::Write::write_all(&mut file, &chunk).map_err(failed)?;
    }
    if bytes != object.size {
        let reason = format!("it has {bytes} bytes, expected {}", object.size);
        return Err(failed(std::io::Error::other(reason)));
    }
    Ok(digest.finalize().into())
}

/// An error with all its causes, which the crate shows one at a time.
pub fn describe(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
