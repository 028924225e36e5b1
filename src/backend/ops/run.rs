//! Running a chain over the rows of one request.

mod selection;

use bytemuck::{AnyBitPattern, NoUninit, Pod};
use bytes::Bytes;
use half::{bf16, f16};

use super::{
    images::Pictures,
    plan::{Form, PadTo, Plan, Stage, Work},
    shapes::{Padding, Unpadding, columns, too_many},
};
use crate::{
    backend::ResponseError,
    device::kernels::{
        cast::{self, Narrow},
        pad, softmax,
    },
    inference::{Code, DataType, Shape},
    memory::{Buffer, BufferPool, Exhausted},
};

/// A tensor of a request, the elements of all of its rows.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub datatype: DataType,
    /// Without the batch dimension.
    pub dims: Shape,
    /// Aligned for its element type.
    pub data: Bytes,
}

/// Why a request could not be processed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("{label}: row {row}: {reason}")]
    Row { label: String, row: usize, reason: String },
    #[error("{label}: {reason}")]
    Whole { label: String, reason: String },
    #[error("{0}")]
    Memory(#[from] Exhausted),
}

impl RunError {
    /// What was the matter in the stage of this label.
    pub fn of(fault: Fault, label: &str) -> Self {
        let label = label.to_owned();
        match fault {
            Fault::Row(row, reason) => Self::Row { label, row, reason },
            Fault::Whole(reason) => Self::Whole { label, reason },
            Fault::Memory(exhausted) => Self::Memory(exhausted),
        }
    }
}

impl From<RunError> for ResponseError {
    fn from(error: RunError) -> Self {
        let code = match error {
            RunError::Row { .. } | RunError::Whole { .. } => Code::InvalidArgument,
            RunError::Memory(_) => Code::Unavailable,
        };
        Self { code, message: error.to_string() }
    }
}

/// Why a stage could not be run; in which row, if it is one row's fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{1}")]
    Row(usize, String),
    #[error("{0}")]
    Whole(String),
    #[error(transparent)]
    Memory(#[from] Exhausted),
}

/// What a request's stages have in common.
pub(super) struct Run<'a> {
    pub rows: usize,
    pub pool: &'a BufferPool,
}

/// The tensors of a chain after it has run over `rows` rows, of which `inputs` are the first.
pub(super) fn run(
    plan: &Plan,
    rows: usize,
    inputs: Vec<Value>,
    pool: &BufferPool,
) -> Result<Vec<Option<Value>>, RunError> {
    let mut values: Vec<Option<Value>> = inputs.into_iter().map(Some).collect();
    values.resize(plan.forms.len(), None);
    let run = Run { rows, pool };
    for stage in &plan.stages {
        let inputs: Option<Vec<&Value>> =
            stage.inputs.iter().map(|&slot| values.get(slot)?.as_ref()).collect();
        let made = inputs
            .ok_or_else(|| Fault::Whole("an input of it is missing".to_owned()))
            .and_then(|inputs| run.stage(stage, &inputs))
            .map_err(|fault| RunError::of(fault, &stage.label))?;
        for (&slot, value) in stage.outputs.iter().zip(made) {
            if let Some(place) = values.get_mut(slot) {
                *place = Some(value);
            }
        }
    }
    Ok(values)
}

