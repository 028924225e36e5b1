//! The port on which operators look at the server.

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    connection::carry,
    response::{Segments, failure, method_not_allowed, with_type},
};
use crate::{
    ingress::describe,
    runtime::{TcpStream, offload},
    serving::{ModelControl, Server},
};

/// How long a client may take nothing of an answer.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Serves a connection of the metrics port until it ends.
pub async fn serve_metrics(stream: TcpStream, control: Arc<ModelControl>) {
    carry(stream, PAUSE_MAX, move |request: Request<Incoming>| {
        let control = control.clone();
        async move {
            match (request.uri().path(), request.method()) {
                ("/metrics" | "/metrics/", &Method::GET) => metrics(&control).await,
                ("/timeline", &Method::GET) => timeline(control.server()).await,
                ("/metrics" | "/metrics/" | "/timeline", _) => method_not_allowed("GET"),
                _ => failure(StatusCode::NOT_FOUND, "Not Found"),
            }
        }
    })
    .await;
}

/// What the engines of devices did lately, as Perfetto opens it.
async fn timeline(server: &Server) -> Response<Segments> {
    let Some(fleet) = server.fleet() else {
        return failure(StatusCode::NOT_FOUND, "this server has no devices");
    };
    let written = match fleet.timeline().await {
        Some(timeline) => offload(move || timeline.chrome_trace().to_string()).await,
        None => None,
    };
    match written {
        Some(text) => with_type(Segments::one(text.into()), "application/json"),
        None => failure(StatusCode::SERVICE_UNAVAILABLE, "the devices' lanes have ended"),
    }
}

/// The page of metrics, which with many models is long: no request waits until it is written.
pub(super) async fn metrics(control: &Arc<ModelControl>) -> Response<Segments> {
    let control = control.clone();
    match offload(move || describe::metrics(&control)).await {
        Some(text) => with_type(Segments::one(text.into()), "text/plain; charset=utf-8"),
        None => failure(StatusCode::INTERNAL_SERVER_ERROR, "the page of metrics was given up"),
    }
}
