//! What the headers of a request say of its body and of its answer.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};

use crate::ingress::forward::TRACE_PARENT;

/// How long the JSON at the start of a body is.
pub(super) static HEADER_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// The headers that are asked for with every request. They are found in one pass: requests have so few headers
/// that to look up each of these costs more. Of one that is given twice the first counts.
#[derive(Clone, Copy, Default)]
pub(super) struct Said<'a> {
    pub content_length: Option<&'a HeaderValue>,
    pub content_type: Option<&'a HeaderValue>,
    pub content_encoding: Option<&'a HeaderValue>,
    pub accept_encoding: Option<&'a HeaderValue>,
    pub header_length: Option<&'a HeaderValue>,
    pub trace_parent: Option<&'a HeaderValue>,
}

impl<'a> Said<'a> {
    pub(super) fn by(headers: &'a HeaderMap) -> Self {
        let mut said = Self::default();
        for (name, value) in headers {
            let place = match *name {
                CONTENT_LENGTH => &mut said.content_length,
                CONTENT_TYPE => &mut said.content_type,
                CONTENT_ENCODING => &mut said.content_encoding,
                ACCEPT_ENCODING => &mut said.accept_encoding,
                _ if *name == HEADER_LENGTH => &mut said.header_length,
                _ if *name == TRACE_PARENT => &mut said.trace_parent,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_header_that_is_given_twice_the_first_counts() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-length", "7"),
            ("inference-header-content-length", "3"),
            ("accept-encoding", "gzip"),
            ("inference-header-content-length", "4"),
            ("x-other", "1"),
            ("accept-encoding", "deflate"),
            ("traceparent", "00-1-2-3"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let said = Said::by(&headers);
        let found = [
            said.content_length,
            said.content_type,
            said.content_encoding,
            said.accept_encoding,
            said.header_length,
            said.trace_parent,
        ];
        let expected = [Some("7"), None, None, Some("gzip"), Some("3"), Some("00-1-2-3")];
        assert_eq!(found.map(|value| value.map(|value| value.to_str().unwrap())), expected);
    }
}
