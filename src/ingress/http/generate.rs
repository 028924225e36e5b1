//! `generate` and `generate_stream`: a flat JSON object whose members are inputs by their names, and
//! an answer of the same kind. What is no input is a parameter.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    infer_request::{
        PARAMETERS_MAX, TENSORS_MAX, elements,
        members::{custom_parameter, string},
    },
    infer_response::{write_elements, write_parameter},
    json::{Cursor, Kind, write_string},
};
use crate::inference::{
    DataType, Error, InferInput, InferOutput, InferRequest, InferResponse, Parameter, Rope,
    Sequence, Shape, Signature, TensorSpec,
};

/// Reads a body for a model with this signature; an empty version leaves the choice to the server.
///
/// # Errors
/// Names the member that is malformed, or that does not fill its input.
pub fn request(signature: &Signature, version: &str, body: &Rope) -> Result<InferRequest, Error> {
    let json = body.clone().into_bytes();
    let mut cursor = Cursor::new(&json)?;
    let mut request = InferRequest {
        model_name: (&*signature.model).into(),
        model_version: version.into(),
        ..InferRequest::default()
    };
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(Error::malformed("attempt to get members for non-object"));
    }
    cursor.object(|cursor, name| match name.as_ref() {
        "id" => {
            request.id = string(cursor, "id")?.as_ref().into();
            Ok(())
        }
        "parameters" => nested(signature, &mut request, cursor),
        name => member(signature, &mut request, cursor, name),
    })?;
    cursor.finish()?;
    request.sequence = Sequence::take(&mut request.parameters);
    Ok(request)
}

/// The object `parameters`, whose members mean what they mean outside it.
fn nested(
    signature: &Signature,
    request: &mut InferRequest,
    cursor: &mut Cursor<'_>,
) -> Result<(), Error> {
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(Error::malformed(
            "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as \
             object",
        ));
    }
    cursor.object(|cursor, name| {
        member(signature, request, cursor, &name)
            .map_err(|error| Error::malformed(format!("Converting keyword: 'parameters': {error}")))
    })
}

fn member(
    signature: &Signature,
    request: &mut InferRequest,
    cursor: &mut Cursor<'_>,
    name: &str,
) -> Result<(), Error> {
    let Some(spec) = signature.inputs.iter().find(|spec| &*spec.name == name) else {
        let value = custom_parameter(cursor, name)?;
        if request.parameters.len() >= PARAMETERS_MAX && request.parameters.get(name).is_none() {
            return Err(Error::malformed(format!(
                "a request may have {PARAMETERS_MAX} parameters, got more"
            )));
        }
        request.parameters.insert(name, value);
        return Ok(());
    };
    if request.inputs.len() >= TENSORS_MAX || request.inputs.iter().any(|i| i.name == *name) {
        return Err(Error::DuplicateInput { input: name.to_owned() }.in_request(&request.id));
    }
    let batched = signature.max_batch_size > 0;
    request.inputs.push(tensor(spec, batched, cursor)?);
    Ok(())
}

fn tensor(spec: &TensorSpec, batched: bool, cursor: &mut Cursor<'_>) -> Result<InferInput, Error> {
    let count = element_count(cursor)?;
    let read = |cursor: &mut Cursor<'_>| {
        let flat = Shape::from([i64::try_from(count).unwrap_or(i64::MAX)]);
        elements::read_leaves(cursor, &spec.name, spec.datatype, &flat)
    };
    let shape = || {
        shape_of(spec, batched, count).ok_or_else(|| {
            Error::malformed(format!(
                "The schema can not convert input '{}' to tensor with proper shape",
                spec.name
            ))
        })
    };
    // Strings are measured before the shape is made, numbers after.
    let (shape, data) = match spec.datatype {
        DataType::Bytes => {
            let data = read(cursor)?;
            (shape()?, data)
        }
        _ => (shape()?, read(cursor)?),
    };
    Ok(InferInput::new(&*spec.name, spec.datatype, shape, data))
}

