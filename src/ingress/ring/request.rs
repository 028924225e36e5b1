//! From a description to an [`InferRequest`].

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use nereid_ring::{Parameter as Described, Request, SequenceId, Value};
use smallvec::SmallVec;

use crate::{
    inference::{
        CorrelationId, DataType, Error, InferInput, InferRequest, Parameter, Parameters,
        RequestedOutput, Sequence, Shape, Timestamp,
    },
    ingress::away::away,
    memory::{BufferPool, RingMemory, RingView},
};

/// Inputs of up to so many bytes are copied on the reactor: some 100 µs.
const COPIED_HERE_MAX: usize = 1 << 20;

/// What has a field of its own in a description.
const FIELDS: [&str; 5] = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout"];

/// Inputs that are still to be copied, by their place in the request.
pub type Large = SmallVec<[(usize, RingView); 1]>;

/// The request that a client describes, but for inputs that take long to copy.
///
/// Floating-point numbers are read where they lie, for any bits are a number. Everything else is copied
/// first: a client that changed an index or the length of a string after it was checked would lead the
/// model out of its memory.
///
/// # Errors
/// When bytes do not lie within the arena, a parameter is not one, or memory for a copy is used up.
pub fn infer_request(
    memory: &Arc<RingMemory>,
    pool: &BufferPool,
    described: &Request<'_>,
) -> Result<(InferRequest, Large), Error> {
    let mut request = InferRequest {
        model_name: described.model.into(),
        model_version: described.version.into(),
        id: described.id.into(),
        parameters: parameters(described)?,
        sequence: sequence(described),
        priority: described.priority,
        queue_timeout: micros(described.timeout_us),
        deadline: micros(described.deadline_us).map(|deadline| Timestamp::now() + deadline),
        ..InferRequest::default()
    };
    let (mut large, mut copied) = (Large::new(), 0_usize);
    for input in &described.inputs {
        let view = memory.view("an input", input.data).map_err(|error| {
            Error::malformed(format!("input '{}' is out of bounds: {error}", input.name))
        })?;
        let datatype = DataType::from(input.datatype);
        let data = if datatype.is_float() {
            request.inputs_may_change = true;
            view.in_place()
        } else if copied.saturating_add(view.len()) <= COPIED_HERE_MAX {
            copied += view.len();
            view.copied(pool)?
        } else {
            large.push((request.inputs.len(), view));
            Bytes::new()
        };
        let shape = Shape::from(&*input.dims);
        request.inputs.push(InferInput::new(input.name, datatype, shape, data));
    }
    for output in &described.outputs {
        request.outputs.push(RequestedOutput {
            name: output.name.into(),
            classification: output.classes,
            ..RequestedOutput::default()
        });
    }
    Ok((request, large))
}

/// Copies the inputs that take long.
///
/// # Errors
/// When memory for a copy is used up.
pub async fn copy(
    large: Large,
    request: &mut InferRequest,
    pool: &BufferPool,
) -> Result<(), Error> {
    let pool = pool.clone();
    let copy = move || {
        let copied = large.into_iter().map(|(place, view)| Ok((place, view.copied(&pool)?)));
        copied.collect::<Result<SmallVec<[(usize, Bytes); 1]>, Error>>()
    };
    for (place, data) in away(copy).await? {
        if let Some(input) = request.inputs.get_mut(place) {
            input.data = data.into();
        }
    }
    Ok(())
}

fn parameters(described: &Request<'_>) -> Result<Parameters, Error> {
    let mut parameters = Parameters::default();
    for Described { name, value } in &described.parameters {
        if FIELDS.contains(name) || name.starts_with("triton_") {
            return Err(Error::BadParameter {
                name: (*name).to_owned(),
                detail: "is reserved: a description has fields for what it would say".to_owned(),
            });
        }
        parameters.insert(
            *name,
            match *value {
                Value::Bool(value) => Parameter::Bool(value),
                Value::Int(value) => Parameter::Int(value),
                Value::Uint(value) => Parameter::Uint(value),
                Value::Double(value) => Parameter::Double(value),
                Value::Text(text) => Parameter::String(text.into()),
            },
        );
    }
    Ok(parameters)
}

fn sequence(described: &Request<'_>) -> Option<Box<Sequence>> {
    let (start, end) = (described.sequence_start, described.sequence_end);
    let id = match described.sequence {
        SequenceId::None if start || end => CorrelationId::default(),
        SequenceId::None => return None,
        SequenceId::Number(number) => CorrelationId::Number(number),
        SequenceId::Text(text) => CorrelationId::Text(text.into()),
    };
    Some(Box::new(Sequence { id, start, end }))
}

fn micros(count: u64) -> Option<Duration> {
    (count > 0).then(|| Duration::from_micros(count))
}
