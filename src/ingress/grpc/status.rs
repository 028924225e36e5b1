//! [`Error`] → gRPC status: the trailers that end a response.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::inference::{Code, Error};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How long a message may be when it is encoded. Clients take 8 KiB of headers in all (gRPC's
/// `GRPC_ARG_MAX_METADATA_SIZE`), and of more they tell the call's maker nothing but that.
const MESSAGE_MAX: usize = 6 << 10;

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
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&shortened(message))) {
        trailers.insert(GRPC_MESSAGE.clone(), message);
    }
    trailers
}

/// The message, or as much of its beginning as a client takes.
pub fn shortened(message: &str) -> Cow<'_, str> {
    let mut length = 0;
    for (at, character) in message.char_indices() {
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).bytes();
        length += bytes.map(|byte| if is_always_plain(byte) { 1 } else { 3 }).sum::<usize>();
        if length > MESSAGE_MAX {
            return format!("{}…", message.get(..at).unwrap_or_default()).into();
        }
    }
    message.into()
}

/// gRPC's encoding of messages: what is not printable ASCII, and `%`, as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match is_plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..0x7f) && byte != b'%'
}

/// Whether tonic, which writes the trailers of all other calls, leaves a byte as it is too.
fn is_always_plain(byte: u8) -> bool {
    is_plain(byte) && !br##" "#<>\`?{}"##.contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_grpc_wants_them() {
        assert_eq!(percent_encoded("plain [-1,16]"), "plain [-1,16]");
        assert_eq!(percent_encoded("50 % ü\n"), "50 %25 %C3%BC%0A");
    }

    #[test]
    fn a_message_is_as_long_as_a_client_takes() {
        for (character, encoded) in [("x", 1), ("%", 3), ("\n", 3), ("ü", 6), ("🦀", 12)] {
            let fits = character.repeat(MESSAGE_MAX / encoded);
            assert_eq!(shortened(&fits), fits);
            let told = shortened(&format!("{fits}{character}")).into_owned();
            assert_eq!(told, format!("{fits}…"));
            assert!(percent_encoded(&told).len() <= MESSAGE_MAX + 9);
        }
    }
}
