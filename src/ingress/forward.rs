//! Headers that become parameters of the inference request they came with.

use http::{HeaderMap, HeaderName};
use regex::{Regex, RegexBuilder};

use crate::inference::{Parameter, Parameters};

/// The header that names the span of the client's that a request belongs to.
pub static TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Which headers are forwarded: those whose name has a match. As in tritonserver, an empty pattern
/// forwards none.
#[derive(Clone, Debug)]
pub struct HeaderPattern(Regex);

impl HeaderPattern {
    /// Names as HTTP/2 carries them: in lower case.
    ///
    /// # Errors
    /// When the text is no regular expression.
    pub fn exact(text: &str) -> Result<Self, regex::Error> {
        Regex::new(text).map(Self)
    }

    /// Names of HTTP/1.1 headers, whose case says nothing.
    ///
    /// # Errors
    /// When the text is no regular expression.
    pub fn any_case(text: &str) -> Result<Self, regex::Error> {
        RegexBuilder::new(text).case_insensitive(true).build().map(Self)
    }

    /// Whether nothing is forwarded at all.
    pub fn is_empty(&self) -> bool {
        self.0.as_str().is_empty()
    }

    /// The headers that are forwarded. What gRPC itself says in headers is not.
    pub fn parameters(&self, headers: &HeaderMap) -> Parameters {
        let mut parameters = Parameters::default();
        for (name, value) in headers {
            let name = name.as_str();
            if !self.is_empty() && !name.starts_with("grpc-") && self.0.is_match(name) {
                let value = String::from_utf8_lossy(value.as_bytes());
                parameters.insert(name, Parameter::String(value.into()));
            }
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn headers_with_a_match_become_parameters() {
        let headers: HeaderMap =
            [("my-one", "1"), ("my-two", "zwei"), ("x", "y"), ("grpc-my-", "z")]
                .into_iter()
                .map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
        let names = |pattern: HeaderPattern| {
            let parameters = pattern.parameters(&headers);
            let mut names: Vec<String> = parameters.iter().map(|(name, _)| name.into()).collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(names(HeaderPattern::exact("my-.*").unwrap()), "my-one my-two");
        assert_eq!(names(HeaderPattern::exact("My-.*").unwrap()), "");
        assert_eq!(names(HeaderPattern::exact("(?i)My-O").unwrap()), "my-one");
        assert_eq!(names(HeaderPattern::any_case("My-.*").unwrap()), "my-one my-two");
        assert_eq!(names(HeaderPattern::any_case("").unwrap()), "");
        assert_eq!(names(HeaderPattern::any_case("^x$").unwrap()), "x");
        let parameters = HeaderPattern::exact("my-two").unwrap().parameters(&headers);
        assert_eq!(parameters.get("my-two"), Some(&Parameter::String("zwei".into())));
        assert!(HeaderPattern::exact("(").is_err());
    }
}
