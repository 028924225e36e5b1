//! What the targets have in common: the answer of a model that gives back what it was given.

use nereid::inference::{InferOutput, InferRequest, InferResponse};

/// An answer to `request` with these outputs.
pub fn answer(
    request: InferRequest,
    outputs: impl IntoIterator<Item = InferOutput>,
) -> InferResponse {
    InferResponse {
        model_name: request.model_name.as_str().into(),
        model_version: 1,
        id: request.id,
        parameters: request.parameters,
        outputs: outputs.into_iter().collect(),
    }
}
