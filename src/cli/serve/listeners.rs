//! The ports and sockets that are listened at, and what serves the connections of each.

use std::{io, net::SocketAddr, sync::Arc};

use super::{ServeArgs, ServeError, cloud_args::Endpoint, tls_handshake::over_tls};
use crate::{
    ingress::{
        grpc::{self, GrpcService},
        http,
    },
    runtime::{Listener, ReactorHandle, Serve, spawn},
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
    if args.allow_grpc {
        let at = (args.grpc_address.as_str(), args.grpc_port);
        listeners.push(bind("gRPC", at, args.reuse_grpc_port, serve_grpc(args, control)?)?);
    }
    if args.allow_http {
        let at = (args.http_address.as_str(), args.http_port);
        listeners.push(bind("HTTP", at, args.reuse_http_port, serve_http(args, control)?)?);
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
        let serve: Serve = Arc::new(move |stream, _| {
            let (control, settings, cloud) = (control.clone(), settings.clone(), cloud.clone());
            let serve = http::serve_cloud(stream, control, settings, cloud);
            spawn(&"a connection of a cloud's", serve);
        });
        listeners.push(bind(what, (&args.http_address, port), false, serve)?);
    }
    if let Some(scraped) = scraped {
        let control = control.clone();
        let serve: Serve = Arc::new(move |stream, _| {
            spawn(&"a metrics connection", http::serve_metrics(stream, control.clone()));
        });
        let at = (args.metrics_address(), args.metrics_port);
        let (what, listener) = bind("metrics", at, false, serve)?;
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

fn serve_grpc(args: &ServeArgs, control: &Arc<ModelControl>) -> Result<Serve, ServeError> {
    let settings = Arc::new(args.wires.grpc_settings()?);
    let service = GrpcService::new(control.clone(), settings.message_max);
    let tls = args.wires.grpc_tls()?;
    Ok(Arc::new(move |stream, _| {
        let (service, settings) = (service.clone(), settings.clone());
        match tls.clone() {
            None => spawn(&"a gRPC connection", grpc::serve(stream, service, settings)),
            Some(tls) => over_tls(stream, tls, &"a gRPC connection over TLS", |stream| {
                grpc::serve(stream, service, settings)
            }),
        }
    }))
}

fn serve_http(args: &ServeArgs, control: &Arc<ModelControl>) -> Result<Serve, ServeError> {
    let control = control.clone();
    let settings = Arc::new(args.wires.http_settings(args.http_max_input_size)?);
    let tls = args.wires.http_tls()?;
    Ok(Arc::new(move |stream, _| {
        let (control, settings) = (control.clone(), settings.clone());
        match tls.clone() {
            None => spawn(&"an HTTP connection", http::serve(stream, control, settings)),
            Some(tls) => over_tls(stream, tls, &"an HTTP connection over TLS", |stream| {
                http::serve(stream, control, settings)
            }),
        }
    }))
}

fn bind(
    what: &'static str,
    (address, port): (&str, u16),
    reuse: bool,
    serve: Serve,
) -> Result<(&'static str, Listener), ServeError> {
    let bound = resolve(address, port).and_then(|at| Listener::bind(at, reuse, serve));
    let listener = bound.map_err(|source| {
        let address = format!("{address}:{port}");
        ServeError::Listen { what, address, source }
    })?;
    Ok((what, listener))
}

fn resolve(address: &str, port: u16) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    (address, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}
