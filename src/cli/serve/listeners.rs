//! The ports and sockets that are listened at, and what serves the connections of each.

use std::{io, net::SocketAddr, sync::Arc};

use super::{ServeArgs, ServeError, cloud_args::Endpoint, tls_handshake::over_tls};
use crate::{
    ingress::{
        grpc::{self, GrpcService},
        http,
    },
    runtime::{Listener, ReactorHandle, spawn},
    serving::ModelControl,
};

/// Binds every port that is asked for; none takes connections before the acceptor has it.
///
/// # Errors
/// A port cannot be had, or what is to be served there is not set up.
pub fn listen(
    args: &ServeArgs,
    control: &Arc<ModelControl>,
    scraped: Option<ReactorHandle>,
) -> Result<Vec<(&'static str, Listener)>, ServeError> {
    let mut listeners = Vec::new();
    let bind = |what, address: &str, port: u16, reuse, serve| {
        let bound = resolve(address, port).and_then(|at| Listener::bind(at, reuse, serve));
        let listener = bound.map_err(|source| {
            let address = format!("{address}:{port}");
            ServeError::Listen { what, address, source }
        })?;
        Ok::<_, ServeError>((what, listener))
    };
    if args.allow_grpc {
        let settings = Arc::new(args.wires.grpc_settings()?);
        let service = GrpcService::new(control.clone(), settings.message_max);
        let tls = args.wires.grpc_tls()?;
        listeners.push(bind(
            "gRPC",
            &args.grpc_address,
            args.grpc_port,
            args.reuse_grpc_port,
            Arc::new(move |stream, _| {
                let (service, settings) = (service.clone(), settings.clone());
                match tls.clone() {
                    None => spawn(&"a gRPC connection", grpc::serve(stream, service, settings)),
                    Some(tls) => over_tls(stream, tls, &"a gRPC connection over TLS", |stream| {
                        grpc::serve(stream, service, settings)
                    }),
                }
            }),
        )?);
    }
    if args.allow_http {
        let control = control.clone();
        let settings = Arc::new(args.wires.http_settings(args.http_max_input_size)?);
        let tls = args.wires.http_tls()?;
        listeners.push(bind(
            "HTTP",
            &args.http_address,
            args.http_port,
            args.reuse_http_port,
            Arc::new(move |stream, _| {
                let (control, settings) = (control.clone(), settings.clone());
                match tls.clone() {
                    None => spawn(&"an HTTP connection", http::serve(stream, control, settings)),
                    Some(tls) => over_tls(stream, tls, &"an HTTP connection over TLS", |stream| {
                        http::serve(stream, control, settings)
                    }),
                }
            }),
        )?);
    }
    let others = [
        ("HTTP", args.allow_http, args.http_port),
        ("gRPC", args.allow_grpc, args.grpc_port),
        ("metrics", args.allow_metrics, args.metrics_port),
    ];
    args.cloud.check_ports(&others).map_err(ServeError::OtherFlags)?;
    for Endpoint { what, port, cloud } in args.cloud.endpoints()? {
        let control = control.clone();
        let settings = Arc::new(args.wires.http_settings(args.http_max_input_size)?);
        listeners.push(bind(
            what,
            &args.http_address,
            port,
            false,
            Arc::new(move |stream, _| {
                let (control, settings, cloud) = (control.clone(), settings.clone(), cloud.clone());
                let serve = http::serve_cloud(stream, control, settings, cloud);
                spawn(&"a connection of a cloud's", serve);
            }),
        )?);
    }
    if let Some(scraped) = scraped {
        let control = control.clone();
        let (what, listener) = bind(
            "metrics",
            args.metrics_address(),
            args.metrics_port,
            false,
            Arc::new(move |stream, _| {
                spawn(&"a metrics connection", http::serve_metrics(stream, control.clone()));
            }),
        )?;
        listeners.push((what, listener.on(scraped)));
    }
    if let Some(path) = args.ring.path() {
        let server = control.server();
        let listener = args.ring.listen(server, server.reactors().last());
        let address = path.display().to_string();
        let listener =
            listener.map_err(|source| ServeError::Listen { what: "the ring", address, source })?;
        listeners.extend(listener.map(|listener| ("ring", listener)));
    }
    Ok(listeners)
}

fn resolve(address: &str, port: u16) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    (address, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}
