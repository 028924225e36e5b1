//! What the server tells a model of a batch whose requests differ in shape.

use super::batch::{BatchInputs, model_shape};
use crate::{
    backend::BatchTensor,
    inference::{Admitted, DataType, Error, Shape, Signature},
    memory::BufferPool,
    proto::batch_input::Kind,
    repository::{BatchInput, Ragged},
};

/// The shape of a ragged input: as many elements as the requests have in all.
pub fn joined_shape(requests: &[&Admitted], index: usize) -> Shape {
    let counts = requests.iter().map(|request| element_count(request, index));
    Shape::from([counts.sum::<i64>()])
}

/// The batch inputs, in the configuration's order.
///
/// # Errors
/// When the memory budget is used up, or a number does not fit its type.
pub fn batch_inputs(
    ragged: &Ragged,
    signature: &Signature,
    requests: &[&Admitted],
    pool: &BufferPool,
) -> Result<BatchInputs, Error> {
    let tensors = ragged.batch_inputs.iter().map(|input| {
        let (shape, values) = told(input, signature, requests);
        let mut data = pool.allocate(values.len() * size_of::<u32>())?;
        for (place, value) in data.chunks_exact_mut(size_of::<u32>()).zip(values) {
            place.copy_from_slice(&bytes(input, signature, value)?);
        }
        Ok(Some(BatchTensor { shape, data: data.freeze() }))
    });
    tensors.collect()
}

/// The shape and the values of a batch input.
fn told(input: &BatchInput, signature: &Signature, requests: &[&Admitted]) -> (Shape, Vec<i64>) {
    let counts = requests.iter().map(|request| element_count(request, input.source));
    let mut sum = 0;
    let accumulated = counts.clone().map(|count| {
        sum += count;
        sum
    });
    let values: Vec<i64> = match input.kind {
        Kind::BatchElementCount => counts.collect(),
        Kind::BatchAccumulatedElementCount => accumulated.collect(),
        Kind::BatchAccumulatedElementCountWithZero => {
            std::iter::once(0).chain(accumulated).collect()
        }
        // Only the shape means something.
        Kind::BatchMaxElementCountAsShape => vec![0; counts.max().unwrap_or(0) as usize],
        Kind::BatchItemShape | Kind::BatchItemShapeFlatten => {
            let items = requests.iter().flat_map(|request| {
                let dims = item_dims(request, signature, input.source);
                dims.repeat(request.batch_size as usize)
            });
            items.collect()
        }
    };
    let count = values.len() as i64;
    let rows: i64 = requests.iter().map(|request| i64::from(request.batch_size)).sum();
    let shape = match input.kind {
        Kind::BatchItemShape => Shape::from([rows, count / rows.max(1)]),
        _ => Shape::from([count]),
    };
    (shape, values)
}

