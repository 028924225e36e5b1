//! One run: values over the batch's memory, `Run`, and outputs without a copy.

use std::{
    ffi::{c_char, c_void},
    ptr::NonNull,
    sync::Arc,
};

use bytes::Bytes;
use ort_sys::{OrtMemoryInfo, OrtValue};
use smallvec::SmallVec;

use super::{
    handle::{Handle, OrtError},
    library::Runtime,
    plan::{InputPlan, OutputPlan, Plan, TensorPlan},
    session::{Session, datatype_of},
    strings,
};
use crate::{
    backend::{Batch, BatchOutputs, BatchTensor, voyage::NotBrought},
    inference::{DataType, Shape},
    memory::{Exhausted, OutputMemory},
};

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Ort(#[from] OrtError),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error("a string tensor holds {count} strings, which does not fit its shape, or is cut short")]
    MalformedStrings { count: usize },
    #[error("a string is longer than 4 GiB")]
    StringTooLong,
    #[error("output '{output}' has type {got}, expected {expected}")]
    OutputType { output: Arc<str>, expected: DataType, got: i32 },
    #[error("output '{output}' has shape {shape}, which is too large")]
    OutputShape { output: Arc<str>, shape: Shape },
    #[error(transparent)]
    NotBrought(#[from] NotBrought),
}

/// A session with the plan for its signature: what instances share.
pub(super) struct Execution {
    session: Arc<Session>,
    plan: Arc<Plan>,
}

type Values = SmallVec<[Handle<OrtValue>; 4]>;

/// An output that is asked for.
struct Slot {
    /// Its index in the signature.
    index: usize,
    /// The memory that it was given before the run.
    placed: Option<Placed>,
}

struct Placed {
    // Declared first, so that it goes before the memory that it points to.
    value: Handle<OrtValue>,
    shape: Shape,
    memory: OutputMemory,
}

impl Execution {
    pub fn new(session: Session, plan: Plan) -> Self {
        Self { session: Arc::new(session), plan: Arc::new(plan) }
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Runs one batch.
    pub fn run(&self, batch: &Batch<'_>) -> Result<BatchOutputs, RunError> {
        let mut outputs = BatchOutputs::new();
        outputs.resize_with(self.plan.outputs.len(), || None);
        for (index, output) in self.wanted(batch) {
            if let Some(input) = output.echo {
                outputs[index] = batch.inputs.get(input).cloned().flatten();
            }
        }
        // ONNX Runtime refuses a run without outputs.
        if self.computed(batch).next().is_none() {
            return Ok(outputs);
        }
        let guess = self.plan.guesses();
        let result = self.attempt(batch, guess, &mut outputs);
        let Err(RunError::Ort(error)) = &result else { return result.map(|()| outputs) };
        let guessed = guess
            && self.computed(batch).any(|(_, output)| output.sizes.is_some() && output.is_guess());
        if !(guessed && is_shape_mismatch(error)) {
            return result.map(|()| outputs);
        }
        // What was lent before is not lent again.
        self.attempt(&Batch { places: None, ..*batch }, false, &mut outputs)?;
        self.plan.guess_no_more();
        Ok(outputs)
    }

    fn attempt(
        &self,
        batch: &Batch<'_>,
        guess: bool,
        outputs: &mut BatchOutputs,
    ) -> Result<(), RunError> {
        let runtime = self.session.runtime;
        let mut input_names: SmallVec<[*const c_char; 4]> = SmallVec::new();
        let mut values = Values::new();
        for (plan, input) in self.plan.inputs.iter().zip(batch.inputs) {
            let Some(input) = input else { continue };
            input_names.push(plan.tensor.name.as_ptr());
            values.push(input_value(runtime, plan, input)?);
        }
        let inputs: SmallVec<[*const OrtValue; 4]> =
            values.iter().map(|value| value.as_ptr().cast_const()).collect();

        let mut output_names: SmallVec<[*const c_char; 4]> = SmallVec::new();
        let mut slots: SmallVec<[Slot; 2]> = SmallVec::new();
        for (index, output) in self.computed(batch) {
            output_names.push(output.tensor.name.as_ptr());
            slots.push(Slot { index, placed: self.place(batch, output, guess)? });
        }
        let mut results: SmallVec<[*mut OrtValue; 4]> = slots
            .iter()
            .map(|slot| slot.placed.as_ref().map_or(std::ptr::null_mut(), |it| it.value.as_ptr()))
            .collect();

        // SAFETY: the session and all values are alive; the arrays of names and values have the
        // lengths given; the batch keeps the inputs' memory and `slots` that of the outputs. What a
        // client could write meanwhile are floating-point numbers, of which any will do.
        let status = unsafe {
            (runtime.api.Run)(
                self.session.as_ptr(),
                self.session.run_options(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                output_names.as_ptr(),
                output_names.len(),
                results.as_mut_ptr(),
            )
        };
        let made: SmallVec<[Option<Handle<OrtValue>>; 2]> = slots
            .iter()
            .zip(&results)
            .map(|(slot, &result)| {
                let result = NonNull::new(result).filter(|_| slot.placed.is_none())?;
                // SAFETY: where no value was given the call has made one, which is ours.
                Some(unsafe { Handle::adopt(result, runtime.api.ReleaseValue) })
            })
            .collect();
        // SAFETY: the status is that of the call above.
        unsafe { runtime.check(status) }?;

        for (slot, made) in slots.into_iter().zip(made) {
            let plan = &self.plan.outputs[slot.index];
            let mut tensor = match (slot.placed, made) {
                (Some(placed), _) => placed.into_tensor(),
                (None, Some(value)) => self.take(plan, value, batch)?,
                (None, None) => continue,
            };
            if let Some(shape) = &plan.scalar {
                tensor.shape = shape.clone();
            }
            outputs[slot.index] = Some(tensor);
        }
        Ok(())
    }

    fn wanted<'a>(&'a self, batch: &'a Batch<'_>) -> impl Iterator<Item = (usize, &'a OutputPlan)> {
        let outputs = self.plan.outputs.iter().enumerate();
        outputs.filter(|&(index, _)| batch.wanted.get(index) == Some(&true))
    }

    /// The wanted outputs that ONNX Runtime is asked for.
    fn computed<'a>(
        &'a self,
        batch: &'a Batch<'_>,
    ) -> impl Iterator<Item = (usize, &'a OutputPlan)> {
        self.wanted(batch).filter(|(_, output)| output.echo.is_none())
    }

    /// Memory for an output whose shape is known.
    fn place(
        &self,
        batch: &Batch<'_>,
        output: &OutputPlan,
        guess: bool,
    ) -> Result<Option<Placed>, RunError> {
        if output.is_guess() && !guess {
            return Ok(None);
        }
        let Some(shape) = output.shape(batch.rows, batch.inputs) else { return Ok(None) };
        let Some(len) = output.bytes(&shape) else { return Ok(None) };
        let (runtime, tensor) = (self.session.runtime, &output.tensor);
        let mut memory = batch.output_memory(&tensor.label, tensor.datatype, len)?;
        let data = memory.as_mut_ptr().cast();
        // SAFETY: `Placed` drops the value before the memory, which is its to write.
        let value = unsafe { value_over(runtime, &runtime.host, tensor, &shape, data, len) }?;
        Ok(Some(Placed { value, shape, memory }))
    }

    /// A tensor of what ONNX Runtime has allocated: its own memory, or strings in the wire's form.
    fn take(
        &self,
        plan: &OutputPlan,
        value: Handle<OrtValue>,
        batch: &Batch<'_>,
    ) -> Result<BatchTensor, RunError> {
        let runtime = self.session.runtime;
        let (shape, count) = described(runtime, plan, &value)?;
        let too_large =
            || RunError::OutputShape { output: plan.tensor.label.clone(), shape: shape.clone() };
        let data = match plan.tensor.datatype.size() {
            None => {
                // SAFETY: the type was compared above, and the count is that of the value's shape.
                unsafe { strings::from_value(runtime, &value, count, batch.pool) }?.freeze()
            }
            Some(size) => {
                let len = count.checked_mul(size).ok_or_else(too_large)?;
                self.share(value, len)?
            }
        };
        Ok(BatchTensor { shape, data })
    }

    /// The memory of a value, which it owns on the host, as bytes that keep it alive.
    fn share(&self, value: Handle<OrtValue>, len: usize) -> Result<Bytes, RunError> {
        let runtime = self.session.runtime;
        let mut data: *mut c_void = std::ptr::null_mut();
        // SAFETY: the value is alive; the place is written.
        unsafe { runtime.check((runtime.api.GetTensorMutableData)(value.as_ptr(), &mut data)) }?;
        let Some(data) = NonNull::new(data.cast::<u8>()).filter(|_| len > 0) else {
            return Ok(Bytes::new());
        };
        Ok(Bytes::from_owner(OwnedValue {
            data,
            len,
            _value: value,
            _session: self.session.clone(),
        }))
    }
}

/// Memory that ONNX Runtime has allocated for an output. The value goes before the session, whose
/// arena it came from.
struct OwnedValue {
    data: NonNull<u8>,
    len: usize,
    _value: Handle<OrtValue>,
    _session: Arc<Session>,
}

// SAFETY: the memory belongs to the value, which any thread may read and release.
unsafe impl Send for OwnedValue {}
// SAFETY: nobody writes the memory any more.
unsafe impl Sync for OwnedValue {}

impl AsRef<[u8]> for OwnedValue {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the value's tensor has this many bytes at `data`, which the run has written.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl Placed {
    fn into_tensor(self) -> BatchTensor {
        let Self { value, shape, memory } = self;
        drop(value);
        BatchTensor { shape, data: memory.freeze() }
    }
}

/// The shape of a value that ONNX Runtime has made for an output, and the number of its elements,
/// which are of the type that is planned.
pub(super) fn described(
    runtime: &Runtime,
    plan: &OutputPlan,
    value: &Handle<OrtValue>,
) -> Result<(Shape, usize), RunError> {
    let (mut element, mut dims, mut rank) = (0_i32, std::ptr::null(), 0);
    // SAFETY: the value is alive; all places are written, the enumeration being as wide as an `i32`.
    // What `dims` points to lives as long as the value.
    unsafe {
        runtime.check((runtime.api.GetTensorElementTypeAndShapeDataReference)(
            value.as_ptr(),
            (&raw mut element).cast(),
            &mut dims,
            &mut rank,
        ))
    }?;
    let expected = plan.tensor.datatype;
    if datatype_of(element) != Some(expected) {
        let output = plan.tensor.label.clone();
        return Err(RunError::OutputType { output, expected, got: element });
    }
    let shape = match rank {
        0 => Shape::scalar(),
        // SAFETY: there are `rank` dimensions, alive as said above.
        _ => Shape::from(unsafe { std::slice::from_raw_parts(dims, rank) }),
    };
    match shape.element_count().and_then(|count| usize::try_from(count).ok()) {
        Some(count) => Ok((shape, count)),
        None => Err(RunError::OutputShape { output: plan.tensor.label.clone(), shape }),
    }
}

/// The shape of an input as the file has it.
pub(super) fn value_shape<'a>(plan: &InputPlan, input: &'a BatchTensor) -> &'a [i64] {
    match plan.scalar && input.shape.element_count() == Some(1) {
        true => &[],
        false => &input.shape,
    }
}

