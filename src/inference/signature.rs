use std::sync::Arc;

use smallvec::SmallVec;

use super::{DataType, Error, InferInput, InferRequest, NameList, Rope, Shape};

/// What a model takes and gives, as its configuration says.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The model's name, for messages.
    pub model: Arc<str>,
    /// The largest batch; 0 when tensors have no batch dimension.
    pub max_batch_size: u32,
    /// Inputs in the order of the configuration.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the order of the configuration.
    pub outputs: Vec<TensorSpec>,
}

/// One tensor of a [`Signature`].
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: Arc<str>,
    /// Its element type.
    pub datatype: DataType,
    /// Its dimensions as clients see them, without the batch dimension; `-1` for any size.
    pub dims: Shape,
    /// The dimensions that the model sees instead, without the batch dimension.
    pub reshape: Option<Shape>,
    /// Whether a request may leave it out.
    pub optional: bool,
}

impl TensorSpec {
    /// A required tensor of these dimensions.
    pub fn new(name: &str, datatype: DataType, dims: Shape) -> Self {
        Self { name: name.into(), datatype, dims, reshape: None, optional: false }
    }
}

/// A request whose tensors fit a model's [`Signature`].
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The number of rows; 1 for a model that does not batch.
    pub batch_size: u32,
    /// One entry per input of the signature, in its order; `None` for an optional one left out.
    pub inputs: SmallVec<[Option<AdmittedInput>; 2]>,
    /// Indices into the signature's outputs, in the order to answer.
    pub outputs: SmallVec<[u16; 4]>,
    /// Of these, the ones to answer as classes, with the number of classes.
    pub classes: SmallVec<[(u16, u32); 1]>,
}

/// One tensor of an [`Admitted`] request.
#[derive(Clone, Debug)]
pub struct AdmittedInput {
    /// The shape as the client gave it, the batch dimension included.
    pub shape: Shape,
    /// The elements: as many bytes as the shape says, or well-formed length-prefixed strings.
    pub data: Rope,
}

impl Admitted {
    /// The bytes of all inputs.
    pub fn byte_size(&self) -> usize {
        self.inputs.iter().flatten().map(|input| input.data.len()).sum()
    }
}

impl Signature {
    /// Holds a request against this signature and takes its tensors.
    ///
    /// # Errors
    /// Names the first tensor that does not fit, what was expected and what came.
    pub fn admit(&self, request: &mut InferRequest) -> Result<Admitted, Error> {
        let mut inputs: SmallVec<[Option<AdmittedInput>; 2]> = SmallVec::new();
        inputs.resize_with(self.inputs.len(), || None);
        let mut batch_size: Option<i64> = None;
        for input in &request.inputs {
            self.input_index(&input.name)?;
        }
        for input in std::mem::take(&mut request.inputs) {
            let index = self.input_index(&input.name)?;
            if inputs[index].is_some() {
                return Err(Error::DuplicateInput { input: input.name.into() });
            }
            let rows = self.check_input(&self.inputs[index], &input)?;
            match (batch_size, rows) {
                (Some(expected), Some(got)) if expected != got => {
                    return Err(Error::BatchSizeDisagrees {
                        input: input.name.into(),
                        model: self.model.to_string(),
                        expected,
                        got,
                    });
                }
                (None, Some(_)) => batch_size = rows,
                _ => {}
            }
            inputs[index] = Some(AdmittedInput { shape: input.shape, data: input.data });
        }
        self.check_complete(&inputs)?;
        Ok(Admitted {
            batch_size: u32::try_from(batch_size.unwrap_or(1)).unwrap_or(1),
            inputs,
            classes: self.requested_classes(request),
            outputs: self.requested_outputs(request)?,
        })
    }

    /// Checks one tensor and returns its rows, if the model batches.
    fn check_input(&self, spec: &TensorSpec, input: &InferInput) -> Result<Option<i64>, Error> {
        if input.datatype != spec.datatype {
            return Err(Error::DataTypeMismatch {
                input: input.name.to_string(),
                model: self.model.to_string(),
                expected: spec.datatype,
                got: input.datatype,
            });
        }
        if input.shape.iter().any(|&dim| dim < 0) {
            return Err(Error::NegativeDimension {
                input: input.name.to_string(),
                model: self.model.to_string(),
                shape: input.shape.clone(),
            });
        }
        let rows = self.check_shape(spec, input)?;
        let elements =
            input.shape.element_count().ok_or_else(|| self.element_count_overflow(input))?;
        match spec.datatype.size() {
            Some(size) => {
                let expected = elements
                    .checked_mul(size as u64)
                    .ok_or_else(|| self.element_count_overflow(input))?;
                if expected != input.data.len() as u64 {
                    return Err(Error::ByteSizeMismatch {
                        input: input.name.to_string(),
                        model: self.model.to_string(),
                        expected,
                        got: input.data.len() as u64,
                    });
                }
            }
            None => check_strings(&input.name, elements, &input.data)?,
        }
        Ok(rows)
    }

