//! Failures as HTTP says them: a status and a body `{"error":"..."}`.

use bytes::Bytes;
use http::StatusCode;

use super::json::write_string;
use crate::inference::{Code, Error};

/// The status for a failure of this code.
pub const fn status(code: Code) -> StatusCode {
    match code {
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Code::Unknown | Code::InvalidArgument | Code::AlreadyExists | Code::Cancelled => {
            StatusCode::BAD_REQUEST
        }
    }
}

/// The status and body that tell a client of `error`.
pub fn answer(error: &Error) -> (StatusCode, Bytes) {
    (status(error.code()), body(&error.to_string()))
}

/// The body that tells a client `message`.
pub fn body(message: &str) -> Bytes {
    let mut json = Vec::with_capacity(message.len() + 12);
    json.extend_from_slice(b"{\"error\":");
    write_string(&mut json, message);
    json.push(b'}');
    json.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_status_that_triton_gives_it() {
        for (code, expected) in [
            (Code::Unknown, 400),
            (Code::Internal, 500),
            (Code::NotFound, 404),
            (Code::InvalidArgument, 400),
            (Code::Unavailable, 503),
            (Code::Unsupported, 501),
            (Code::AlreadyExists, 400),
            (Code::Cancelled, 400),
        ] {
            assert_eq!(status(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_message_is_escaped() {
        let error = Error::malformed("say \"no\"\n\u{1}\\ü");
        let (status, body) = answer(&error);
        assert_eq!(status, 400);
        assert_eq!(body, r#"{"error":"say \"no\"\n\u0001\\ü"}"#);
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"], error.to_string());
    }
}
