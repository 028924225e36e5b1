use smallvec::smallvec;

use super::ResponseForm;
use crate::inference::{DataType, Error, InferInput, InferRequest, Rope, Shape, Signature};

/// Makes the request of a raw binary call: a body that is nothing but the elements of a model's only
/// input. The one dimension that may be open follows from the size of the body, a batch has one row,
/// and the outputs travel in binary form.
///
/// # Errors
/// When the model has more than one input, or its shape does not follow from the size.
pub fn raw_infer_request(
    signature: &Signature,
    version: &str,
    body: Rope,
) -> Result<(InferRequest, ResponseForm), Error> {
    let [spec] = signature.inputs.as_slice() else {
        return Err(Error::malformed(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{}' \
             model configuration",
            signature.inputs.len(),
            signature.model
        )));
    };
    let mut open = spec.dims.iter().filter(|&&dim| dim < 0);
    if open.next().is_some() && open.next().is_some() {
        return Err(Error::malformed(format!(
            "The shape of the raw input '{}' can not be deduced because there are more than one \
             variable-sized dimension",
            spec.name
        )));
    }
    let fixed: Shape = spec.dims.iter().copied().filter(|&dim| dim >= 0).collect();
    let fixed = fixed.element_count().unwrap_or(u64::MAX);
    let (deduced, data) = match spec.datatype.size() {
        Some(size) => {
            let row = fixed.saturating_mul(size as u64);
            (body.len() as u64 / row.max(1), body)
        }
        None if fixed == 1 => (1, prefixed(&body)?),
        None => {
            return Err(Error::malformed(format!(
                "For {} datatype raw input '{}', the model must have input shape [1]",
                DataType::Bytes,
                spec.name
            )));
        }
    };
    let dims = spec.dims.iter().map(|&dim| match dim {
        ..0 => i64::try_from(deduced).unwrap_or(i64::MAX),
        _ => dim,
    });
    let batch = (signature.max_batch_size > 0).then_some(1);
    let request = InferRequest {
        model_name: (&*signature.model).into(),
        model_version: version.into(),
        inputs: smallvec![InferInput::new(
            &*spec.name,
            spec.datatype,
            batch.into_iter().chain(dims).collect(),
            data,
        )],
        ..InferRequest::default()
    };
    Ok((request, ResponseForm { binary_by_default: true, ..ResponseForm::default() }))
}

/// The body as one string behind its length.
fn prefixed(body: &Rope) -> Result<Rope, Error> {
    let length = u32::try_from(body.len())
        .map_err(|_| Error::RequestTooLarge { limit: u32::MAX as usize, got: body.len() as u64 })?;
    let mut data = Rope::from(length.to_le_bytes().to_vec());
    for piece in body.pieces() {
        data.push(piece.clone());
    }
    Ok(data)
}
