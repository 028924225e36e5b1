//! The classification extension: an output's largest values instead of all of them.

use bytes::Bytes;
use half::{bf16, f16};

use super::{batch::Outputs, version::LoadedVersion};
use crate::inference::{Admitted, DataType, Error, InferOutput, Shape};

/// Replaces the outputs that the request wants as classes: each becomes strings of
/// `value:index` or, where the output has labels, `value:index:label`, the largest value first.
///
/// # Errors
/// When an output's elements have no order.
pub fn apply(
    version: &LoadedVersion,
    admitted: &Admitted,
    outputs: &mut Outputs,
) -> Result<(), Error> {
    for &(index, count) in &admitted.classes {
        let name = &version.signature.outputs[usize::from(index)].name;
        let Some(output) = outputs.iter_mut().find(|output| output.name == *name) else { continue };
        let labels = version.labels.get(name).map_or(&[][..], |labels| labels);
        let batched = version.signature.max_batch_size > 0;
        *output = classes(output, batched, count as usize, labels)?;
    }
    Ok(())
}

fn classes(
    output: &InferOutput,
    batched: bool,
    count: usize,
    labels: &[String],
) -> Result<InferOutput, Error> {
    let values = Values::read(output)?;
    let rows = match output.shape.first() {
        Some(&rows) if batched => usize::try_from(rows).unwrap_or(0),
        _ => 1,
    };
    let row_len = values.len().checked_div(rows).unwrap_or(0);
    let count = count.min(row_len);
    let mut data = Vec::new();
    for row in 0..rows {
        for index in values.largest(row * row_len..(row + 1) * row_len, count) {
            let class = index - row * row_len;
            let mut text = format!("{}:{class}", values.text(index));
            if let Some(label) = labels.get(class) {
                text.push(':');
                text.push_str(label);
            }
            data.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
    }
    let per_row = Shape::from([count as i64]);
    Ok(InferOutput {
        name: output.name.clone(),
        datatype: DataType::Bytes,
        shape: if batched { per_row.with_batch(rows as i64) } else { per_row },
        data: Bytes::from(data),
    })
}

/// The elements of an output in a form that keeps their order and their text.
enum Values {
    Float(Vec<f64>),
    Int(Vec<i128>),
}

impl Values {
    fn read(output: &InferOutput) -> Result<Self, Error> {
        macro_rules! read {
            ($kind:ident, $type:ty) => {
                Self::$kind(
                    output
                        .data
                        .as_chunks::<{ size_of::<$type>() }>()
                        .0
                        .iter()
                        .map(|bytes| <$type>::from_le_bytes(*bytes).into())
                        .collect(),
                )
            };
        }
        Ok(match output.datatype {
            DataType::Fp16 => read!(Float, f16),
            DataType::Bf16 => read!(Float, bf16),
            DataType::Fp32 => read!(Float, f32),
            DataType::Fp64 => read!(Float, f64),
            DataType::Uint8 | DataType::Bool => read!(Int, u8),
            DataType::Uint16 => read!(Int, u16),
            DataType::Uint32 => read!(Int, u32),
            DataType::Uint64 => read!(Int, u64),
            DataType::Int8 => read!(Int, i8),
            DataType::Int16 => read!(Int, i16),
            DataType::Int32 => read!(Int, i32),
            DataType::Int64 => read!(Int, i64),
            DataType::Bytes => {
                return Err(Error::malformed(format!(
                    "output '{}' of datatype BYTES cannot be classified",
                    output.name
                )));
            }
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Int(values) => values.len(),
        }
    }

    /// The indices in `range` of its `count` largest elements, the largest first and the first of
    /// equals before the others.
    fn largest(&self, range: std::ops::Range<usize>, count: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = range.collect();
        let order = |&a: &usize, &b: &usize| {
            let by_value = match self {
                Self::Float(values) => values[b].total_cmp(&values[a]),
                Self::Int(values) => values[b].cmp(&values[a]),
            };
            by_value.then(a.cmp(&b))
        };
        if count > 0 && count < indices.len() {
            indices.select_nth_unstable_by(count - 1, order);
        }
        indices.truncate(count);
        indices.sort_by(order);
        indices
    }

    fn text(&self, index: usize) -> String {
        match self {
            Self::Float(values) => format!("{:.6}", values[index]),
            Self::Int(values) => values[index].to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(data: &[u8]) -> Vec<String> {
        let mut rest = data;
        let mut all = Vec::new();
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (text, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            all.push(String::from_utf8(text.to_vec()).unwrap());
            rest = tail;
        }
        all
    }

    fn output(shape: Shape, values: &[f32]) -> InferOutput {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        InferOutput { name: "OUT".into(), datatype: DataType::Fp32, shape, data: data.into() }
    }

    #[test]
    fn each_row_has_its_largest_values_with_their_labels() {
        let labels = ["cat", "dog"].map(str::to_owned);
        let rows = output(Shape::from([2, 3]), &[0.1, 0.5, 0.4, 9.0, -1.0, 9.0]);
        let classes = classes(&rows, true, 2, &labels).unwrap();
        assert_eq!(classes.shape, Shape::from([2, 2]));
        assert_eq!(classes.datatype, DataType::Bytes);
        let expected = ["0.500000:1:dog", "0.400000:2", "9.000000:0:cat", "9.000000:2"];
        assert_eq!(strings(&classes.data), expected);
    }

    #[test]
    fn more_classes_than_there_are_gives_all() {
        let classes = classes(&output(Shape::from([2]), &[1.0, 2.0]), false, 9, &[]).unwrap();
        assert_eq!(classes.shape, Shape::from([2]));
        assert_eq!(strings(&classes.data), ["2.000000:1", "1.000000:0"]);
    }
}
