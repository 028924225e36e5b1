//! How the body of a request comes in.

use std::{pin::pin, time::Duration};

use futures_util::future::{Either, select};
use http::{
    HeaderValue,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
    request,
};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{encoding::Encoding, packed, service::Calls};
use crate::{
    inference::{Error, Rope},
    memory::Reservation,
    runtime::{sleep, yield_now},
};

impl Calls {
    /// The body of a request, unpacked.
    pub(super) async fn read(
        &self,
        head: &request::Parts,
        mut body: Incoming,
        reservation: &mut Reservation,
    ) -> Result<Rope, Error> {
        let (limit, pause_max) = (self.settings.body_max, self.settings.pause_max);
        let packing = head.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
        let packing = Encoding::of_request(packing)?;
        let announced = head
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(got) = announced.filter(|&got| got > limit as u64) {
            return Err(Error::RequestTooLarge { limit, got });
        }
        let mut rope = Rope::default();
        while !body.is_end_stream() {
            let frame = match select(pin!(body.frame()), pin!(late(pause_max))).await {
                Either::Left((Some(frame), _)) => frame,
                Either::Left((None, _)) => break,
                Either::Right(_) => {
                    return Err(Error::malformed(format!(
                        "the request's body paused for over {pause_max:?}"
                    )));
                }
            };
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

/// The pause that no body may have. The timer is set only once there is something to wait for.
async fn late(pause_max: Duration) {
    yield_now().await;
    sleep(pause_max).await;
}
