//! `ModelInferRequest` on the wire → [`InferRequest`]; tensors stay in the frames they came in.

use compact_str::CompactString;
use prost::{Message as _, encoding::WireType};
use smallvec::SmallVec;

use super::{
    parameters::{self, TensorParameters},
    wire::{Fields, WireReader, malformed},
};
use crate::{
    inference::{
        DataType, Error, InferInput, InferRequest, Parameter, RequestedOutput, Rope, Shape,
    },
    proto::InferTensorContents,
};

/// The most dimensions that a tensor may have; no framework comes near.
const DIMS_MAX: usize = 64;
/// The most parameters that a request may have.
const PARAMETERS_MAX: usize = 1024;

/// Reads one `ModelInferRequest`.
///
/// # Errors
/// When the message is not well-formed protobuf, or says contradictory things of a tensor.
pub fn infer_request(message: Rope) -> Result<InferRequest, Error> {
    let mut request = InferRequest::default();
    let mut inputs: SmallVec<[WireInput; 2]> = SmallVec::new();
    let mut raw: SmallVec<[Rope; 2]> = SmallVec::new();
    let mut reader = WireReader::new(message);
    while let Some((field, wire)) = reader.next_field()? {
        match field {
            1 => request.model_name = reader.string(wire, "model_name")?,
            2 => request.model_version = reader.string(wire, "model_version")?,
            3 => request.id = reader.string(wire, "id")?,
            4 => {
                let entry = |fields: Fields<'_>| {
                    parameter_entry(fields).map(|(name, value)| (CompactString::from(name), value))
                };
                let (name, value) = reader.nested(wire, entry)?;
                if request.parameters.len() == PARAMETERS_MAX {
                    return Err(Error::malformed(format!(
                        "a request has more than {PARAMETERS_MAX} parameters"
                    )));
                }
                request.parameters.insert(name, value);
            }
            5 => inputs.push(reader.nested(wire, WireInput::read)?),
            6 => request.outputs.push(reader.nested(wire, requested_output)?),
            7 => raw.push(reader.delimited(wire)?),
            _ => reader.skip(wire)?,
        }
    }
    request.inputs = match raw.is_empty() {
        true => {
            let model = &request.model_name;
            inputs.into_iter().map(|input| input.with_contents(model)).collect::<Result<_, _>>()?
        }
        false => with_raw_contents(&request, inputs, raw)?,
    };
    parameters::take_reserved(&mut request)?;
    Ok(request)
}

/// An input before its data is known: that may come behind all inputs.
struct WireInput {
    input: InferInput,
    contents: Option<InferTensorContents>,
}

impl WireInput {
    fn read(mut reader: Fields<'_>) -> Result<Self, Error> {
        let mut name = CompactString::default();
        let mut datatype = "";
        let mut shape = Shape::default();
        let mut contents = None;
        let mut parameters = TensorParameters::default();
        while let Some((field, wire)) = reader.next_field()? {
            match field {
                1 => name = reader.string(wire, "the name of an input")?.into(),
                2 => datatype = reader.string(wire, "the datatype of an input")?,
                3 => read_shape(&mut reader, wire, &name, &mut shape)?,
                4 => {
                    let (key, value) = parameter_entry(reader.message(wire)?)?;
                    parameters.insert(key, value);
                }
                5 => {
                    let message = reader.message(wire)?.rest();
                    let contents = contents.get_or_insert_with(InferTensorContents::default);
                    contents.merge(message).map_err(malformed)?;
                }
                _ => reader.skip(wire)?,
            }
        }
        let datatype: DataType = datatype.parse().map_err(|_| {
            Error::malformed(format!("inference input '{name}' has unknown data-type '{datatype}'"))
        })?;
        let mut input = InferInput::new(name, datatype, shape, Rope::default());
        input.source = parameters::place(&input.name, parameters)?;
        Ok(Self { input, contents })
    }

