//! Parameters with a meaning: what the protocol reserves, taken out of the free ones.

use std::time::Duration;

use crate::inference::{Error, InferRequest, Parameter, RegionRange, RequestedOutput, Sequence};

/// The parameters of one input or output that have a meaning; others are passed over. One that is given
/// twice keeps its last value.
#[derive(Default)]
pub struct TensorParameters {
    region: Option<Parameter>,
    offset: Option<Parameter>,
    byte_size: Option<Parameter>,
    classification: Option<Parameter>,
}

impl TensorParameters {
    pub fn insert(&mut self, name: &str, value: Parameter) {
        let place = match name {
            "shared_memory_region" => &mut self.region,
            "shared_memory_offset" => &mut self.offset,
            "shared_memory_byte_size" => &mut self.byte_size,
            "classification" => &mut self.classification,
            _ => return,
        };
        *place = Some(value);
    }
}

/// The only parameter of this prefix that a request may have.
const EMPTY_FINAL_RESPONSE: &str = "triton_enable_empty_final_response";

/// Moves the reserved parameters of a request into its fields.
///
/// # Errors
/// When one has a value of the wrong kind.
pub fn take_reserved(request: &mut InferRequest) -> Result<(), Error> {
    if request.parameters.is_empty() {
        return Ok(());
    }
    for (name, value) in request.parameters.iter() {
        let expected = match (name, value) {
            ("sequence_id", Parameter::Int(_) | Parameter::Uint(_) | Parameter::String(_))
            | ("sequence_start" | "sequence_end" | EMPTY_FINAL_RESPONSE, Parameter::Bool(_)) => {
                continue;
            }
            ("sequence_id", _) => "int64_param or string_param.",
            ("sequence_start" | "sequence_end" | EMPTY_FINAL_RESPONSE, _) => "bool_param.",
            _ if name.starts_with("triton_") => {
                return Err(Error::malformed(format!(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only \
                     the following keys starting with 'triton_' are allowed: {EMPTY_FINAL_RESPONSE}"
                )));
            }
            _ => continue,
        };
        return Err(wrong_type(name, expected));
    }
    if let Some(priority) = request.parameters.remove("priority") {
        request.priority = unsigned("priority", &priority, "int64_param or uint64_param.")?;
    }
    if let Some(timeout) = request.parameters.remove("timeout") {
        let micros = unsigned("timeout", &timeout, "int64_param.")?;
        request.queue_timeout = (micros > 0).then(|| Duration::from_micros(micros));
    }
    request.sequence = Sequence::take(&mut request.parameters);
    request.empty_final_response =
        request.parameters.remove(EMPTY_FINAL_RESPONSE) == Some(Parameter::Bool(true));
    Ok(())
}

/// Moves the parameters of an output into its fields.
///
/// # Errors
/// When they contradict each other, or a value is of the wrong kind.
pub fn apply_output(
    output: &mut RequestedOutput,
    mut parameters: TensorParameters,
) -> Result<(), Error> {
    let classification = parameters.classification.take();
    output.target = place(&output.name, parameters)?;
    if output.target.is_some() && classification.is_some() {
        return Err(Error::malformed(
            "output can't set both 'shared_memory_region' and 'classification'",
        ));
    }
    output.classification = match classification {
        None => 0,
        Some(Parameter::Int(count @ 1..)) => u32::try_from(count).unwrap_or(u32::MAX),
        Some(Parameter::Int(_)) => {
            return Err(Error::malformed(
                "invalid value for 'classification' parameter, expected >= 0",
            ));
        }
        Some(_) => return Err(wrong_type("classification", "int64_param")),
    };
    Ok(())
}

/// The value of a parameter is of another kind than `expected`, which may end in a full stop.
pub fn wrong_type(name: &str, expected: &str) -> Error {
    Error::malformed(format!("invalid value type for '{name}' parameter, expected {expected}"))
}

/// The value of a parameter that is a count.
fn unsigned(name: &str, value: &Parameter, expected: &str) -> Result<u64, Error> {
    match value {
        Parameter::Uint(value) => Ok(*value),
        Parameter::Int(value) => u64::try_from(*value).map_err(|_| {
            Error::malformed(format!("invalid value for '{name}', expected value >= 0."))
        }),
        _ => Err(wrong_type(name, expected)),
    }
}

/// Where a tensor lies or is to go, if its parameters say that it is in shared memory.
///
/// # Errors
/// When a value is of the wrong kind or its size is missing.
pub fn place(
    tensor: &str,
    parameters: TensorParameters,
) -> Result<Option<Box<RegionRange>>, Error> {
    let region = match parameters.region {
        None => return Ok(None),
        Some(Parameter::String(region)) => region,
        Some(_) => return Err(wrong_type("shared_memory_region", "string_param")),
    };
    // A negative number is one that no region reaches.
    let number = |name, value| match value {
        Parameter::Int(value) => Ok(value.cast_unsigned()),
        Parameter::Uint(value) => Ok(value),
        _ => Err(wrong_type(name, "int64_param")),
    };
    let offset = parameters.offset.map_or(Ok(0), |value| number("shared_memory_offset", value))?;
    let byte_size = parameters.byte_size.ok_or_else(|| {
        Error::malformed(format!(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' \
             parameter for tensor '{tensor}'"
        ))
    })?;
    let byte_size = number("shared_memory_byte_size", byte_size)?;
    Ok(Some(Box::new(RegionRange { region, offset, byte_size })))
}
