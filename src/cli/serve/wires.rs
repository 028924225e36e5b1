use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;

use crate::{
    cli::flags::switch,
    ingress::{
        forward::HeaderPattern,
        grpc::{GrpcSettings, KeepAlive, ResponsePacking},
        http::HttpSettings,
        restricted::{Restriction, RestrictionError, Restrictions},
        tls::{Tls, TlsError, TlsFiles},
    },
};

/// What goes before the names of headers that open restricted protocols of gRPC, as in tritonserver.
const GRPC_HEADER_PREFIX: &str = "triton-grpc-protocol-";

/// How the two wires are guarded and kept: tritonserver's flags, and TLS for HTTP.
#[derive(Args, Clone, Debug)]
pub struct WireArgs {
    /// HTTP calls that are answered only with a header, as <API>,<API>:<HEADER>=<VALUE>; may be given
    /// several times. The APIs are health, metadata, inference, shared-memory, model-config,
    /// model-repository, statistics, trace and logging
    #[arg(long, value_name = "RESTRICTION")]
    http_restricted_api: Vec<Restriction>,
    /// HTTP headers that become parameters of inference requests: a regular expression for their names
    #[arg(long, value_name = "REGEX", value_parser = HeaderPattern::any_case)]
    http_header_forward_pattern: Option<HeaderPattern>,
    /// Whether HTTP is served over TLS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    http_use_ssl: bool,
    /// Whether HTTP is served over TLS to clients with a certificate only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    http_use_ssl_mutual: bool,
    /// The server's certificate for HTTP, in PEM
    #[arg(long, value_name = "FILE")]
    http_server_cert: Option<PathBuf>,
    /// The key of the server's certificate for HTTP, in PEM
    #[arg(long, value_name = "FILE")]
    http_server_key: Option<PathBuf>,
    /// The roots of HTTP clients' certificates, in PEM
    #[arg(long, value_name = "FILE")]
    http_root_cert: Option<PathBuf>,

    /// Seconds for which a client may pause inside a request's body or message, by HTTP and by gRPC, there up
    /// to twice as long, and take nothing of an HTTP answer; in as many the header fields of a gRPC call have
    /// to come
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    request_pause_max_secs: u64,

    /// gRPC calls that are answered only with the header triton-grpc-protocol-<HEADER>, as
    /// <PROTOCOL>,<PROTOCOL>:<HEADER>=<VALUE>; may be given several times
    #[arg(long, value_name = "RESTRICTION")]
    grpc_restricted_protocol: Vec<Restriction>,
    /// gRPC headers that become parameters of inference requests: a regular expression for their names
    #[arg(long, value_name = "REGEX", value_parser = HeaderPattern::exact)]
    grpc_header_forward_pattern: Option<HeaderPattern>,
    /// Whether gRPC is served over TLS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    grpc_use_ssl: bool,
    /// Whether gRPC is served over TLS to clients with a certificate only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    grpc_use_ssl_mutual: bool,
    /// The server's certificate for gRPC, in PEM
    #[arg(long, value_name = "FILE")]
    grpc_server_cert: Option<PathBuf>,
    /// The key of the server's certificate for gRPC, in PEM
    #[arg(long, value_name = "FILE")]
    grpc_server_key: Option<PathBuf>,
    /// The roots of gRPC clients' certificates, in PEM
    #[arg(long, value_name = "FILE")]
    grpc_root_cert: Option<PathBuf>,
    /// How responses to inference requests are packed, for clients that accept it: none, low (gzip),
    /// medium or high (deflate)
    #[arg(long, value_name = "LEVEL", default_value = "none")]
    grpc_infer_response_compression_level: ResponsePacking,
    /// Milliseconds after which a connection is pinged
    #[arg(long, value_name = "MS", default_value_t = 7_200_000)]
    grpc_keepalive_time: u64,
    /// Milliseconds that a ping may stay unanswered before the connection is closed
    #[arg(long, value_name = "MS", default_value_t = 20_000)]
    grpc_keepalive_timeout: u64,
    /// Whether connections without calls are pinged too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    grpc_keepalive_permit_without_calls: bool,
    /// Pings in succession on a connection where no call begins between them; 0 for any number
    #[arg(long, value_name = "N", default_value_t = 2)]
    grpc_http2_max_pings_without_data: u32,
    /// Pings of a client that may come too soon before its connection ends; 0 for any number
    #[arg(long, value_name = "N", default_value_t = 2)]
    grpc_http2_max_ping_strikes: u32,
    /// Milliseconds between two pings of a client that are not too soon, unless it was sent something
    /// between them
    #[arg(long, value_name = "MS", default_value_t = 300_000)]
    grpc_http2_min_recv_ping_interval_without_data: u64,
    /// Milliseconds after which a connection takes no more calls, give or take a tenth [default: none]
    #[arg(long, value_name = "MS")]
    grpc_max_connection_age: Option<u64>,
    /// Milliseconds that calls then have before the connection is closed [default: any]
    #[arg(long, value_name = "MS")]
    grpc_max_connection_age_grace: Option<u64>,
}

