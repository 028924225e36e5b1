//! The server's certificates: read at the start, and again when their files have changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};

/// How often the files are looked at, at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Where the certificates lie, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, and those that lead to its root.
    pub certificate: PathBuf,
    /// The key of the server's certificate.
    pub key: PathBuf,
    /// The roots of clients' certificates; with them, a client must have one.
    pub client_roots: Option<PathBuf>,
}

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TlsError {
    #[error("cannot read '{}': {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("'{}' is not as expected, PEM with {expected}: {source}", path.display())]
    Pem { path: PathBuf, expected: &'static str, source: pem::Error },
    #[error("'{}' has no certificate, expected at least one in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("'{}' has a certificate that cannot be a root: {source}", path.display())]
    Root { path: PathBuf, source: rustls::Error },
    #[error("the clients' roots in '{}' cannot be used: {source}", path.display())]
    Roots { path: PathBuf, source: VerifierBuilderError },
    #[error("'{}' with the key '{}' cannot be used: {source}", certificate.display(), key.display())]
    Identity { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The TLS of one port. [`Tls::config`] is asked for at each handshake.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    /// The protocol that is spoken inside, by its ALPN name.
    protocol: &'static [u8],
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    seen: Seen,
    looked: Instant,
}

/// What tells a file from its former self: its times and sizes.
type Seen = Vec<Option<(SystemTime, u64, u64)>>;

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read, is no PEM, or they do not go together.
    pub fn new(files: TlsFiles, protocol: &'static [u8]) -> Result<Self, TlsError> {
        let seen = files.seen();
        let config = files.config(protocol)?;
        let current = Mutex::new(Current { config, seen, looked: Instant::now() });
        Ok(Self { files, protocol, current })
    }

    /// What to shake hands by. Looks at the files once a second at most; reading them takes some tens
    /// of microseconds, a fraction of the handshake. Files that cannot be used, as while they are
    /// being written, leave those before in use.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if current.looked.elapsed() < LOOK_PERIOD {
            return current.config.clone();
        }
        current.looked = Instant::now();
        let seen = self.files.seen();
        if seen != current.seen {
            match self.files.config(self.protocol) {
                Ok(config) => {
                    log::info!(
                        "read the changed certificate '{}'",
                        self.files.certificate.display()
                    );
                    current.config = config;
                }
                Err(error) => log::warn!("the former certificate stays in use: {error}"),
            }
            current.seen = seen;
        }
        current.config.clone()
    }
}

impl TlsFiles {
    fn seen(&self) -> Seen {
        use std::os::unix::fs::MetadataExt as _;
        [Some(&self.certificate), Some(&self.key), self.client_roots.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| {
                let file = fs::metadata(path).ok()?;
                Some((file.modified().ok()?, file.len(), file.ino()))
            })
            .collect()
    }

    fn config(&self, protocol: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key_text = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(|source| TlsError::Pem {
            path: self.key.clone(),
            expected: "a private key",
            source,
        })?;
        let identity = |source| TlsError::Identity {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(identity)?;
        let builder = match &self.client_roots {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(verifier(path, provider)?),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(identity)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    }
}

fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path)? {
        roots.add(root).map_err(|source| TlsError::Root { path: path.to_owned(), source })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|source| TlsError::Roots { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        expected: "certificates",
        source,
    })?;
    match all.is_empty() {
        true => Err(TlsError::NoCertificate { path: path.to_owned() }),
        false => Ok(all),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let told = |certificate: &str, key: &str, roots: Option<&str>| {
            let files = TlsFiles {
                certificate: at(certificate),
                key: at(key),
                client_roots: roots.map(at),
            };
            Tls::new(files, b"h2").unwrap_err().to_string()
        };
        assert!(told("none", "none", None).ends_with("No such file or directory (os error 2)"));
        fs::write(at("empty"), "").unwrap();
        assert!(told("empty", "empty", None).contains("has no certificate"));
        fs::write(at("cut"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        assert!(told("cut", "empty", None).contains("PEM with certificates"));
        let block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(at("zeros"), block).unwrap();
        assert!(told("zeros", "empty", None).contains("PEM with a private key"));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        fs::write(at("key"), key).unwrap();
        assert!(told("zeros", "key", None).contains("cannot be used"));
        assert!(told("zeros", "key", Some("zeros")).contains("cannot be a root"));
    }
}
