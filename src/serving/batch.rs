//! Requests → the inputs of one run, and its outputs → responses. Pure but for the memory it takes.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{ragged, rows::SharedRows};
use crate::{
    backend::{BatchOutputs, BatchTensor, ResponseTensor},
    inference::{Admitted, Error, InferOutput, Shape, Signature},
    memory::BufferPool,
    repository::Ragged,
};

/// One entry per input of the signature, then one per batch input of the configuration.
pub type BatchInputs = SmallVec<[Option<BatchTensor>; 2]>;

/// The outputs of one request.
pub type Outputs = SmallVec<[InferOutput; 2]>;

/// Puts the requests' tensors together, one behind the other. What can [stay](in_place) where it lies is
/// not copied. What is `shared` with other threads is completed.
///
/// # Errors
/// When the memory budget is used up.
pub fn assemble(
    signature: &Signature,
    ragged: &Ragged,
    requests: &[&Admitted],
    mut shared: SharedRows,
    pool: &BufferPool,
) -> Result<BatchInputs, Error> {
    let rows: i64 = requests.iter().map(|request| i64::from(request.batch_size)).sum();
    let mut inputs = BatchInputs::new();
    for (index, spec) in signature.inputs.iter().enumerate() {
        let mut given = requests.iter().filter_map(|request| request.inputs[index].as_ref());
        let Some(first) = given.next() else {
            inputs.push(None);
            continue;
        };
        let dims = spec.reshape.as_ref().unwrap_or(&spec.dims);
        let shape = match ragged.input(index) {
            true => ragged::joined_shape(requests, index),
            false => model_shape(signature, dims, &first.shape, spec.reshape.is_some(), rows),
        };
        let data = match shared.complete(index) {
            Some(data) => data,
            None => match in_place(signature, requests, index, pool) {
                Some(data) => data,
                None => copied(pieces(requests, index), pool)?,
            },
        };
        inputs.push(Some(BatchTensor { shape, data }));
    }
    if !ragged.batch_inputs.is_empty() {
        inputs.extend(ragged::batch_inputs(ragged, signature, requests, pool)?);
    }
    Ok(inputs)
}

/// Gives a request's tensors the shapes that the model sees.
pub fn reshape(signature: &Signature, request: &mut Admitted) {
    let rows = i64::from(request.batch_size);
    for (spec, input) in signature.inputs.iter().zip(&mut request.inputs) {
        if let (Some(dims), Some(input)) = (&spec.reshape, input) {
            input.shape = model_shape(signature, dims, &input.shape, true, rows);
        }
    }
}

/// An output of a model that answers requests itself, with the shape that the client sees.
///
/// # Errors
/// When there is no such output, or its bytes are not as many as its shape says.
pub fn response_output(
    signature: &Signature,
    tensor: ResponseTensor,
) -> Result<InferOutput, Error> {
    let ResponseTensor { output, datatype, shape, data } = tensor;
    let index = usize::from(output);
    let model = &signature.model;
    let Some(spec) = signature.outputs.get(index) else {
        let detail = format!("model '{model}' gave an output {index} that it does not have");
        return Err(Error::Internal { detail });
    };
    let elements = shape.element_count();
    let fits = match datatype.size() {
        Some(size) => {
            elements.and_then(|count| count.checked_mul(size as u64)) == Some(data.len() as u64)
        }
        None => elements.and_then(|count| strings_len(&data, count)) == Some(data.len()),
    };
    if !fits {
        let detail = format!(
            "output '{}' of model '{model}' has {} bytes, which are not those of a {datatype} tensor \
             of shape {shape}",
            spec.name,
            data.len()
        );
        return Err(Error::Internal { detail });
    }
    let shape = client_shape(signature, index, shape);
    Ok(InferOutput { name: spec.name.clone(), datatype, shape, data })
}

/// The shape that the model sees: the client's, with the batch's rows, or the reshaped one, whose
/// variable dimensions take the client's in order.
pub fn model_shape(
    signature: &Signature,
    dims: &Shape,
    given: &Shape,
    reshaped: bool,
    rows: i64,
) -> Shape {
    let batched = signature.max_batch_size > 0;
    if !reshaped {
        let mut shape = given.clone();
        if let Some(first) = shape.first_mut().filter(|_| batched) {
            *first = rows;
        }
        return shape;
    }
    let given_dims = if batched { given.get(1..).unwrap_or_default() } else { given };
    let mut variable = given_dims.iter().zip(dims.iter()).map(|(&given, _)| given);
    let own = dims.iter().map(|&dim| if dim < 0 { variable.next().unwrap_or(dim) } else { dim });
    let own: Shape = own.collect();
    if batched { own.with_batch(rows) } else { own }
}

