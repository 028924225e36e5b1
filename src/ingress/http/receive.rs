//! How the body of a request comes in.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{Either, select},
};
use http::{HeaderMap, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};

use super::{encoding::Encoding, packed, said::Said, service::Calls};
use crate::{
    inference::{Error, Rope},
    memory::Reservation,
    runtime::{sleep, yield_now},
};

impl Calls {
    /// The body of a request, unpacked.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        reservation: &mut Reservation,
    ) -> Result<Rope, Error> {
        self.read_said(&Said::by(headers), body, reservation).await
    }

    /// The same, where what the headers say has been looked up.
    pub(super) async fn read_said(
        &self,
        said: &Said<'_>,
        mut body: Incoming,
        reservation: &mut Reservation,
    ) -> Result<Rope, Error> {
        let (limit, pause_max) = (self.settings.body_max, self.settings.pause_max);
        let packing = Encoding::of_request(said.content_encoding.map(HeaderValue::as_bytes))?;
        let announced =
            said.content_length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(got) = announced.filter(|&got| got > limit as u64) {
            return Err(Error::RequestTooLarge { limit, got });
        }
        let mut rope = Rope::default();
        while !body.is_end_stream() {
            // What came with the head is there.
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => Box::pin(in_time(&mut body, pause_max)).await?,
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| {
                Error::malformed(format!("the request's body could not be read: {error}"))
            })?;
            if let Ok(data) = frame.into_data() {
                reservation.grow(data.len())?;
                rope.arrive(data);
            }
            if rope.len() > limit {
                return Err(Error::RequestTooLarge { limit, got: rope.len() as u64 });
            }
        }
        let packed_len = rope.len();
        if packing == Encoding::Identity {
            return Ok(rope);
        }
        let unpacked = Box::pin(packed::unpack(packing, rope, limit)).await?;
        reservation.grow(unpacked.len().saturating_sub(packed_len))?;
        Ok(unpacked)
    }
}

/// The next part of a body, which must come soon enough.
async fn in_time(
    body: &mut Incoming,
    pause_max: Duration,
) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Error> {
    match select(body.frame(), pin!(late(pause_max))).await {
        Either::Left((frame, _)) => Ok(frame),
        Either::Right(_) => {
            Err(Error::malformed(format!("the request's body paused for over {pause_max:?}")))
        }
    }
}

/// The pause that no body may have. The timer is set only once there is something to wait for.
async fn late(pause_max: Duration) {
    yield_now().await;
    sleep(pause_max).await;
}
