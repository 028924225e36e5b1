use std::{borrow::Cow, time::Duration};

use super::PARAMETERS_MAX;
use crate::{
    inference::{Error, Parameter, Parameters},
    ingress::http::json::{Cursor, Kind, Number},
};

/// The `parameters` of a request, sorted by who they are for.
#[derive(Default)]
pub struct RequestParameters {
    pub priority: u64,
    pub queue_timeout: Option<Duration>,
    pub binary_data_output: bool,
    /// Those that a model or a scheduler reads.
    pub others: Parameters,
}

/// Reads the `parameters` of a request.
pub fn request_parameters(cursor: &mut Cursor<'_>) -> Result<RequestParameters, Error> {
    let mut parameters = RequestParameters::default();
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(Error::malformed(
            "failed to get request params.: attempt to get members for non-object",
        ));
    }
    cursor.object(|cursor, name| request_parameter(&mut parameters, cursor, &name))?;
    Ok(parameters)
}

fn request_parameter(
    parameters: &mut RequestParameters,
    cursor: &mut Cursor<'_>,
    name: &str,
) -> Result<(), Error> {
    let value = match name {
        "priority" => {
            parameters.priority = unsigned(cursor, "priority")?;
            return Ok(());
        }
        "timeout" => {
            let timeout = unsigned(cursor, "timeout")?;
            parameters.queue_timeout = (timeout > 0).then(|| Duration::from_micros(timeout));
            return Ok(());
        }
        "binary_data_output" => {
            parameters.binary_data_output = boolean(cursor, "binary_data_output")?;
            return Ok(());
        }
        "sequence_id" if cursor.kind() == Kind::Number => {
            Parameter::Uint(unsigned(cursor, "sequence_id")?)
        }
        "sequence_id" => Parameter::String(string(cursor, "sequence_id")?.as_ref().into()),
        "sequence_start" => Parameter::Bool(boolean(cursor, "sequence_start")?),
        "sequence_end" => Parameter::Bool(boolean(cursor, "sequence_end")?),
        _ if name.starts_with("triton_") => {
            return Err(Error::malformed(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should \
                 not be specified.",
            ));
        }
        _ => custom_parameter(cursor, name)?,
    };
    if parameters.others.len() >= PARAMETERS_MAX && parameters.others.get(name).is_none() {
        return Err(Error::malformed(format!(
            "a request may have {PARAMETERS_MAX} parameters, got more"
        )));
    }
    parameters.others.insert(name, value);
    Ok(())
}

/// Reads a parameter that a model or a scheduler reads.
pub fn custom_parameter(cursor: &mut Cursor<'_>, name: &str) -> Result<Parameter, Error> {
    Ok(match cursor.kind() {
        Kind::String => Parameter::String(cursor.string()?.as_ref().into()),
        Kind::Bool => Parameter::Bool(cursor.boolean()?),
        Kind::Number => {
            let number = cursor.number()?;
            match number.to_i64() {
                Some(integer) => Parameter::Int(integer),
                None => Parameter::Double(number.to_f64().ok_or_else(|| Error::BadParameter {
                    name: name.to_owned(),
                    detail: format!("is {}, too large for a 64-bit float", shortened(number)),
                })?),
            }
        }
        Kind::Object | Kind::Array | Kind::Null | Kind::Invalid => {
            cursor.skip()?;
            return Err(Error::BadParameter {
                name: name.to_owned(),
                detail: "has invalid type. It should be either 'int', 'bool', or 'string'."
                    .to_owned(),
            });
        }
    })
}

/// Reads an object of a tensor's. Anything else is an object without members, as it is for Triton:
/// some clients write an empty map as an empty array.
pub fn object<'a>(
    cursor: &mut Cursor<'a>,
    mut member: impl FnMut(&mut Cursor<'a>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    match cursor.kind() {
        Kind::Object => cursor.object(|cursor, name| member(cursor, &name)),
        _ => Ok(cursor.skip().map(drop)?),
    }
}

/// Reads the array that is the member `owner`.
pub fn array<'a>(
    cursor: &mut Cursor<'a>,
    owner: &str,
    element: impl FnMut(&mut Cursor<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    match cursor.kind() {
        Kind::Array => cursor.array(element),
        _ => Err(mismatch(cursor, owner, "array")),
    }
}

/// Reads the string that is the member `owner`.
pub fn string<'a>(cursor: &mut Cursor<'a>, owner: &str) -> Result<Cow<'a, str>, Error> {
    match cursor.kind() {
        Kind::String => Ok(cursor.string()?),
        _ => Err(mismatch(cursor, owner, "string")),
    }
}

/// Reads the boolean that is the member `owner`.
pub fn boolean(cursor: &mut Cursor<'_>, owner: &str) -> Result<bool, Error> {
    match cursor.kind() {
        Kind::Bool => Ok(cursor.boolean()?),
        _ => Err(mismatch(cursor, owner, "boolean")),
    }
}

/// Reads the unsigned integer that is the member `owner` or an element of it.
pub fn unsigned(cursor: &mut Cursor<'_>, owner: &str) -> Result<u64, Error> {
    unsigned_to("parse", cursor, owner)
}

/// The same, for what the message calls another purpose than to parse `owner`.
pub fn unsigned_to(purpose: &str, cursor: &mut Cursor<'_>, owner: &str) -> Result<u64, Error> {
    if let Some(value) = cursor.short_integer() {
        return Ok(value);
    }
    let start = cursor.clone();
    if cursor.kind() == Kind::Number
        && let Some(value) = cursor.number()?.to_u64()
    {
        return Ok(value);
    }
    *cursor = start;
    Err(mismatch_to(purpose, cursor, owner, "unsigned-integer"))
}

/// The member `name` is not there.
pub fn missing(name: &str) -> Error {
    Error::malformed(format!(
        "Unable to parse '{name}': attempt to access non-existing object member '{name}'"
    ))
}

/// The value at the cursor is not of the type that `owner` must have. A value that is no JSON at all
/// is reported as that.
fn mismatch(cursor: &mut Cursor<'_>, owner: &str, expected: &str) -> Error {
    mismatch_to("parse", cursor, owner, expected)
}

fn mismatch_to(purpose: &str, cursor: &mut Cursor<'_>, owner: &str, expected: &str) -> Error {
    if let Err(error) = cursor.skip() {
        return error.into();
    }
    Error::malformed(format!(
        "Unable to {purpose} '{owner}': attempt to access JSON non-{expected} as {expected}"
    ))
}

/// A number's text, cut where it is longer than a message should be.
pub fn shortened(number: Number<'_>) -> String {
    const LENGTH: usize = 40;
    match number.text().get(..LENGTH) {
        Some(start) => format!("{start}..."),
        None => number.text().to_owned(),
    }
}