/// The bytes of input `index` where they lie, if no copy of them is needed: they are aligned for their type
/// and in one piece, that of a request which is alone, or made of the rows of several which came out of one
/// batch and are together in their order again. There are none, also of tensors that are not here.
pub fn in_place(
    signature: &Signature,
    requests: &[&Admitted],
    index: usize,
    pool: &BufferPool,
) -> Option<Bytes> {
    let mut all = pieces(requests, index);
    let Some(first) = all.next() else { return Some(Bytes::new()) };
    let alignment = signature.inputs[index].datatype.size().unwrap_or(1);
    match all.next() {
        _ if !first.as_ptr().addr().is_multiple_of(alignment) => None,
        None => Some(first.clone()),
        Some(_) => pool.joined(pieces(requests, index)),
    }
}

/// The bytes of input `index` in the order of the rows.
pub fn pieces<'a>(
    requests: &'a [&Admitted],
    index: usize,
) -> impl Iterator<Item = &'a Bytes> + Clone {
    let given = requests.iter().filter_map(move |request| request.inputs[index].as_ref());
    given.flat_map(|input| input.data.pieces())
}

fn copied<'a>(
    pieces: impl Iterator<Item = &'a Bytes> + Clone,
    pool: &BufferPool,
) -> Result<Bytes, Error> {
    let mut buffer = pool.allocate(pieces.clone().map(Bytes::len).sum())?;
    let mut at = 0;
    for piece in pieces {
        buffer[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    Ok(buffer.freeze())
}

/// Takes a run's outputs apart: each request gets its rows of the outputs that it asked for, sharing
/// the batch's memory.
///
/// # Errors
/// When the back end left out an output, or gave one whose rows do not add up.
pub fn split(
    signature: &Signature,
    ragged: &Ragged,
    requests: &[&Admitted],
    outputs: &BatchOutputs,
) -> Result<Vec<Outputs>, Error> {
    let mut responses: Vec<Outputs> = requests.iter().map(|_| Outputs::new()).collect();
    // Where each output's next row begins, in the order of the signature.
    let mut cursors: SmallVec<[usize; 4]> = SmallVec::from_elem(0, signature.outputs.len());
    let rows: usize = requests.iter().map(|request| request.batch_size as usize).sum();
    for (response, request) in responses.iter_mut().zip(requests) {
        for (index, cursor) in cursors.iter_mut().enumerate() {
            let wanted = request.outputs.iter().position(|&wanted| usize::from(wanted) == index);
            let Some(tensor) = outputs.get(index).and_then(Option::as_ref) else {
                if wanted.is_some() {
                    return Err(missing(signature, index));
                }
                continue;
            };
            let source = ragged.output(index).and_then(|source| request.inputs[source].as_ref());
            let (shape, data) = match (source, signature.max_batch_size) {
                (Some(source), _) => {
                    let shape = source.shape.clone();
                    let data = take(signature, index, tensor, &shape, rows, cursor)?;
                    (shape, data)
                }
                (None, 0) => (tensor.shape.clone(), tensor.data.clone()),
                (None, _) => take_rows(signature, index, tensor, rows, request.batch_size, cursor)?,
            };
            if wanted.is_some() {
                let spec = &signature.outputs[index];
                let shape = client_shape(signature, index, shape);
                response.push(InferOutput {
                    name: spec.name.clone(),
                    datatype: spec.datatype,
                    shape,
                    data,
                });
            }
        }
    }
    Ok(responses)
}

/// An output of `rows` of a batch's rows that is not among what came back; `shape` is the batch's.
pub fn absent_output(
    signature: &Signature,
    index: usize,
    shape: &Shape,
    rows: u32,
) -> Option<InferOutput> {
    let spec = signature.outputs.get(index)?;
    let mut shape = shape.clone();
    if signature.max_batch_size > 0 {
        *shape.first_mut()? = rows.into();
    }
    let (name, shape) = (spec.name.clone(), client_shape(signature, index, shape));
    Some(InferOutput { name, datatype: spec.datatype, shape, data: Bytes::new() })
}

fn take_rows(
    signature: &Signature,
    index: usize,
    tensor: &BatchTensor,
    rows: usize,
    count: u32,
    cursor: &mut usize,
) -> Result<(Shape, Bytes), Error> {
    let mut shape = tensor.shape.clone();
    match shape.first_mut() {
        Some(first) if *first == rows as i64 => *first = i64::from(count),
        _ => return Err(disagrees(signature, index, tensor, rows)),
    }
    let data = take(signature, index, tensor, &shape, rows, cursor)?;
    Ok((shape, data))
}

/// The next elements of an output, as many as `shape` has.
fn take(
    signature: &Signature,
    index: usize,
    tensor: &BatchTensor,
    shape: &Shape,
    rows: usize,
    cursor: &mut usize,
) -> Result<Bytes, Error> {
    let left = tensor.data.get(*cursor..).unwrap_or_default();
    let len =
        shape.element_count().and_then(|count| match signature.outputs[index].datatype.size() {
            Some(size) => usize::try_from(count).ok()?.checked_mul(size),
            None => strings_len(left, count),
        });
    let len = len
        .filter(|&len| len <= left.len())
        .ok_or_else(|| disagrees(signature, index, tensor, rows))?;
    let data = tensor.data.slice(*cursor..*cursor + len);
    *cursor += len;
    Ok(data)
}

fn disagrees(signature: &Signature, index: usize, tensor: &BatchTensor, rows: usize) -> Error {
    Error::Internal {
        detail: format!(
            "output '{}' of model '{}' has shape {} for a batch of {rows}",
            signature.outputs[index].name, signature.model, tensor.shape
        ),
    }
}

/// The bytes of the first `count` length-prefixed strings; `None` when there are fewer.
fn strings_len(data: &[u8], count: u64) -> Option<usize> {
    let mut at = 0_usize;
    for _ in 0..count {
        let prefix: [u8; 4] = data.get(at..at.checked_add(4)?)?.try_into().ok()?;
        at = at.checked_add(4 + u32::from_le_bytes(prefix) as usize)?;
    }
    (at <= data.len()).then_some(at)
}

/// The shape that the client sees: an output that is reshaped shows the dimensions of its
/// configuration, whose variable ones take the model's in order.
fn client_shape(signature: &Signature, index: usize, shape: Shape) -> Shape {
    let spec = &signature.outputs[index];
    let Some(reshape) = &spec.reshape else { return shape };
    let batched = signature.max_batch_size > 0;
    let model_dims = if batched { shape.get(1..).unwrap_or_default() } else { &shape[..] };
    let variable: SmallVec<[i64; 4]> = reshape
        .iter()
        .zip(model_dims)
        .filter(|(dim, _)| **dim < 0)
        .map(|(_, &actual)| actual)
        .collect();
    let mut variable = variable.into_iter();
    let dims: Shape = spec
        .dims
        .iter()
        .map(|&dim| if dim < 0 { variable.next().unwrap_or(dim) } else { dim })
        .collect();
    match (batched, shape.first()) {
        (true, Some(&rows)) => dims.with_batch(rows),
        _ => dims,
    }
}

fn missing(signature: &Signature, index: usize) -> Error {
    Error::Internal {
        detail: format!(
            "model '{}' gave no output '{}'",
            signature.model, signature.outputs[index].name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{AdmittedInput, DataType, TensorSpec};

    fn signature(max_batch_size: u32, datatype: DataType) -> Signature {
        Signature {
            model: "m".into(),
            max_batch_size,
            inputs: vec![TensorSpec::new("IN", datatype, Shape::from([2]))],
            outputs: vec![TensorSpec::new("OUT", datatype, Shape::from([2]))],
        }
    }

    fn admitted(rows: u32, shape: Shape, data: Vec<u8>) -> Admitted {
        Admitted {
            batch_size: rows,
            inputs: [Some(AdmittedInput { shape, data: data.into() })].into_iter().collect(),
            outputs: [0].into_iter().collect(),
            classes: SmallVec::new(),
        }
    }

    fn pool() -> BufferPool {
        BufferPool::new(1 << 20, 1 << 20).unwrap()
    }

    #[test]
    fn rows_go_in_and_come_out_in_order() {
        let signature = signature(8, DataType::Uint8);
        let first = admitted(1, Shape::from([1, 2]), vec![1, 2]);
        let second = admitted(2, Shape::from([2, 2]), vec![3, 4, 5, 6]);
        let requests = [&first, &second];
        let inputs =
            assemble(&signature, &Ragged::default(), &requests, SharedRows::default(), &pool())
                .unwrap();
        let input = inputs[0].as_ref().unwrap();
        assert_eq!(input.shape, Shape::from([3, 2]));
        assert_eq!(&input.data[..], [1, 2, 3, 4, 5, 6]);
        let outputs = split(&signature, &Ragged::default(), &requests, &inputs).unwrap();
        assert_eq!(outputs[0][0].shape, Shape::from([1, 2]));
        assert_eq!(&outputs[0][0].data[..], [1, 2]);
        assert_eq!(outputs[1][0].shape, Shape::from([2, 2]));
        assert_eq!(&outputs[1][0].data[..], [3, 4, 5, 6]);
    }

    #[test]
    fn strings_are_parted_by_their_lengths() {
        let signature = signature(8, DataType::Bytes);
        let text = |words: [&str; 2]| {
            words
                .iter()
                .flat_map(|word| (word.len() as u32).to_le_bytes().into_iter().chain(word.bytes()))
                .collect::<Vec<u8>>()
        };
        let first = admitted(1, Shape::from([1, 2]), text(["a", "bcd"]));
        let second = admitted(1, Shape::from([1, 2]), text(["", "e"]));
        let requests = [&first, &second];
        let inputs =
            assemble(&signature, &Ragged::default(), &requests, SharedRows::default(), &pool())
                .unwrap();
        let outputs = split(&signature, &Ragged::default(), &requests, &inputs).unwrap();
        assert_eq!(&outputs[0][0].data[..], text(["a", "bcd"]));
        assert_eq!(&outputs[1][0].data[..], text(["", "e"]));
    }

    #[test]
    fn a_lone_aligned_request_is_not_copied() {
        let signature = signature(8, DataType::Fp32);
        let mut aligned = pool().allocate(16).unwrap();
        aligned.copy_from_slice(&[7; 16]);
        let whole = aligned.freeze();
        for (offset, copied) in [(0, false), (1, true)] {
            let mut request = admitted(1, Shape::from([1, 2]), Vec::new());
            let bytes = whole.slice(offset..offset + 8);
            request.inputs[0].as_mut().unwrap().data = bytes.clone().into();
            let inputs = assemble(
                &signature,
                &Ragged::default(),
                &[&request],
                SharedRows::default(),
                &pool(),
            )
            .unwrap();
            let data = &inputs[0].as_ref().unwrap().data;
            assert_eq!(data, &bytes);
            assert_eq!(data.as_ptr() != bytes.as_ptr(), copied);
        }
    }

    #[test]
    fn rows_that_were_a_batch_are_one_again_without_a_copy() {
        let (signature, pool) = (signature(8, DataType::Fp32), pool());
        let whole = pool.allocate(48).unwrap().freeze();
        let row = |start: usize, rows: usize| {
            let mut request = admitted(rows as u32, Shape::from([rows as i64, 2]), Vec::new());
            let bytes = whole.slice(8 * start..8 * (start + rows));
            request.inputs[0].as_mut().unwrap().data = bytes.into();
            request
        };
        for (rows, start) in [
            (vec![row(0, 1), row(1, 3), row(4, 2)], Some(0)),
            (vec![row(3, 1), row(4, 1)], Some(24)),
            (vec![row(1, 1), row(0, 1)], None),
            (vec![row(0, 1), row(2, 1)], None),
        ] {
            let requests: Vec<&Admitted> = rows.iter().collect();
            let none = SharedRows::default();
            let inputs = assemble(&signature, &Ragged::default(), &requests, none, &pool).unwrap();
            let data = &inputs[0].as_ref().unwrap().data;
            let expected = pieces(&requests, 0).flat_map(|piece| piece.to_vec());
            assert_eq!(data[..], expected.collect::<Vec<_>>());
            let lies = (data.as_ptr().addr()).checked_sub(whole.as_ptr().addr());
            assert_eq!(lies.filter(|lies| *lies < whole.len()), start);
        }
    }

    #[test]
    fn an_output_whose_rows_do_not_add_up_fails_with_its_name() {
        let signature = signature(8, DataType::Uint8);
        let request = admitted(1, Shape::from([1, 2]), vec![1, 2]);
        let short = BatchTensor { shape: Shape::from([2, 2]), data: Bytes::from_static(&[0; 4]) };
        let error = split(
            &signature,
            &Ragged::default(),
            &[&request],
            &[Some(short)].into_iter().collect(),
        );
        assert!(
            error.unwrap_err().to_string().contains("output 'OUT' of model 'm' has shape [2,2]")
        );
        let error =
            split(&signature, &Ragged::default(), &[&request], &[None].into_iter().collect());
        assert_eq!(error.unwrap_err(), missing(&signature, 0));
    }
}