    /// The input with the data that its typed `contents` hold.
    fn with_contents(self, model: &str) -> Result<InferInput, Error> {
        let Self { mut input, contents } = self;
        if input.source.is_some() {
            return match contents {
                None => Ok(input),
                Some(_) => Err(Error::malformed(format!(
                    "unexpected 'content' provided when using shared memory for input tensor '{}' \
                     for model '{model}'",
                    input.name
                ))),
            };
        }
        let contents = contents.ok_or_else(|| no_data(&input, model))?;
        check_kind(&input, model, &contents)?;
        input.data = typed_contents(&input, contents)?.into();
        Ok(input)
    }
}

fn with_raw_contents(
    request: &InferRequest,
    inputs: SmallVec<[WireInput; 2]>,
    raw: SmallVec<[Rope; 2]>,
) -> Result<SmallVec<[InferInput; 2]>, Error> {
    let model = &request.model_name;
    if raw.len() > inputs.len() {
        return Err(Error::malformed(format!(
            "expected raw_input_contents of {} inputs for model '{model}', got {}",
            inputs.len(),
            raw.len()
        )));
    }
    let mut raw = raw.into_iter();
    inputs
        .into_iter()
        .map(|WireInput { mut input, contents }| {
            if contents.is_some() {
                return Err(Error::malformed(format!(
                    "contents field must not be specified when using raw_input_contents for \
                     '{}' for model '{model}'",
                    input.name
                )));
            }
            if input.source.is_none() {
                input.data = raw.next().ok_or_else(|| no_data(&input, model))?;
            }
            Ok(input)
        })
        .collect()
}

fn no_data(input: &InferInput, model: &str) -> Error {
    Error::malformed(format!(
        "unable to find data for input tensor '{}' for model '{model}' in request.",
        input.name
    ))
}

/// Reads dimensions of the input `name`, which comes before them unless its client turns the fields about.
fn read_shape(
    reader: &mut Fields<'_>,
    wire: WireType,
    name: &str,
    shape: &mut Shape,
) -> Result<(), Error> {
    let mut push = |dim: u64| {
        if shape.len() == DIMS_MAX {
            return Err(Error::malformed(format!(
                "inference input '{name}' has more than {DIMS_MAX} dimensions"
            )));
        }
        shape.push(dim.cast_signed());
        Ok(())
    };
    if wire == WireType::Varint {
        return push(reader.varint()?);
    }
    let mut packed = reader.message(wire)?;
    while !packed.rest().is_empty() {
        push(packed.varint()?)?;
    }
    Ok(())
}

fn requested_output(mut reader: Fields<'_>) -> Result<RequestedOutput, Error> {
    let mut output = RequestedOutput::default();
    let mut parameters = TensorParameters::default();
    while let Some((field, wire)) = reader.next_field()? {
        match field {
            1 => output.name = reader.string(wire, "the name of an output")?.into(),
            2 => {
                let (key, value) = parameter_entry(reader.message(wire)?)?;
                parameters.insert(key, value);
            }
            _ => reader.skip(wire)?,
        }
    }
    parameters::apply_output(&mut output, parameters)?;
    Ok(output)
}

/// One entry of a `map<string, InferParameter>`.
fn parameter_entry(mut reader: Fields<'_>) -> Result<(&str, Parameter), Error> {
    let mut name = "";
    let mut value = None;
    while let Some((field, wire)) = reader.next_field()? {
        match field {
            1 => name = reader.string(wire, "the name of a parameter")?,
            2 => value = parameter(reader.message(wire)?)?,
            _ => reader.skip(wire)?,
        }
    }
    match value {
        Some(value) => Ok((name, value)),
        None => Err(parameters::wrong_type(name, "int64_param, bool_param, or string_param.")),
    }
}