/// Flags that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("--http-restricted-api: {0}")]
    RestrictedApi(RestrictionError),
    #[error("--grpc-restricted-protocol: {0}")]
    RestrictedProtocol(RestrictionError),
    #[error("--{flag} is missing: expected the {expected} for {what} over TLS")]
    MissingFile { flag: String, expected: &'static str, what: &'static str },
    #[error("TLS for {what}: {source}")]
    Tls { what: &'static str, source: TlsError },
}

impl WireArgs {
    pub fn grpc_settings(&self) -> Result<GrpcSettings, WireError> {
        let restrictions = Restrictions::new(&self.grpc_restricted_protocol, GRPC_HEADER_PREFIX)
            .map_err(WireError::RestrictedProtocol)?;
        Ok(GrpcSettings {
            pause_max: Duration::from_secs(self.request_pause_max_secs),
            restrictions,
            forwarded: self.grpc_header_forward_pattern.clone(),
            response_packing: self.grpc_infer_response_compression_level,
            keep_alive: KeepAlive {
                time: Duration::from_millis(self.grpc_keepalive_time),
                timeout: Duration::from_millis(self.grpc_keepalive_timeout),
                without_calls: self.grpc_keepalive_permit_without_calls,
                pings_without_data_max: self.grpc_http2_max_pings_without_data,
                ping_strikes_max: self.grpc_http2_max_ping_strikes,
                ping_interval_min: Duration::from_millis(
                    self.grpc_http2_min_recv_ping_interval_without_data,
                ),
                age_max: self.grpc_max_connection_age.map(Duration::from_millis),
                age_grace: self.grpc_max_connection_age_grace.map(Duration::from_millis),
            },
            ..GrpcSettings::default()
        })
    }

    pub fn http_settings(&self, body_max: usize) -> Result<HttpSettings, WireError> {
        let restrictions =
            Restrictions::new(&self.http_restricted_api, "").map_err(WireError::RestrictedApi)?;
        let forwarded = self.http_header_forward_pattern.clone();
        let pause_max = Duration::from_secs(self.request_pause_max_secs);
        Ok(HttpSettings { body_max, pause_max, restrictions, forwarded })
    }

    /// TLS for gRPC, if it is asked for.
    pub fn grpc_tls(&self) -> Result<Option<Arc<Tls>>, WireError> {
        let roots = self.grpc_use_ssl_mutual.then_some(&self.grpc_root_cert);
        if !self.grpc_use_ssl && roots.is_none() {
            return Ok(None);
        }
        tls("gRPC", "grpc", b"h2", &self.grpc_server_cert, &self.grpc_server_key, roots)
    }

    /// TLS for HTTP, if it is asked for.
    pub fn http_tls(&self) -> Result<Option<Arc<Tls>>, WireError> {
        let roots = self.http_use_ssl_mutual.then_some(&self.http_root_cert);
        if !self.http_use_ssl && roots.is_none() {
            return Ok(None);
        }
        tls("HTTP", "http", b"http/1.1", &self.http_server_cert, &self.http_server_key, roots)
    }
}

fn tls(
    what: &'static str,
    prefix: &str,
    protocol: &'static [u8],
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
    roots: Option<&Option<PathBuf>>,
) -> Result<Option<Arc<Tls>>, WireError> {
    let file = |file: &Option<PathBuf>, flag: &str, expected| {
        file.clone().ok_or_else(|| {
            let flag = format!("{prefix}-{flag}");
            WireError::MissingFile { flag, expected, what }
        })
    };
    let files = TlsFiles {
        certificate: file(certificate, "server-cert", "server's certificate")?,
        key: file(key, "server-key", "key of the server's certificate")?,
        client_roots: match roots {
            Some(roots) => Some(file(roots, "root-cert", "roots of clients' certificates")?),
            None => None,
        },
    };
    let tls = Tls::new(files, protocol).map_err(|source| WireError::Tls { what, source })?;
    Ok(Some(Arc::new(tls)))
}
