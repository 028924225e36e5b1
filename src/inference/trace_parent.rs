use std::fmt;

/// The span of a client's trace that a request belongs to, as the header `traceparent` tells it (W3C Trace
/// Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not zero.
    pub trace: u128,
    /// The span in it; not zero.
    pub span: u64,
}

impl TraceParent {
    /// Reads the header's value: `version-trace-span-flags`, in hexadecimal. `None` for one that is
    /// malformed, which the specification has ignored.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.trim().splitn(4, '-');
        let mut part = |length: usize| {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            parts.next().filter(|part| part.len() == length && part.bytes().all(is_hex))
        };
        let (version, trace, span) = (part(2)?, part(32)?, part(16)?);
        let flags = parts.next()?;
        // Later versions may say more behind the flags.
        let is_whole = if version == "00" { flags.len() == 2 } else { flags.len() >= 2 };
        let trace = u128::from_str_radix(trace, 16).ok()?;
        let span = u64::from_str_radix(span, 16).ok()?;
        (is_whole && version != "ff" && trace != 0 && span != 0).then_some(Self { trace, span })
    }
}

/// The header's value for what belongs to the span, which is recorded.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_specification_has_it() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let read = |text: &str| TraceParent::parse(text.as_bytes());
        let expected =
            TraceParent { trace: 0x0af7651916cd43dd8448eb211c80319c, span: 0xb7ad6b7169203331 };
        assert_eq!(read(&format!("00-{trace}-b7ad6b7169203331-01")), Some(expected));
        assert_eq!(expected.to_string(), format!("00-{trace}-b7ad6b7169203331-01"));
        assert_eq!(read(&format!("cc-{trace}-b7ad6b7169203331-01-more")), Some(expected));
        for wrong in [
            "".to_owned(),
            trace.to_owned(),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{trace}0-b7ad6b7169203331-01"),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
        assert_eq!(TraceParent::parse(b"\xff"), None);
    }
}