/// Elements of a request's input, all rows together; none of one that is left out.
fn element_count(request: &Admitted, index: usize) -> i64 {
    let given = request.inputs.get(index).and_then(Option::as_ref);
    // Its bytes have been counted, so that the elements can be too.
    let count = given.and_then(|input| input.shape.element_count()).unwrap_or(0);
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The dimensions that the model would see of one row.
fn item_dims(request: &Admitted, signature: &Signature, index: usize) -> Shape {
    let (Some(spec), Some(Some(input))) = (signature.inputs.get(index), request.inputs.get(index))
    else {
        return Shape::scalar();
    };
    let dims = spec.reshape.as_ref().unwrap_or(&spec.dims);
    let shape = model_shape(signature, dims, &input.shape, spec.reshape.is_some(), 1);
    let batched = signature.max_batch_size > 0;
    if batched { shape.get(1..).unwrap_or_default().into() } else { shape }
}

fn bytes(input: &BatchInput, signature: &Signature, value: i64) -> Result<[u8; 4], Error> {
    if input.spec.datatype == DataType::Fp32 {
        return Ok((value as f32).to_le_bytes());
    }
    let narrow = i32::try_from(value).map_err(|_| Error::Internal {
        detail: format!(
            "batch input '{}' of model '{}' is {value}, which does not fit {}",
            input.spec.name, signature.model, input.spec.datatype
        ),
    })?;
    Ok(narrow.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use smallvec::SmallVec;

    use super::*;
    use crate::{
        backend::BatchTensor,
        inference::{AdmittedInput, TensorSpec},
        proto::ModelConfig,
        serving::{batch, rows::SharedRows},
    };

    const CONFIG: &str = r#"
        max_batch_size: 8
        input { name: "A" data_type: TYPE_UINT8 dims: [ -1, -1 ] allow_ragged_batch: true }
        input { name: "B" data_type: TYPE_UINT8 dims: 1 }
        output { name: "Y" data_type: TYPE_UINT8 dims: -1 }
        batch_output { target_name: "Y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "A" }
    "#;

    fn model(kind: Kind, datatype: DataType) -> (Signature, Ragged) {
        let mut config: ModelConfig = crate::repository::parse_config(CONFIG).unwrap();
        config.batch_input.push(crate::proto::BatchInput {
            kind: kind.into(),
            target_name: vec!["N".into()],
            data_type: if datatype == DataType::Fp32 { 11 } else { 8 },
            source_input: vec!["A".into()],
        });
        let signature = Signature {
            model: "m".into(),
            max_batch_size: 8,
            inputs: vec![
                TensorSpec::new("A", DataType::Uint8, Shape::from([-1, -1])),
                TensorSpec::new("B", DataType::Uint8, Shape::from([1])),
            ],
            outputs: vec![TensorSpec::new("Y", DataType::Uint8, Shape::from([-1]))],
        };
        let ragged = Ragged::new(&config, &signature);
        (signature, ragged)
    }

    fn admitted(a: [i64; 3], first: u8) -> Admitted {
        let elements = a.iter().product::<i64>() as u8;
        let input = |shape: Shape, data: Vec<u8>| Some(AdmittedInput { shape, data: data.into() });
        Admitted {
            batch_size: a[0] as u32,
            inputs: [
                input(a.into(), (first..first + elements).collect()),
                input(Shape::from([a[0], 1]), vec![7; a[0] as usize]),
            ]
            .into_iter()
            .collect(),
            outputs: [0].into_iter().collect(),
            classes: SmallVec::new(),
        }
    }

    fn pool() -> BufferPool {
        BufferPool::new(1 << 20, 1 << 20).unwrap()
    }

    #[test]
    fn each_kind_tells_of_the_requests_in_its_way() {
        let requests = [admitted([1, 2, 3], 0), admitted([2, 1, 4], 6), admitted([1, 1, 1], 14)];
        let requests = requests.each_ref();
        for (kind, shape, values) in [
            (Kind::BatchElementCount, &[3][..], &[6, 8, 1][..]),
            (Kind::BatchAccumulatedElementCount, &[3], &[6, 14, 15]),
            (Kind::BatchAccumulatedElementCountWithZero, &[4], &[0, 6, 14, 15]),
            (Kind::BatchMaxElementCountAsShape, &[8], &[0; 8]),
            (Kind::BatchItemShape, &[4, 2], &[2, 3, 1, 4, 1, 4, 1, 1]),
            (Kind::BatchItemShapeFlatten, &[8], &[2, 3, 1, 4, 1, 4, 1, 1]),
        ] {
            for datatype in [DataType::Int32, DataType::Fp32] {
                let (signature, ragged) = model(kind, datatype);
                let told = batch_inputs(&ragged, &signature, &requests, &pool()).unwrap();
                let tensor = told[0].as_ref().unwrap();
                assert_eq!(*tensor.shape, *shape, "{kind:?}");
                let words = tensor.data.chunks(4).map(|word| <[u8; 4]>::try_from(word).unwrap());
                let got: Vec<i32> = words
                    .map(|word| match datatype {
                        DataType::Fp32 => f32::from_le_bytes(word) as i32,
                        _ => i32::from_le_bytes(word),
                    })
                    .collect();
                assert_eq!(got, *values, "{kind:?}");
            }
        }
    }

    #[test]
    fn ragged_inputs_are_joined_and_scattered_outputs_parted_again() {
        let (signature, ragged) = model(Kind::BatchElementCount, DataType::Int32);
        let requests = [admitted([1, 2, 3], 0), admitted([2, 1, 4], 6)];
        let requests = requests.each_ref();
        let inputs =
            batch::assemble(&signature, &ragged, &requests, SharedRows::default(), &pool())
                .unwrap();
        let joined = inputs[0].as_ref().unwrap();
        assert_eq!(
            (&*joined.shape, &joined.data[..]),
            (&[14][..], &(0..14).collect::<Vec<_>>()[..])
        );
        assert_eq!(*inputs[1].as_ref().unwrap().shape, [3, 1]);
        assert_eq!(inputs.len(), 3);
        let outputs = [Some(joined.clone())].into_iter().collect();
        let parted = batch::split(&signature, &ragged, &requests, &outputs).unwrap();
        assert_eq!(
            (&*parted[0][0].shape, &parted[0][0].data[..]),
            (&[1, 2, 3][..], &[0, 1, 2, 3, 4, 5][..])
        );
        assert_eq!((&*parted[1][0].shape, parted[1][0].data.len()), (&[2, 1, 4][..], 8));
        let short = BatchTensor { shape: Shape::from([13]), data: joined.data.slice(..13) };
        let error =
            batch::split(&signature, &ragged, &requests, &[Some(short)].into_iter().collect());
        assert!(error.unwrap_err().to_string().contains("output 'Y' of model 'm' has shape [13]"));
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        let (signature, ragged) = model(Kind::BatchElementCount, DataType::Int32);
        let input = &ragged.batch_inputs[0];
        assert_eq!(bytes(input, &signature, 1 << 30).unwrap(), (1_i32 << 30).to_le_bytes());
        let error = bytes(input, &signature, 1 << 31).unwrap_err();
        assert!(error.to_string().contains("batch input 'N' of model 'm' is 2147483648"));
    }
}
