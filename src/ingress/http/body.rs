//! Reading the small JSON bodies of calls that are not inference.

use ::base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;

use super::json::{Cursor, Kind};
use crate::inference::{Error, Rope};

/// The usual alphabet, with its padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the members of a body that is an object or empty.
pub fn members_if_any(
    body: &Rope,
    member: impl FnMut(&mut Cursor<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    if body.is_empty() { Ok(()) } else { members(body, member) }
}

/// Reads the members of a body that is an object.
pub fn members(
    body: &Rope,
    mut member: impl FnMut(&mut Cursor<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let text = body.clone().into_bytes();
    let mut cursor = Cursor::new(&text)?;
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(Error::malformed("attempt to get members for non-object"));
    }
    cursor.object(|cursor, name| member(cursor, &name))?;
    Ok(cursor.finish()?)
}

/// Passes over a value.
pub fn skip(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    cursor.skip()?;
    Ok(())
}

/// A value that is `true` or `false`.
pub fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, Error> {
    match cursor.kind() {
        Kind::Bool => Ok(cursor.boolean()?),
        _ => {
            cursor.skip()?;
            Err(Error::malformed("attempt to access JSON non-boolean as boolean"))
        }
    }
}

/// A value that is a text.
pub fn string(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    match cursor.kind() {
        Kind::String => Ok(cursor.string()?.into_owned()),
        _ => {
            cursor.skip()?;
            Err(Error::malformed("attempt to access JSON non-string as string"))
        }
    }
}

/// The value of a member that counts something.
pub fn unsigned(cursor: &mut Cursor<'_>) -> Result<u64, Error> {
    match cursor.kind() {
        Kind::Number => cursor.number()?.to_u64().ok_or_else(not_unsigned),
        _ => {
            cursor.skip()?;
            Err(not_unsigned())
        }
    }
}

/// A value is no unsigned integer of the size that is wanted.
pub fn not_unsigned() -> Error {
    Error::malformed("attempt to access JSON non-unsigned-integer as unsigned-integer")
}

/// The bytes that a text means; white space counts for nothing.
pub fn base64(text: &str) -> Option<Bytes> {
    let text: String = text.split_ascii_whitespace().collect();
    BASE64.decode(text).ok().map(Bytes::from)
}