/// How many elements the value at the cursor has, which stays where it is.
fn element_count(cursor: &Cursor<'_>) -> Result<u64, Error> {
    let mut ahead = cursor.clone();
    if ahead.kind() != Kind::Array {
        return Ok(1);
    }
    let mut count = 0;
    ahead.array(|cursor| {
        count += 1;
        cursor.skip().map(drop)
    })?;
    Ok(count)
}

/// The shape that `count` elements have: the last open dimension takes what the fixed ones leave, all
/// other open ones are 1. `None` when that does not come out even.
fn shape_of(spec: &TensorSpec, batched: bool, count: u64) -> Option<Shape> {
    let mut shape = if batched { spec.dims.with_batch(-1) } else { spec.dims.clone() };
    let mut rest = i64::try_from(count).ok()?;
    for &dim in shape.iter().filter(|&&dim| dim >= 0) {
        if rest.checked_rem(dim)? != 0 {
            return None;
        }
        rest /= dim;
    }
    for dim in shape.iter_mut().rev().filter(|dim| **dim < 0) {
        *dim = std::mem::replace(&mut rest, 1);
    }
    (rest == 1).then_some(shape)
}

/// What a member of an answer is.
enum Member<'a> {
    Text(&'a str),
    Version(i64),
    Parameter(&'a Parameter),
    Tensor(&'a InferOutput),
}

/// Writes an answer: its members in the order of their names, tensors of one element as that element,
/// others flat.
///
/// # Errors
/// When an output cannot be written as JSON.
pub fn response(response: &InferResponse) -> Result<Vec<u8>, Error> {
    let mut members = BTreeMap::new();
    for output in response.outputs.iter().rev() {
        members.insert(&*output.name, Member::Tensor(output));
    }
    for (name, value) in response.parameters.iter() {
        members.insert(name, Member::Parameter(value));
    }
    members.insert("model_name", Member::Text(&response.model_name));
    members.insert("model_version", Member::Version(response.model_version));
    if !response.id.is_empty() {
        members.insert("id", Member::Text(&response.id));
    }
    let mut json = vec![b'{'];
    for (index, (name, member)) in members.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_string(&mut json, name);
        json.push(b':');
        match member {
            Member::Text(text) => write_string(&mut json, text),
            Member::Version(version) => write_string(&mut json, &version.to_string()),
            Member::Parameter(value) => write_parameter(&mut json, value),
            Member::Tensor(output) if output.shape.element_count() == Some(1) => {
                write_elements(&mut json, output)?;
            }
            Member::Tensor(output) => {
                json.push(b'[');
                write_elements(&mut json, output)?;
                json.push(b']');
            }
        }
    }
    json.push(b'}');
    Ok(json)
}

/// An event of a stream: what it says, as a browser's `EventSource` reads it.
pub fn event(json: &[u8]) -> Bytes {
    [b"data: ", json, b"\n\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::Parameters;

    fn signature(max_batch_size: u32, inputs: &[(&str, DataType, &[i64])]) -> Signature {
        let inputs = inputs.iter().map(|&(name, datatype, dims)| {
            TensorSpec::new(name, datatype, dims.iter().copied().collect())
        });
        Signature {
            model: "m".into(),
            max_batch_size,
            inputs: inputs.collect(),
            outputs: vec![TensorSpec::new("OUT", DataType::Fp32, Shape::from([-1]))],
        }
    }

    fn read(signature: &Signature, body: &str) -> Result<InferRequest, String> {
        request(signature, "", &Rope::from(body.as_bytes().to_vec()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn elements_fill_the_shape_from_behind() {
        for (batch, dims, count, expected) in [
            (0, &[-1][..], 3, Some(&[3][..])),
            (0, &[-1], 0, Some(&[0])),
            (8, &[-1], 3, Some(&[1, 3])),
            (8, &[2, 3], 6, Some(&[1, 2, 3])),
            (8, &[2, 3], 12, Some(&[2, 2, 3])),
            (8, &[2, 3], 7, None),
            (0, &[1], 2, None),
            (0, &[0], 0, None),
            (0, &[], 1, Some(&[])),
            (0, &[-1, 4, -1], 8, Some(&[1, 4, 2])),
        ] {
            let signature = signature(batch, &[("IN", DataType::Uint8, dims)]);
            let shape = shape_of(&signature.inputs[0], batch > 0, count);
            assert_eq!(shape.as_deref(), expected, "{dims:?} of {count}");
        }
    }

    #[test]
    fn members_are_inputs_and_parameters() {
        let signature =
            signature(0, &[("A", DataType::Int32, &[-1]), ("B", DataType::Bytes, &[1])]);
        let body = r#"{"A":[1,2],"id":"x","t":0.5,"parameters":{"B":"hi","n":3}}"#;
        let request = read(&signature, body).unwrap();
        assert_eq!(request.id, "x");
        assert_eq!(request.inputs[0].shape, Shape::from([2]));
        assert_eq!(request.inputs[0].data.clone().into_bytes(), [1, 0, 0, 0, 2, 0, 0, 0][..]);
        assert_eq!(request.inputs[1].data.clone().into_bytes(), b"\x02\0\0\0hi"[..]);
        assert_eq!(request.parameters.get("t"), Some(&Parameter::Double(0.5)));
        assert_eq!(request.parameters.get("n"), Some(&Parameter::Int(3)));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let signature = signature(0, &[("A", DataType::Fp32, &[2]), ("B", DataType::Bytes, &[1])]);
        for (body, expected) in [
            ("[1]", "attempt to get members for non-object"),
            (r#"{"A":1}"#, "The schema can not convert input 'A' to tensor with proper shape"),
            (
                r#"{"A":[[1],[2,3]]}"#,
                "Unable to parse 'data': Shape does not match true shape of 'data' field",
            ),
            (
                r#"{"A":[1,null]}"#,
                "Unable to parse 'data': attempt to access JSON non-number as double",
            ),
            (
                r#"{"B":["a",1]}"#,
                "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
            ),
            (
                r#"{"B":["a","b"]}"#,
                "The schema can not convert input 'B' to tensor with proper shape",
            ),
            (
                r#"{"B":"a","B":"b"}"#,
                "[request id: <id_unknown>] input 'B' already exists in request",
            ),
            (
                r#"{"p":[1]}"#,
                "parameter 'p' has invalid type. It should be either 'int', 'bool', or 'string'.",
            ),
            (
                r#"{"parameters":{"p":null}}"#,
                "Converting keyword: 'parameters': parameter 'p' has invalid type. It should be \
                 either 'int', 'bool', or 'string'.",
            ),
            (
                r#"{"parameters":3}"#,
                "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object \
                 as object",
            ),
            (r#"{"id":7}"#, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ] {
            assert_eq!(read(&signature, body).unwrap_err(), expected, "{body}");
        }
    }

    #[test]
    fn an_answer_is_flat_and_in_the_order_of_its_names() {
        let output = |name: &str, shape: Shape, data: &'static [u8]| InferOutput {
            name: name.into(),
            datatype: DataType::Uint8,
            shape,
            data: Bytes::from_static(data),
        };
        let mut parameters = Parameters::default();
        parameters.insert("done", Parameter::Bool(true));
        let answer = InferResponse {
            model_name: "m".into(),
            model_version: 3,
            id: "x".into(),
            parameters,
            outputs: [
                output("z", Shape::from([1, 1]), &[7]),
                output("OUT", Shape::from([1, 2]), &[1, 2]),
                output("id", Shape::from([1]), &[9]),
            ]
            .into_iter()
            .collect(),
        };
        let json = response(&answer).unwrap();
        let expected =
            r#"{"OUT":[1,2],"done":true,"id":"x","model_name":"m","model_version":"3","z":7}"#;
        assert_eq!(std::str::from_utf8(&json), Ok(expected));
        assert_eq!(event(b"{}"), "data: {}\n\n");
    }
}
