use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};

use crate::{
    ingress::tls::Tls,
    runtime::{Label, TcpStream, draining, sleep, spawn},
};

/// How long a client may take to shake hands.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Shakes hands with a client and serves what is said inside.
pub fn over_tls<Serving: Future<Output = ()> + 'static>(
    stream: TcpStream,
    tls: Arc<Tls>,
    label: Label,
    serve: impl FnOnce(TcpStream) -> Serving + 'static,
) {
    spawn(label, async move {
        let handshake = pin!(stream.secured(tls.config()));
        let impatient = select(sleep(HANDSHAKE_MAX), draining());
        match select(handshake, impatient).await {
            Either::Left((Ok(stream), _)) => serve(stream).await,
            Either::Left((Err(error), _)) => {
                log::debug!("a client and the server did not agree on TLS: {error}");
            }
            Either::Right(_) => log::debug!("a client did not shake hands in {HANDSHAKE_MAX:?}"),
        }
    });
}
