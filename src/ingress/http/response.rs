//! Answers, and bodies that are written from where their pieces lie.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use smallvec::{SmallVec, smallvec};

use super::{
    error,
    extensions::Events,
    infer_response::{EncodedResponse, JOINED_MAX},
    route::RouteError,
};
use crate::inference::{Error, Sending, WireTimes};

/// The answer that tells why there is none; who passes it on can look at the error.
pub(super) fn refused(error: &Error) -> Response<Segments> {
    let (status, text) = error::answer(error);
    let mut response = json(text);
    *response.status_mut() = status;
    response.extensions_mut().insert(error.clone());
    response
}

pub(super) fn ready(ready: bool) -> Response<Segments> {
    let mut response = with_type(Segments::default(), "text/plain");
    if !ready {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

pub(super) fn json(body: Bytes) -> Response<Segments> {
    with_type(Segments::one(body), "application/json")
}

pub(super) fn failure(status: StatusCode, message: &str) -> Response<Segments> {
    let mut response = json(error::body(message));
    *response.status_mut() = status;
    response
}

pub(super) fn method_not_allowed(allow: &'static str) -> Response<Segments> {
    let wrong = RouteError::MethodNotAllowed { allow };
    let mut response = failure(wrong.status(), &wrong.to_string());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

pub(super) fn with_type(body: Segments, content_type: &'static str) -> Response<Segments> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Three digits of each number below a thousand.
static DIGITS: [[u8; 3]; 1000] = {
    let mut digits = [[b'0'; 3]; 1000];
    let mut number = 0;
    while number < 1000 {
        digits[number][0] += (number / 100) as u8;
        digits[number][1] += (number / 10 % 10) as u8;
        digits[number][2] += (number % 10) as u8;
        number += 1;
    }
    digits
};

/// A number as the value of a header. Most are small, and take no memory.
pub(super) fn number(number: usize) -> HeaderValue {
    let leading_zeros = usize::from(number < 100) + usize::from(number < 10);
    let digits = DIGITS.get(number).and_then(|digits| digits.get(leading_zeros..));
    let value = digits.map(|digits| HeaderValue::from_maybe_shared(Bytes::from_static(digits)));
    value.and_then(Result::ok).unwrap_or_else(|| HeaderValue::from(number))
}

/// A body whose pieces lie in different places and are written from there. Behind them others may
/// follow as they come.
#[derive(Default)]
pub(super) struct Segments {
    /// In reverse, so that the next is the last.
    pieces: SmallVec<[Bytes; 3]>,
    events: Option<Box<Events>>,
    /// Until it is dropped the answer is being sent.
    _sending: Option<Sending>,
}

impl Segments {
    pub(super) fn one(piece: Bytes) -> Self {
        Self { pieces: smallvec![piece], ..Self::default() }
    }

    /// Pieces that are not there yet.
    pub(super) fn followed_by(self, events: Events) -> Self {
        Self { events: Some(Box::new(events)), ..self }
    }

    /// The answer to a request whose times are noted.
    pub(super) fn sending(self, wire: Option<WireTimes>) -> Self {
        Self { _sending: wire.map(WireTimes::sending), ..self }
    }

    /// An answer: in one piece if it is short, else from where its pieces lie.
    pub(super) fn many(encoded: EncodedResponse) -> Self {
        let is_short = encoded.content_length() <= JOINED_MAX;
        let EncodedResponse { mut json, tails } = encoded;
        if is_short {
            tails.iter().for_each(|tail| json.extend_from_slice(tail));
            return Self::one(json.into());
        }
        let mut pieces: SmallVec<[Bytes; 3]> = smallvec![json.into()];
        pieces.extend(tails);
        pieces.reverse();
        Self { pieces, ..Self::default() }
    }
}

impl Body for Segments {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match (self.pieces.pop(), &mut self.events) {
            (Some(piece), _) => Poll::Ready(Some(piece)),
            (None, Some(events)) => events.poll_next(cx),
            (None, None) => Poll::Ready(None),
        };
        next.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.events.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.events.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_in_its_digits() {
        for it in (0..2000).chain([65_536, usize::MAX]) {
            assert_eq!(number(it).to_str().unwrap(), it.to_string());
        }
    }
}
