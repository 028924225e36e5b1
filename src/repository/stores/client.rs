//! The connection to a store, and what is done over it.

use std::{error::Error as _, path::PathBuf, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use object_store::{
    ClientOptions, GetOptions, ObjectMeta, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
};
use sha2::{Digest as _, Sha256};

use super::{
    credentials::{Azure, Credentials, S3, variable},
    location::{Service, StoreUrl},
};
use crate::runtime::{choose_cryptography, wait_for_network};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a failing request is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const RETRIES_MAX: usize = 3;

/// By this Google's own library is told of a service that stands in for theirs.
const GOOGLE_ENDPOINT: &str = "CLOUD_STORAGE_EMULATOR_ENDPOINT";
/// What says who asks Google.
const GOOGLE_KEYS: [GoogleConfigKey; 4] = [
    GoogleConfigKey::ServiceAccount,
    GoogleConfigKey::ServiceAccountKey,
    GoogleConfigKey::ApplicationCredentials,
    GoogleConfigKey::BearerToken,
];
/// What says who asks Azure, beside an account's key.
const AZURE_KEYS: [AzureConfigKey; 4] = [
    AzureConfigKey::ClientSecret,
    AzureConfigKey::FederatedTokenFile,
    AzureConfigKey::SasKey,
    AzureConfigKey::Token,
];

/// Makes the connection, with the credentials that the file or the environment have now.
pub fn make(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, String> {
    choose_cryptography();
    let credentials = Credentials::read()?;
    match &url.service {
        Service::S3 { bucket, endpoint } => s3(bucket, endpoint, credentials.s3(&url.text)),
        Service::Google { bucket } => google(url, bucket, credentials.google(&url.text)),
        Service::Azure { account, container } => {
            azure(account, container, credentials.azure(&url.text))
        }
    }
}

fn s3(
    bucket: &str,
    endpoint: &Option<String>,
    credential: Option<S3>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(it) = credential {
        if !it.profile.is_empty() {
            return Err("its credential names a profile, and those are not read".to_owned());
        }
        builder = AmazonS3Builder::new();
        if !it.key_id.is_empty() {
            builder = builder.with_access_key_id(it.key_id).with_secret_access_key(it.secret_key);
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
    let builder = builder.with_bucket_name(bucket).with_client_options(options());
    made(builder.with_retry(retry()).build())
}

/// Who nowhere says who asks is asked as by the instance of Google's that the server runs on, and is nobody
/// elsewhere, as with Triton.
fn google(
    url: &StoreUrl,
    bucket: &str,
    application: Option<String>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = match application {
        Some(path) => GoogleCloudStorageBuilder::new().with_application_credentials(path),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let is_named = GOOGLE_KEYS.iter().any(|key| builder.get_config_value(key).is_some());
    let endpoint = variable(GOOGLE_ENDPOINT);
    if !endpoint.is_empty() {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let builder = builder.with_bucket_name(bucket).with_client_options(options());
    let builder = builder.with_retry(retry());
    if is_named {
        return made(builder.build());
    }
    if endpoint.is_empty() {
        let store = builder.clone().build().map_err(|error| describe(&error))?;
        let provider = store.credentials().clone();
        match wait_for_network(async move { provider.get_credential().await }) {
            Ok(Ok(_)) => return Ok(Arc::new(store)),
            Ok(Err(error)) => {
                let reason = describe(&error);
                log::info!(
                    "'{}' is asked without credentials, as there are none: {reason}",
                    url.text
                );
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    made(builder.with_skip_signature(true).build())
}

fn azure(account: &str, container: &str, it: Azure) -> Result<Arc<dyn ObjectStore>, String> {
    let account = if it.account_str.is_empty() { account } else { &it.account_str };
    let mut builder = MicrosoftAzureBuilder::from_env();
    if !it.client_id.is_empty() {
        builder = builder.with_client_id(it.client_id);
    }
    builder = match it.auth_type.as_str() {
        "" | "key" if !it.account_key.is_empty() => {
            builder.with_access_key(it.account_key).with_credential_type("access_key")
        }
        // The environment may say it in other ways than Triton's.
        "" | "key" if AZURE_KEYS.iter().any(|key| builder.get_config_value(key).is_some()) => {
            builder
        }
        "" | "key" => builder.with_skip_signature(true),
        "default" => builder,
        "managed_identity" => builder.with_credential_type("managed_identity"),
        other => {
            return Err(format!(
                "its 'auth_type' is '{other}', expected 'key', 'managed_identity' or 'default'"
            ));
        }
    };
    let builder = builder.with_account(account).with_container_name(container);
    made(builder.with_client_options(options()).with_retry(retry()).build())
}

fn options() -> ClientOptions {
    ClientOptions::new()
        // Where the operator names such an address; nothing else leads to one.
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout_disabled()
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() }
}

fn made<T: ObjectStore>(result: object_store::Result<T>) -> Result<Arc<dyn ObjectStore>, String> {
    match result {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(describe(&error)),
    }
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
