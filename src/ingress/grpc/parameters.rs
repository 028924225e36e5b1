//! Parameters with a meaning: what the protocol reserves, taken out of the free ones.

use std::time::Duration;

use crate::inference::{Error, InferRequest, Parameter, Parameters, RequestedOutput};

/// The parameters of one input or output.
pub type TensorParameters = Parameters;

/// Moves the reserved parameters of a request into its fields.
///
/// # Errors
/// When one has a value of the wrong kind.
pub fn take_reserved(request: &mut InferRequest) -> Result<(), Error> {
    if request.parameters.is_empty() {
        return Ok(());
    }
    if let Some(priority) = request.parameters.remove("priority") {
        request.priority = unsigned("priority", &priority)?;
    }
    if let Some(timeout) = request.parameters.remove("timeout") {
        let micros = unsigned("timeout", &timeout)?;
        request.queue_timeout = (micros > 0).then(|| Duration::from_micros(micros));
    }
    Ok(())
}

/// Checks the parameters of an input.
///
/// # Errors
/// When they ask for what the server does not offer.
pub fn check_input(name: &str, parameters: &TensorParameters) -> Result<(), Error> {
    match parameters.get("shared_memory_region") {
        Some(region) => Err(shared_memory(name, region)),
        None => Ok(()),
    }
}

/// Moves the parameters of an output into its fields.
///
/// # Errors
/// When they ask for what the server does not offer, or a value is of the wrong kind.
pub fn apply_output(
    output: &mut RequestedOutput,
    parameters: &TensorParameters,
) -> Result<(), Error> {
    if let Some(region) = parameters.get("shared_memory_region") {
        return Err(shared_memory(&output.name, region));
    }
    if let Some(count) = parameters.get("classification") {
        let count = unsigned("classification", count)?;
        output.classification = u32::try_from(count).unwrap_or(u32::MAX);
    }
    if let Some(binary) = parameters.get("binary_data") {
        output.binary = Some(boolean("binary_data", binary)?);
    }
    Ok(())
}

/// The value of a parameter that is a count.
///
/// # Errors
/// When it is not an integer, or negative.
pub fn unsigned(name: &str, value: &Parameter) -> Result<u64, Error> {
    let bad = |got: String| Error::BadParameter {
        name: name.to_owned(),
        detail: format!("must be an unsigned integer, got {got}"),
    };
    match value {
        Parameter::Uint(value) => Ok(*value),
        Parameter::Int(value) => u64::try_from(*value).map_err(|_| bad(value.to_string())),
        other => Err(bad(describe(other))),
    }
}

/// The value of a parameter that is a switch.
///
/// # Errors
/// When it is not a bool.
pub fn boolean(name: &str, value: &Parameter) -> Result<bool, Error> {
    match value {
        Parameter::Bool(value) => Ok(*value),
        other => Err(Error::BadParameter {
            name: name.to_owned(),
            detail: format!("must be a bool, got {}", describe(other)),
        }),
    }
}

fn describe(value: &Parameter) -> String {
    match value {
        Parameter::Bool(value) => value.to_string(),
        Parameter::Int(value) => value.to_string(),
        Parameter::Uint(value) => value.to_string(),
        Parameter::Double(value) => value.to_string(),
        Parameter::String(value) => format!("'{value}'"),
    }
}

fn shared_memory(tensor: &str, region: &Parameter) -> Error {
    Error::Unsupported {
        detail: format!(
            "tensor '{tensor}' lies in shared memory region {}: shared memory is not supported",
            describe(region)
        ),
    }
}