fn parameter(mut reader: Fields<'_>) -> Result<Option<Parameter>, Error> {
    let mut value = None;
    while let Some((field, wire)) = reader.next_field()? {
        value = Some(match field {
            1 => Parameter::Bool(reader.scalar(wire)? != 0),
            2 => Parameter::Int(reader.scalar(wire)?.cast_signed()),
            3 => Parameter::String(reader.string(wire, "the value of a parameter")?.into()),
            4 => Parameter::Double(f64::from_bits(reader.fixed64(wire)?)),
            5 => Parameter::Uint(reader.scalar(wire)?),
            _ => {
                reader.skip(wire)?;
                continue;
            }
        });
    }
    Ok(value)
}

/// Checks that `contents` has elements of the input's type only.
fn check_kind(
    input: &InferInput,
    model: &str,
    contents: &InferTensorContents,
) -> Result<(), Error> {
    use DataType::{
        Bool, Bytes, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64,
    };
    let fields: [(bool, DataType, &[DataType]); 8] = [
        (contents.bool_contents.is_empty(), Bool, &[Bool]),
        (contents.int_contents.is_empty(), Int32, &[Int8, Int16, Int32]),
        (contents.int64_contents.is_empty(), Int64, &[Int64]),
        (contents.uint_contents.is_empty(), Uint32, &[Uint8, Uint16, Uint32]),
        (contents.uint64_contents.is_empty(), Uint64, &[Uint64]),
        (contents.fp32_contents.is_empty(), Fp32, &[Fp32]),
        (contents.fp64_contents.is_empty(), Fp64, &[Fp64]),
        (contents.bytes_contents.is_empty(), Bytes, &[Bytes]),
    ];
    let misplaced = fields
        .iter()
        .find(|(is_empty, _, carried)| !is_empty && !carried.contains(&input.datatype));
    match misplaced {
        None => Ok(()),
        Some((_, got, _)) => Err(Error::malformed(format!(
            "unexpected explicit tensor data for input tensor '{}' for model '{model}' of type \
             '{got}', expected datatype '{}'",
            input.name, input.datatype
        ))),
    }
}

/// The elements of `contents` as they lie in memory. The field that must hold them is given by the
/// tensor's type; small integers travel as 32-bit ones.
fn typed_contents(input: &InferInput, contents: InferTensorContents) -> Result<Vec<u8>, Error> {
    let too_large = |value: &dyn std::fmt::Display| {
        Error::malformed(format!(
            "input '{}' has the value {value}, which does not fit its datatype {}",
            input.name, input.datatype
        ))
    };
    macro_rules! plain {
        ($field:ident) => {
            contents.$field.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
    }
    macro_rules! narrow {
        ($field:ident, $narrow:ty) => {{
            let mut bytes = Vec::with_capacity(contents.$field.len() * size_of::<$narrow>());
            for value in &contents.$field {
                let narrowed = <$narrow>::try_from(*value).map_err(|_| too_large(value))?;
                bytes.extend_from_slice(&narrowed.to_le_bytes());
            }
            bytes
        }};
    }
    Ok(match input.datatype {
        DataType::Bool => contents.bool_contents.iter().map(|&value| u8::from(value)).collect(),
        DataType::Uint8 => narrow!(uint_contents, u8),
        DataType::Uint16 => narrow!(uint_contents, u16),
        DataType::Uint32 => plain!(uint_contents),
        DataType::Uint64 => plain!(uint64_contents),
        DataType::Int8 => narrow!(int_contents, i8),
        DataType::Int16 => narrow!(int_contents, i16),
        DataType::Int32 => plain!(int_contents),
        DataType::Int64 => plain!(int64_contents),
        DataType::Fp32 => plain!(fp32_contents),
        DataType::Fp64 => plain!(fp64_contents),
        DataType::Bytes => {
            let mut bytes = Vec::new();
            for text in &contents.bytes_contents {
                let len = u32::try_from(text.len()).map_err(|_| too_large(&text.len()))?;
                bytes.extend_from_slice(&len.to_le_bytes());
                bytes.extend_from_slice(text);
            }
            bytes
        }
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Error::malformed(format!(
                "input '{}' of datatype {} must come in raw_input_contents: \
                 contents has no field for it",
                input.name, input.datatype
            )));
        }
    })
}
