//! The bodies of the calls about repositories. All may be empty.

use super::{
    body::{base64, boolean, members_if_any, skip, string},
    json::{Cursor, Kind},
};
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
    members_if_any(body, |cursor, name| {
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

/// Whether the models that an ensemble has steps for are to go with it.
///
/// # Errors
/// The body is not JSON, or a parameter is of another type.
pub fn unload_dependents(body: &Rope) -> Result<bool, Error> {
    let mut is_asked = false;
    parameters(body, |cursor, name| {
        match name {
            describe::UNLOAD_DEPENDENTS => {
                is_asked = boolean(cursor)?;
            }
            _ => skip(cursor)?,
        }
        Ok(())
    })?;
    Ok(is_asked)
}

fn parameters(
    body: &Rope,
    mut parameter: impl FnMut(&mut Cursor<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    members_if_any(body, |cursor, name| match (name, cursor.kind()) {
        ("parameters", Kind::Object) => cursor.object(|cursor, name| parameter(cursor, &name)),
        ("parameters", _) => {
            cursor.skip()?;
            Err(Error::malformed("attempt to get members for non-object"))
        }
        _ => skip(cursor),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
            assert_eq!(unload_dependents(&body), Ok(false));
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
        let body = r#"{"parameters":{"unload_dependents":true}}"#;
        assert_eq!(unload_dependents(&rope(body)), Ok(true));
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
        assert!(unload_dependents(&rope(r#"{"parameters":{"unload_dependents":"x"}}"#)).is_err());
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
