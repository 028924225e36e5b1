//! [`Error`] → gRPC status: the trailers that end a response.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::inference::{Code, Error};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The gRPC status code of a failure.
pub fn code(error: &Error) -> u8 {
    match error {
        Error::RequestTooLarge { .. } => return 8, // RESOURCE_EXHAUSTED, as gRPC servers say it
        Error::DeadlineExpired => return 4,        // DEADLINE_EXCEEDED
        _ => {}
    }
    match error.code() {
        Code::Cancelled => 1,
        Code::Unknown => 2,
        Code::InvalidArgument => 3,
        Code::NotFound => 5,
        Code::AlreadyExists => 6,
        Code::Unsupported => 12,
        Code::Internal => 13,
        Code::Unavailable => 14,
    }
}

/// The trailers of a response that went well.
pub fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS.clone(), HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a failure.
pub fn failed(error: &Error) -> HeaderMap {
    with_message(code(error), &error.to_string())
}

/// The trailers of a call that nobody answers.
pub fn unimplemented(path: &str) -> HeaderMap {
    with_message(12, &format!("unknown method {path}"))
}

/// The trailers of a request that is not gRPC.
pub fn with_message(code: u8, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS.clone(), HeaderValue::from(u16::from(code)));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(message)) {
        trailers.insert(GRPC_MESSAGE.clone(), message);
    }
    trailers
}

/// gRPC's encoding of messages: what is not printable ASCII, and `%`, as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' | ..0x20 | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_grpc_wants_them() {
        assert_eq!(percent_encoded("plain [-1,16]"), "plain [-1,16]");
        assert_eq!(percent_encoded("50 % ü\n"), "50 %25 %C3%BC%0A");
    }
}
