use super::plain_length;

/// Appends `text` as a JSON string.
pub fn write_string(json: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    json.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, from) = rest.split_at(plain_length(rest));
        json.extend_from_slice(plain);
        let [byte, tail @ ..] = from else { break };
        match byte {
            b'"' => json.extend_from_slice(b"\\\""),
            b'\\' => json.extend_from_slice(b"\\\\"),
            8 => json.extend_from_slice(b"\\b"),
            9 => json.extend_from_slice(b"\\t"),
            10 => json.extend_from_slice(b"\\n"),
            12 => json.extend_from_slice(b"\\f"),
            13 => json.extend_from_slice(b"\\r"),
            _ => {
                json.extend_from_slice(b"\\u00");
                json.push(HEX[usize::from(byte >> 4)]);
                json.push(HEX[usize::from(byte & 15)]);
            }
        }
        rest = tail;
    }
    json.push(b'"');
}

/// Appends an integer.
pub fn write_integer(json: &mut Vec<u8>, value: impl itoa::Integer) {
    json.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends the shortest number that reads back as `value`.
pub fn write_f64(json: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        json.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else if value.is_nan() {
        json.extend_from_slice(b"NaN");
    } else {
        json.extend_from_slice(if value > 0.0 { b"Infinity".as_slice() } else { b"-Infinity" });
    }
}
