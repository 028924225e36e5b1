//! What a request to an ensemble is answered.

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::tensor::{Tensor, fitted};
use crate::{
    inference::{
        CorrelationId, Error, InferOutput, InferResponse, Parameter, Parameters, Sequence,
    },
    serving::{job::Keeping, version::LoadedVersion},
};

/// Outputs of these tensors: those `wanted` of `version`, in the order of its signature. What lies on a device
/// and may stay there is told to `keeping`.
pub fn outputs(
    version: &LoadedVersion,
    wanted: &[u16],
    tensors: impl IntoIterator<Item = Option<Tensor>>,
    keeping: Option<&Keeping>,
) -> SmallVec<[InferOutput; 2]> {
    let signature = &version.signature;
    let batched = signature.max_batch_size > 0;
    let mut outputs: SmallVec<[InferOutput; 2]> = SmallVec::new();
    for (&index, tensor) in wanted.iter().zip(tensors) {
        let (Some(spec), Some(tensor)) = (signature.outputs.get(usize::from(index)), tensor) else {
            continue;
        };
        let data = match (tensor.resides, keeping) {
            (Some(there), Some(keeping)) => {
                keeping.stays(usize::from(index), *there);
                Bytes::new()
            }
            _ => tensor.data.into_bytes(),
        };
        outputs.push(InferOutput {
            name: spec.name.clone(),
            datatype: tensor.datatype,
            shape: fitted(tensor.shape, tensor.batched, &spec.dims, batched),
            data,
        });
    }
    outputs
}

/// The response with these outputs to the request `id`, of `sequence` if it belongs to one.
pub fn response(
    version: &LoadedVersion,
    id: CompactString,
    sequence: Option<&Sequence>,
    outputs: SmallVec<[InferOutput; 2]>,
) -> InferResponse {
    InferResponse { parameters: parameters(sequence), ..version.response(id, outputs) }
}

/// Triton gives these with an ensemble's response and with no other.
fn parameters(sequence: Option<&Sequence>) -> Parameters {
    let id = match sequence.map(|sequence| &sequence.id) {
        Some(CorrelationId::Text(text)) => Parameter::String(text.clone()),
        Some(CorrelationId::Number(number)) => Parameter::Int(number.cast_signed()),
        None => Parameter::Int(0),
    };
    let flag = |is_set: Option<bool>| Parameter::Bool(is_set.unwrap_or(false));
    Parameters::from([
        ("sequence_id", id),
        ("sequence_start", flag(sequence.map(|sequence| sequence.start))),
        ("sequence_end", flag(sequence.map(|sequence| sequence.end))),
    ])
}

/// What an error of a step is to the client of the ensemble `version`.
pub fn of_this_ensemble(version: &LoadedVersion, error: Error) -> Error {
    Error::InEnsemble { ensemble: version.name.to_string(), error: Box::new(error) }
}
