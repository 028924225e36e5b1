//! The bodies of the calls about repositories. All may be empty.

use bytes::Bytes;

use super::json::{Cursor, Kind};
use crate::{
    inference::{Error, Rope},
    ingress::describe,
    repository::Overrides,
};

/// Whether an index is to hold only what is ready.
///
/// # Errors
/// The body is not JSON, or says it otherwise than by `true` or `false`.
pub fn only_ready(body: &Rope) -> Result<bool, Error> {
    let mut ready = false;
    members(body, |cursor, name| {
        match name {
            "ready" => ready = boolean(cursor)?,
            _ => skip(cursor)?,
        }
        Ok(())
    })?;
    Ok(ready)
}

/// What a load gives in place of what is in the repository.
///
/// # Errors
/// The body is not JSON, or has a parameter that is not known, or a file that is not base64.
pub fn overrides(body: &Rope) -> Result<Overrides, Error> {
    let mut overrides = Overrides::default();
    parameters(body, |cursor, name| {
        if name == "config" {
            overrides.config = Some(string(cursor)?);
        } else if let Some(path) = name.strip_prefix(describe::FILE_PREFIX) {
            let content = base64(&string(cursor)?).ok_or_else(|| {
                Error::malformed(format!("load parameter '{name}' is not valid base64"))
            })?;
            overrides.files.push((path.to_owned(), content));
        } else {
            return Err(Error::malformed(format!("unrecognized load parameter '{name}'.")));
        }
        Ok(())
    })?;
    Ok(overrides)
}

/// Checks the parameters of an unload. No model that can be loaded depends on others yet, so that
/// `unload_dependents` means nothing more.
///
/// # Errors
/// The body is not JSON, or a parameter is of another type.
pub fn check_unload(body: &Rope) -> Result<(), Error> {
    parameters(body, |cursor, name| {
        match name {
            describe::UNLOAD_DEPENDENTS => {
                boolean(cursor)?;
            }
            _ => skip(cursor)?,
        }
        Ok(())
    })
}

fn parameters(
    body: &Rope,
    mut parameter: impl FnMut(&mut Cursor<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    members(body, |cursor, name| match (name, cursor.kind()) {
        ("parameters", Kind::Object) => cursor.object(|cursor, name| parameter(cursor, &name)),
        ("parameters", _) => {
            cursor.skip()?;
            Err(Error::malformed("attempt to get members for non-object"))
        }
        _ => skip(cursor),
    })
}

fn members(
    body: &Rope,
    mut member: impl FnMut(&mut Cursor<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    if body.is_empty() {
        return Ok(());
    }
    let text = body.clone().into_bytes();
    let mut cursor = Cursor::new(&text)?;
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(Error::malformed("attempt to get members for non-object"));
    }
    cursor.object(|cursor, name| member(cursor, &name))?;
    Ok(cursor.finish()?)
}

fn skip(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    cursor.skip()?;
    Ok(())
}

/// Reads `true` or `false`.
///
/// # Errors
/// When it is neither.
pub fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, Error> {
    match cursor.kind() {
        Kind::Bool => Ok(cursor.boolean()?),
        _ => {
            cursor.skip()?;
            Err(Error::malformed("attempt to access JSON non-boolean as boolean"))
        }
    }
}

/// Reads a string.
///
/// # Errors
/// When it is none.
pub fn string(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    match cursor.kind() {
        Kind::String => Ok(cursor.string()?.into_owned()),
        _ => {
            cursor.skip()?;
            Err(Error::malformed("attempt to access JSON non-string as string"))
        }
    }
}

/// The bytes that a text means in the usual alphabet, with its padding or without; white space counts
/// for nothing.
fn base64(text: &str) -> Option<Bytes> {
    let text = text.trim_end_matches(|c: char| c == '=' || c.is_ascii_whitespace());
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for symbol in text.bytes().filter(|symbol| !symbol.is_ascii_whitespace()) {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // A whole symbol too many, or bits that no byte has.
    (held < 6 && bits == 0).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(text: &str) -> Rope {
        let mut rope = Rope::default();
        rope.push(Bytes::copy_from_slice(text.as_bytes()));
        rope
    }

    #[test]
    fn bodies_may_be_empty() {
        for body in [Rope::default(), rope("{}"), rope(r#"{"parameters":{}}"#)] {
            assert_eq!(only_ready(&body), Ok(false));
            assert_eq!(overrides(&body), Ok(Overrides::default()));
            assert_eq!(check_unload(&body), Ok(()));
        }
    }

    #[test]
    fn what_bodies_say_is_read() {
        assert_eq!(only_ready(&rope(r#"{"x":[1],"ready":true}"#)), Ok(true));
        let body = r#"{"parameters":{"config":"{}","file:1/m":"aGVsbG8=","file:1/n":""}}"#;
        let files = vec![
            ("1/m".to_owned(), Bytes::from_static(b"hello")),
            ("1/n".to_owned(), Bytes::new()),
        ];
        assert_eq!(overrides(&rope(body)), Ok(Overrides { config: Some("{}".into()), files }));
        assert_eq!(check_unload(&rope(r#"{"parameters":{"unload_dependents":true}}"#)), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, expected) in [
            (
                "{",
                "failed to parse the request JSON buffer: Missing a name for object member. at 1",
            ),
            ("[]", "attempt to get members for non-object"),
            (r#"{"parameters":[]}"#, "attempt to get members for non-object"),
            (r#"{"parameters":{"config":{}}}"#, "attempt to access JSON non-string as string"),
            (r#"{"parameters":{"no_such":"x"}}"#, "unrecognized load parameter 'no_such'."),
            (
                r#"{"parameters":{"file:1/m":"!!"}}"#,
                "load parameter 'file:1/m' is not valid base64",
            ),
        ] {
            assert_eq!(overrides(&rope(body)).unwrap_err().to_string(), expected, "{body}");
        }
        assert_eq!(
            only_ready(&rope(r#"{"ready":"x"}"#)).unwrap_err().to_string(),
            "attempt to access JSON non-boolean as boolean"
        );
        assert!(check_unload(&rope(r#"{"parameters":{"unload_dependents":"x"}}"#)).is_err());
    }

    #[test]
    fn base64_is_decoded_strictly() {
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zg", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9v\nYmFy\n", Some(b"foobar")),
            ("+/+/", Some(&[0xfb, 0xff, 0xbf])),
            ("Z", None),
            ("Zh==", None),
            ("Zm=v", None),
            ("Zm-v", None),
            ("ü", None),
        ] {
            assert_eq!(base64(text).as_deref(), expected, "{text:?}");
        }
    }
}
