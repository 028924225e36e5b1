//! What a model takes and gives, and holding a request against it.

mod strings;
#[cfg(test)]
mod tests;

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
    /// Indices into the signature's outputs, ascending.
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
    /// Which of the inputs has this name.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|spec| *spec.name == *name)
    }

    /// Which of the outputs has this name.
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|spec| *spec.name == *name)
    }

    /// Holds a request against this signature and takes its tensors.
    ///
    /// # Errors
    /// Names the request and the first tensor that does not fit, what was expected and what came.
    pub fn admit(&self, request: &mut InferRequest) -> Result<Admitted, Error> {
        self.fit(request).map_err(|error| error.in_request(&request.id))
    }

    /// The checks are in Triton's order, so that a request with several faults is told the same one.
    fn fit(&self, request: &mut InferRequest) -> Result<Admitted, Error> {
        let mut places: SmallVec<[Option<usize>; 2]> = SmallVec::new();
        for input in &request.inputs {
            let place = self.input(&input.name);
            if place.is_some() && places.contains(&place) {
                return Err(Error::DuplicateInput { input: input.name.to_string() });
            }
            places.push(place);
        }
        let outputs = self.requested_outputs(request)?;
        self.check_count(&request.inputs)?;
        if let Some((input, _)) =
            request.inputs.iter().zip(&places).find(|(_, place)| place.is_none())
        {
            return Err(Error::UnexpectedInput {
                input: input.name.to_string(),
                model: self.model.to_string(),
            });
        }
        if let Some(missing) = self.missing_inputs(&request.inputs) {
            return Err(missing);
        }
        let shapes = request.inputs.iter().map(|input| (&*input.name, &input.shape));
        let batch_size = self.batch_size(shapes)?;
        let classes = self.requested_classes(request);
        let mut inputs: SmallVec<[Option<AdmittedInput>; 2]> = SmallVec::new();
        inputs.resize_with(self.inputs.len(), || None);
        for (input, place) in std::mem::take(&mut request.inputs).into_iter().zip(places) {
            let Some(place) = place else { continue };
            let InferInput { datatype, shape, data, .. } = input;
            let admitted = AdmittedInput { shape, data };
            self.check_input(&self.inputs[place], datatype, &admitted)?;
            inputs[place] = Some(admitted);
        }
        Ok(Admitted { batch_size, inputs, outputs, classes })
    }

    /// Holds tensors against this signature that are in its order, with a type for each, and the outputs
    /// that are wanted of it, ascending.
    ///
    /// # Errors
    /// Names the first tensor that does not fit, what was expected and what came.
    pub fn admit_in_order(
        &self,
        inputs: SmallVec<[Option<AdmittedInput>; 2]>,
        datatypes: &[DataType],
        outputs: SmallVec<[u16; 4]>,
    ) -> Result<Admitted, Error> {
        let named = || self.inputs.iter().zip(&inputs);
        if named().any(|(spec, input)| !spec.optional && input.is_none()) {
            let given = named().filter(|(_, input)| input.is_some());
            return Err(self.input_count(given.map(|(spec, _)| &*spec.name)));
        }
        let shapes =
            named().filter_map(|(spec, input)| Some((&*spec.name, &input.as_ref()?.shape)));
        let batch_size = self.batch_size(shapes)?;
        for ((spec, input), &datatype) in named().zip(datatypes) {
            if let Some(input) = input {
                self.check_input(spec, datatype, input)?;
            }
        }
        Ok(Admitted { batch_size, inputs, outputs, classes: SmallVec::new() })
    }

    fn check_count(&self, inputs: &[InferInput]) -> Result<(), Error> {
        let required = self.inputs.iter().filter(|spec| !spec.optional).count();
        if (required..=self.inputs.len()).contains(&inputs.len()) {
            return Ok(());
        }
        Err(self.input_count(inputs.iter().map(|input| &*input.name)))
    }

    /// The failure of a request that leaves out inputs that the model needs, whatever others it has.
    fn missing_inputs(&self, inputs: &[InferInput]) -> Option<Error> {
        let is_given = |spec: &TensorSpec| inputs.iter().any(|input| *input.name == *spec.name);
        let complete = self.inputs.iter().all(|spec| spec.optional || is_given(spec));
        (!complete).then(|| self.input_count(inputs.iter().map(|input| &*input.name)))
    }

    fn input_count<'a>(&self, given: impl Iterator<Item = &'a str> + Clone) -> Error {
        let required = self.inputs.iter().filter(|spec| !spec.optional);
        Error::InputCount {
            model: self.model.to_string(),
            required: required.clone().count(),
            most: self.inputs.len(),
            got: given.clone().count(),
            got_names: NameList(given.clone().map(str::to_owned).collect()),
            missing_names: NameList(
                required
                    .filter(|spec| given.clone().all(|name| *name != *spec.name))
                    .map(|spec| spec.name.to_string())
                    .collect(),
            ),
        }
    }

    /// The rows of all inputs, which are given by name and shape; 1 for a model that does not batch.
    fn batch_size<'a>(
        &self,
        inputs: impl Iterator<Item = (&'a str, &'a Shape)>,
    ) -> Result<u32, Error> {
        if self.max_batch_size == 0 {
            return Ok(1);
        }
        let mut common = None;
        for (name, shape) in inputs {
            let Some(&rows) = shape.first() else {
                return Err(Error::MissingBatchDimension {
                    input: name.to_owned(),
                    model: self.model.to_string(),
                });
            };
            if rows < 0 {
                return Err(self.unspecified_dimension(name, shape));
            }
            if *common.get_or_insert(rows) != rows {
                return Err(Error::BatchSizeDisagrees {
                    input: name.to_owned(),
                    model: self.model.to_string(),
                });
            }
        }
        let rows = common.unwrap_or(1);
        match u32::try_from(rows) {
            Ok(0) => Err(Error::BatchTooSmall { model: self.model.to_string(), got: rows }),
            Ok(rows) if rows <= self.max_batch_size => Ok(rows),
            _ => Err(Error::BatchTooLarge {
                model: self.model.to_string(),
                limit: self.max_batch_size,
            }),
        }
    }

    fn check_input(
        &self,
        spec: &TensorSpec,
        datatype: DataType,
        input: &AdmittedInput,
    ) -> Result<(), Error> {
        let AdmittedInput { shape, data } = input;
        if datatype != spec.datatype {
            return Err(Error::DataTypeMismatch {
                input: spec.name.to_string(),
                model: self.model.to_string(),
                expected: spec.datatype,
                got: datatype,
            });
        }
        self.check_shape(spec, shape)?;
        let overflow = || Error::ElementCountOverflow {
            input: spec.name.to_string(),
            model: self.model.to_string(),
            shape: shape.clone(),
        };
        let elements = shape.element_count().ok_or_else(overflow)?;
        let Some(size) = spec.datatype.size() else {
            return strings::check(&self.model, &spec.name, elements, data);
        };
        let expected = elements.checked_mul(size as u64).ok_or_else(overflow)?;
        if expected != data.len() as u64 {
            return Err(Error::ByteSizeMismatch {
                input: spec.name.to_string(),
                model: self.model.to_string(),
                expected,
                got: data.len() as u64,
            });
        }
        Ok(())
    }

    fn check_shape(&self, spec: &TensorSpec, shape: &Shape) -> Result<(), Error> {
        let batched = self.max_batch_size > 0;
        let dims = if batched { shape.get(1..).unwrap_or_default() } else { shape };
        if dims.len() == spec.dims.len() && dims.iter().any(|&dim| dim < 0) {
            return Err(self.unspecified_dimension(&spec.name, shape));
        }
        if spec.dims.admits(dims) {
            return Ok(());
        }
        Err(Error::ShapeMismatch {
            input: spec.name.to_string(),
            model: self.model.to_string(),
            expected: Box::new(if batched { spec.dims.with_batch(-1) } else { spec.dims.clone() }),
            got: shape.clone(),
            batched,
        })
    }

    /// The outputs to answer with.
    fn requested_outputs(&self, request: &InferRequest) -> Result<SmallVec<[u16; 4]>, Error> {
        if request.outputs.is_empty() {
            return Ok((0..self.outputs.len() as u16).collect());
        }
        let mut indices: SmallVec<[u16; 4]> = SmallVec::new();
        let mut unknown = None;
        for output in &request.outputs {
            match self.output_index(&output.name) {
                Some(index) if indices.contains(&index) => {
                    return Err(Error::DuplicateOutput { output: output.name.to_string() });
                }
                Some(index) => indices.push(index),
                None => unknown = unknown.or(Some(&output.name)),
            }
        }
        if let Some(name) = unknown {
            return Err(Error::UnexpectedOutput {
                output: name.to_string(),
                model: self.model.to_string(),
            });
        }
        indices.sort_unstable();
        Ok(indices)
    }

    fn requested_classes(&self, request: &InferRequest) -> SmallVec<[(u16, u32); 1]> {
        let asked = request.outputs.iter().filter(|output| output.classification > 0);
        let mut classes: SmallVec<[(u16, u32); 1]> = asked
            .filter_map(|output| Some((self.output_index(&output.name)?, output.classification)))
            .collect();
        classes.sort_unstable();
        classes
    }

    fn output_index(&self, name: &str) -> Option<u16> {
        let index = self.output(name)?;
        u16::try_from(index).ok()
    }

    fn unspecified_dimension(&self, input: &str, shape: &Shape) -> Error {
        Error::UnspecifiedDimension {
            input: input.to_owned(),
            model: self.model.to_string(),
            shape: shape.clone(),
        }
    }
}