fn input_value(
    runtime: &Runtime,
    plan: &InputPlan,
    input: &BatchTensor,
) -> Result<Handle<OrtValue>, RunError> {
    let shape = value_shape(plan, input);
    if plan.tensor.datatype == DataType::Bytes {
        return strings::to_value(runtime, shape, &input.data);
    }
    let data = input.data.as_ptr().cast_mut().cast();
    // SAFETY: the batch outlives the value. ONNX Runtime does not write to inputs of a run.
    Ok(unsafe { value_over(runtime, &runtime.host, &plan.tensor, shape, data, input.data.len()) }?)
}

/// A value over memory that it does not own, where `memory` says. ONNX Runtime refuses memory too short for
/// the shape.
///
/// # Safety
/// The memory is there as long as the value, and may be written if the value is an output.
pub(super) unsafe fn value_over(
    runtime: &Runtime,
    memory: &Handle<OrtMemoryInfo>,
    plan: &TensorPlan,
    shape: &[i64],
    data: *mut c_void,
    len: usize,
) -> Result<Handle<OrtValue>, OrtError> {
    let api = runtime.api;
    // SAFETY: creating function and release belong together; the shape lives through the call, the
    // memory as the caller promises.
    unsafe {
        Handle::create(api, api.ReleaseValue, |out| {
            (api.CreateTensorWithDataAsOrtValue)(
                memory.as_ptr(),
                data,
                len,
                shape.as_ptr(),
                shape.len(),
                plan.element,
                out,
            )
        })
    }
}

/// Whether a run failed because an output turned out to have another shape than the value given for
/// it. The C API has no code of its own for that.
pub(super) fn is_shape_mismatch(error: &OrtError) -> bool {
    error.message.contains("The output OrtValue provided for output")
}