impl Run<'_> {
    fn stage(&self, stage: &Stage, inputs: &[&Value]) -> Result<Vec<Value>, Fault> {
        let &[first, ..] = inputs else { return Err(Fault::Whole("it has no input".to_owned())) };
        match &stage.work {
            Work::Image { encoded, geometry, look, datatype } => {
                let pictures = Pictures { encoded: *encoded, geometry, look };
                let image = match datatype {
                    DataType::Uint8 => self.images::<u8>(first, &pictures),
                    DataType::Fp16 => self.images::<f16>(first, &pictures),
                    DataType::Bf16 => self.images::<bf16>(first, &pictures),
                    _ => self.images::<f32>(first, &pictures),
                };
                let (dims, buffer) = image?;
                Ok(vec![Value { datatype: *datatype, dims, data: buffer.freeze() }])
            }
            Work::Cast { to, scale, zero_point } => {
                Ok(vec![self.cast(first, *to, *scale, *zero_point)?])
            }
            Work::Pad { to, value, truncate } => {
                self.pad(first, *to, *value, *truncate, stage.outputs.len() > 1)
            }
            Work::Unpad => match inputs {
                &[rows, lengths] => Ok(vec![self.unpad(rows, lengths)?]),
                _ => Err(Fault::Whole("it has one input".to_owned())),
            },
            Work::Gather => match inputs {
                &[entries, indices] => Ok(vec![self.gather(entries, indices)?]),
                _ => Err(Fault::Whole("it has one input".to_owned())),
            },
            Work::Softmax => Ok(vec![self.rowwise(first, softmax::softmax)?]),
            Work::LogSoftmax => Ok(vec![self.rowwise(first, softmax::log_softmax)?]),
            Work::TopK { k } => self.top_k(first, *k),
            Work::Argmax => Ok(vec![self.argmax(first)?]),
            Work::Nms { rule, candidates } => match inputs {
                &[boxes, scores] => self.nms(boxes, scores, rule, *candidates),
                _ => Err(Fault::Whole("it has one input".to_owned())),
            },
        }
    }

    /// Memory for the elements of all rows.
    pub fn buffer<T>(&self, dims: &[i64]) -> Result<Buffer, Fault> {
        self.memory(dims, size_of::<T>())
    }

    /// The same for elements of so many bytes.
    fn memory(&self, dims: &[i64], size: usize) -> Result<Buffer, Fault> {
        let elements = dims
            .iter()
            .try_fold(self.rows, |count, &dim| count.checked_mul(usize::try_from(dim).ok()?))
            .and_then(|count| count.checked_mul(size));
        let bytes = elements.ok_or_else(|| Fault::Whole(too_many(&Shape::from(dims))))?;
        Ok(self.pool.allocate(bytes)?)
    }

    fn rowwise(
        &self,
        input: &Value,
        operation: fn(&[f32], &mut [f32], usize),
    ) -> Result<Value, Fault> {
        let from: &[f32] = elements(input)?;
        let mut buffer = self.buffer::<f32>(&input.dims)?;
        operation(from, elements_mut(&mut buffer)?, columns(&input.dims).map_err(Fault::Whole)?);
        Ok(Value { datatype: DataType::Fp32, dims: input.dims.clone(), data: buffer.freeze() })
    }

    fn cast(
        &self,
        input: &Value,
        to: DataType,
        scale: f32,
        zero_point: f32,
    ) -> Result<Value, Fault> {
        let data = match (input.datatype, to) {
            (DataType::Fp32, DataType::Uint8) => self.narrow::<u8>(input, scale, zero_point),
            (DataType::Fp32, DataType::Int8) => self.narrow::<i8>(input, scale, zero_point),
            (DataType::Fp32, DataType::Fp16) => self.narrow::<f16>(input, scale, zero_point),
            (DataType::Fp32, _) => self.narrow::<bf16>(input, scale, zero_point),
            (DataType::Uint8, _) => self.widen::<u8>(input, scale, zero_point),
            (DataType::Int8, _) => self.widen::<i8>(input, scale, zero_point),
            (DataType::Fp16, _) => self.widen::<f16>(input, scale, zero_point),
            (_, _) => self.widen::<bf16>(input, scale, zero_point),
        }?;
        Ok(Value { datatype: to, dims: input.dims.clone(), data })
    }

    fn narrow<T: Narrow + Pod>(
        &self,
        input: &Value,
        scale: f32,
        zero_point: f32,
    ) -> Result<Bytes, Fault> {
        let mut buffer = self.buffer::<T>(&input.dims)?;
        T::narrow(elements(input)?, elements_mut(&mut buffer)?, scale, zero_point);
        Ok(buffer.freeze())
    }

    fn widen<T: Narrow + Pod>(
        &self,
        input: &Value,
        scale: f32,
        zero_point: f32,
    ) -> Result<Bytes, Fault> {
        let mut buffer = self.buffer::<f32>(&input.dims)?;
        cast::Narrow::widen(elements::<T>(input)?, elements_mut(&mut buffer)?, scale, zero_point);
        Ok(buffer.freeze())
    }

    fn pad(
        &self,
        input: &Value,
        to: PadTo,
        value: f64,
        truncate: bool,
        with_mask: bool,
    ) -> Result<Vec<Value>, Fault> {
        let padding = Padding::of(&input.dims, to, truncate).map_err(Fault::Whole)?;
        let Padding { dims, length, each, .. } = &padding;
        let size = input.datatype.size().unwrap_or(1);
        let mut buffer = self.memory(dims, size)?;
        let offsets: Vec<usize> = padding.offsets(self.rows, *each).collect();
        let row = length * each;
        let fill = element_bytes(input.datatype, value);
        match size {
            1 => pad::pad(elements(input)?, &offsets, elements_mut(&mut buffer)?, row, fill[0]),
            2 => {
                let value = u16::from_le_bytes([fill[0], fill[1]]);
                pad::pad(elements(input)?, &offsets, elements_mut(&mut buffer)?, row, value);
            }
            4 => {
                let value = u32::from_le_bytes([fill[0], fill[1], fill[2], fill[3]]);
                pad::pad(elements(input)?, &offsets, elements_mut(&mut buffer)?, row, value);
            }
            _ => {
                let value = u64::from_le_bytes(fill);
                pad::pad(elements(input)?, &offsets, elements_mut(&mut buffer)?, row, value);
            }
        }
        let mut made =
            vec![Value { datatype: input.datatype, dims: dims.clone(), data: buffer.freeze() }];
        if with_mask {
            let dims = Shape::from([*length as i64]);
            let mut mask = self.buffer::<i64>(&dims)?;
            let offsets: Vec<usize> = padding.offsets(self.rows, 1).collect();
            pad::mask(&offsets, elements_mut(&mut mask)?, *length);
            made.push(Value { datatype: DataType::Int64, dims, data: mask.freeze() });
        }
        Ok(made)
    }

    /// The rows' sequences, which are their beginnings.
    fn unpad(&self, input: &Value, lengths: &Value) -> Result<Value, Fault> {
        let length = Unpadding::common(&indices(&lengths.data, lengths.datatype));
        let length = length.map_err(|(row, told)| Fault::Row(row, told))?;
        let unpadding = Unpadding::of(&input.dims, length).map_err(|told| Fault::Row(0, told))?;
        let size = input.datatype.size().unwrap_or(1);
        let mut buffer = self.memory(&unpadding.dims, size)?;
        let offsets: Vec<usize> =
            unpadding.offsets(self.rows).map(|offset| offset * size).collect();
        let row = unpadding.given * unpadding.each * size;
        pad::unpad(&input.data, &offsets, &mut buffer, row);
        Ok(Value { datatype: input.datatype, dims: unpadding.dims, data: buffer.freeze() })
    }
}