    fn check_shape(&self, spec: &TensorSpec, input: &InferInput) -> Result<Option<i64>, Error> {
        let mismatch = || Error::ShapeMismatch {
            input: input.name.to_string(),
            model: self.model.to_string(),
            expected: match self.max_batch_size {
                0 => spec.dims.clone(),
                _ => spec.dims.with_batch(-1),
            },
            got: input.shape.clone(),
        };
        if self.max_batch_size == 0 {
            return if spec.dims.admits(&input.shape) { Ok(None) } else { Err(mismatch()) };
        }
        let Some((&rows, dims)) = input.shape.split_first() else {
            return Err(Error::MissingBatchDimension {
                input: input.name.to_string(),
                model: self.model.to_string(),
            });
        };
        if !spec.dims.admits(dims) {
            return Err(mismatch());
        }
        if rows < 1 {
            return Err(Error::BatchTooSmall { model: self.model.to_string(), got: rows });
        }
        if rows > i64::from(self.max_batch_size) {
            return Err(Error::BatchTooLarge {
                model: self.model.to_string(),
                limit: self.max_batch_size,
                got: rows,
            });
        }
        Ok(Some(rows))
    }

    fn check_complete(&self, inputs: &[Option<AdmittedInput>]) -> Result<(), Error> {
        let names = |wanted: &dyn Fn(&TensorSpec, &Option<AdmittedInput>) -> bool| {
            NameList(
                self.inputs
                    .iter()
                    .zip(inputs)
                    .filter(|(spec, input)| wanted(spec, input))
                    .map(|(spec, _)| spec.name.to_string())
                    .collect(),
            )
        };
        let complete =
            self.inputs.iter().zip(inputs).all(|(spec, input)| spec.optional || input.is_some());
        if complete {
            return Ok(());
        }
        Err(Error::MissingInputs {
            model: self.model.to_string(),
            expected: self.inputs.len(),
            got: inputs.iter().flatten().count(),
            got_names: names(&|_, input| input.is_some()),
            missing_names: names(&|spec, input| !spec.optional && input.is_none()),
        })
    }

    fn requested_outputs(&self, request: &InferRequest) -> Result<SmallVec<[u16; 4]>, Error> {
        if request.outputs.is_empty() {
            return Ok((0..self.outputs.len() as u16).collect());
        }
        let mut indices: SmallVec<[u16; 4]> = SmallVec::new();
        for output in &request.outputs {
            let index = self.outputs.iter().position(|spec| *spec.name == *output.name).ok_or_else(
                || Error::UnexpectedOutput {
                    output: output.name.to_string(),
                    model: self.model.to_string(),
                },
            )? as u16;
            if indices.contains(&index) {
                return Err(Error::DuplicateOutput { output: output.name.to_string() });
            }
            indices.push(index);
        }
        Ok(indices)
    }

    fn requested_classes(&self, request: &InferRequest) -> SmallVec<[(u16, u32); 1]> {
        let asked = request.outputs.iter().filter(|output| output.classification > 0);
        asked
            .filter_map(|output| {
                let index = self.outputs.iter().position(|spec| *spec.name == *output.name)?;
                Some((u16::try_from(index).ok()?, output.classification))
            })
            .collect()
    }

    fn input_index(&self, name: &str) -> Result<usize, Error> {
        self.inputs.iter().position(|spec| *spec.name == *name).ok_or_else(|| {
            Error::UnexpectedInput { input: name.to_owned(), model: self.model.to_string() }
        })
    }

    fn element_count_overflow(&self, input: &InferInput) -> Error {
        Error::ElementCountOverflow {
            input: input.name.to_string(),
            model: self.model.to_string(),
            shape: input.shape.clone(),
        }
    }
}

/// Checks that `data` is exactly `expected` strings, each behind its length.
fn check_strings(input: &str, expected: u64, data: &Rope) -> Result<(), Error> {
    const PREFIX: usize = size_of::<u32>();
    let mut cursor = RopeCursor { rope: data, piece: 0, offset: 0 };
    let mut remaining = data.len();
    let mut count = 0_u64;
    while remaining > 0 {
        if remaining < PREFIX {
            return Err(Error::TruncatedStringLength { input: input.to_owned(), got: remaining });
        }
        let mut prefix = [0; PREFIX];
        cursor.read(&mut prefix);
        remaining -= PREFIX;
        let length = u32::from_le_bytes(prefix) as usize;
        if length > remaining {
            return Err(Error::TruncatedString {
                input: input.to_owned(),
                expected: length,
                got: remaining,
            });
        }
        cursor.skip(length);
        remaining -= length;
        count += 1;
    }
    if count != expected {
        return Err(Error::StringCountMismatch { input: input.to_owned(), expected, got: count });
    }
    Ok(())
}

/// Walks a rope's bytes across its pieces; the caller never asks for more than is there.
struct RopeCursor<'a> {
    rope: &'a Rope,
    piece: usize,
    offset: usize,
}

impl RopeCursor<'_> {
    fn read(&mut self, target: &mut [u8]) {
        for byte in target {
            self.next_piece();
            *byte = self.rope.pieces()[self.piece][self.offset];
            self.offset += 1;
        }
    }

    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            self.next_piece();
            let step = count.min(self.rope.pieces()[self.piece].len() - self.offset);
            self.offset += step;
            count -= step;
        }
    }

    fn next_piece(&mut self) {
        if self.offset == self.rope.pieces()[self.piece].len() {
            self.piece += 1;
            self.offset = 0;
        }
    }
}