/// Counts, or numbers of others.
pub(super) fn indices(bytes: &[u8], datatype: DataType) -> Vec<i64> {
    match datatype {
        DataType::Int32 => {
            bytes.as_chunks().0.iter().map(|&it| i32::from_le_bytes(it).into()).collect()
        }
        _ => bytes.as_chunks().0.iter().map(|&it| i64::from_le_bytes(it)).collect(),
    }
}

/// A number as the bytes of one element.
pub(super) fn element_bytes(datatype: DataType, value: f64) -> [u8; 8] {
    fn of<const N: usize>(bytes: [u8; N]) -> [u8; 8] {
        let mut all = [0; 8];
        all[..N].copy_from_slice(&bytes);
        all
    }
    match datatype {
        DataType::Fp16 => of(f16::from_f64(value).to_le_bytes()),
        DataType::Bf16 => of(bf16::from_f64(value).to_le_bytes()),
        DataType::Fp32 => of((value as f32).to_le_bytes()),
        DataType::Fp64 => of(value.to_le_bytes()),
        DataType::Uint64 => of((value as u64).to_le_bytes()),
        // The lower bytes of a number are that number in a narrower type.
        _ => of((value as i64).to_le_bytes()),
    }
}

fn elements<T: AnyBitPattern>(value: &Value) -> Result<&[T], Fault> {
    bytemuck::try_cast_slice(&value.data).map_err(|error| {
        let form = Form { datatype: value.datatype, dims: value.dims.clone() };
        Fault::Whole(format!("{form} lies in memory as nothing of its type does: {error}"))
    })
}

pub(super) fn elements_mut<T: AnyBitPattern + NoUninit>(
    buffer: &mut Buffer,
) -> Result<&mut [T], Fault> {
    bytemuck::try_cast_slice_mut(buffer)
        .map_err(|error| Fault::Whole(format!("memory for an output is not aligned: {error}")))
}
