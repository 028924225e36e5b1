//! What steps do that stand by themselves, and what they give.

use super::{
    chain::{BoxForm, Operation},
    plan::{Form, PadTo, Work},
    shapes,
};
use crate::{
    device::kernels::{nms, top_k},
    inference::{DataType, Shape},
};

/// What a step does by itself, and the tensors that it gives.
pub(super) fn understand(
    operation: &Operation,
    inputs: &[&Form],
    named: usize,
) -> Result<(Work, Vec<Form>), String> {
    let count = match operation {
        Operation::Unpad {} | Operation::Gather {} | Operation::Nms { .. } => 2,
        _ => 1,
    };
    if inputs.len() != count {
        return Err(format!("expected {count} input(s), got {}", inputs.len()));
    }
    let first = inputs[0];
    match operation {
        Operation::Cast { to, scale, zero_point } => {
            let narrow = match (first.datatype, to.0) {
                (DataType::Fp32, narrow) | (narrow, DataType::Fp32) => narrow,
                (_, narrow) => narrow,
            };
            let is_known = matches!(
                narrow,
                DataType::Uint8 | DataType::Int8 | DataType::Fp16 | DataType::Bf16
            ) && (first.datatype == DataType::Fp32) != (to.0 == DataType::Fp32);
            if !is_known {
                return Err(format!(
                    "casts between FP32 and UINT8, INT8, FP16 or BF16, not {} to {}",
                    first.datatype, to.0
                ));
            }
            let is_integer = matches!(narrow, DataType::Uint8 | DataType::Int8);
            if *scale == 0.0 || !scale.is_finite() || !zero_point.is_finite() {
                return Err(format!("expected 'scale' other than 0, got {scale}"));
            }
            if is_integer && (zero_point.fract() != 0.0 || zero_point.abs() > 255.0) {
                return Err(format!("expected a whole number as 'zero_point', got {zero_point}"));
            }
            let work = Work::Cast { to: to.0, scale: *scale, zero_point: *zero_point };
            Ok((work, vec![Form { datatype: to.0, dims: first.dims.clone() }]))
        }
        Operation::Pad { length, multiple, value, truncate } => {
            understand_pad(first, (*length, *multiple), *value, *truncate, named)
        }
        Operation::Unpad {} => {
            let lengths = inputs[1];
            if first.datatype.size().is_none() || first.dims.is_empty() {
                return Err(format!("expected elements of a fixed size, got {first}"));
            }
            if !is_index(lengths) || *lengths.dims != [1] {
                return Err(format!("expected a length, INT32 or INT64 [1], got {lengths}"));
            }
            let mut dims = first.dims.clone();
            dims[0] = -1;
            Ok((Work::Unpad, vec![Form { datatype: first.datatype, dims }]))
        }
        Operation::Gather {} => {
            let indices = inputs[1];
            if first.datatype.size().is_none() || first.dims.is_empty() {
                return Err(format!("expected entries of a fixed size, got {first}"));
            }
            if !is_index(indices) || indices.dims.len() != 1 {
                return Err(format!("expected indices, INT32 or INT64 [count], got {indices}"));
            }
            let dims = indices.dims.iter().chain(first.dims.iter().skip(1)).copied().collect();
            Ok((Work::Gather, vec![Form { datatype: first.datatype, dims }]))
        }
        Operation::Softmax {} | Operation::LogSoftmax {} => {
            columns(first)?;
            let work = match operation {
                Operation::Softmax {} => Work::Softmax,
                _ => Work::LogSoftmax,
            };
            Ok((work, vec![first.clone()]))
        }
        Operation::TopK { k } => {
            let columns = columns(first)?;
            if *k == 0 || *k > top_k::K_MAX || (columns >= 0 && i64::from(*k) > columns) {
                return Err(format!(
                    "expected 'k' of 1 to {} for {first}, got {k}",
                    if columns < 0 {
                        top_k::K_MAX.into()
                    } else {
                        columns.min(top_k::K_MAX.into())
                    }
                ));
            }
            let mut dims = first.dims.clone();
            if let Some(last) = dims.last_mut() {
                *last = i64::from(*k);
            }
            let forms = vec![
                Form { datatype: DataType::Fp32, dims: dims.clone() },
                Form { datatype: DataType::Int64, dims },
            ];
            Ok((Work::TopK { k: *k as usize }, forms))
        }
        Operation::Argmax {} => {
            columns(first)?;
            let mut dims: Shape = first.dims.iter().copied().take(first.dims.len() - 1).collect();
            if dims.is_empty() {
                dims = Shape::from([1]);
            }
            Ok((Work::Argmax, vec![Form { datatype: DataType::Int64, dims }]))
        }
        Operation::Nms {
            iou_threshold,
            score_threshold,
            max_output,
            boxes,
            candidates,
            class_agnostic,
        } => {
            let scores = inputs[1];
            if first.datatype != DataType::Fp32 || first.dims.len() != 2 || first.dims[1] != 4 {
                return Err(format!("expected boxes, FP32 [count,4], got {first}"));
            }
            let is_scores = scores.datatype == DataType::Fp32
                && matches!(scores.dims.len(), 1 | 2)
                && (scores.dims[0] == first.dims[0] || scores.dims[0] < 0 || first.dims[0] < 0);
            if !is_scores {
                return Err(format!(
                    "expected scores, FP32 [count] or [count,classes], got {scores}"
                ));
            }
            if !(0.0..=1.0).contains(iou_threshold) || score_threshold.is_nan() {
                return Err(format!("expected 'iou_threshold' of 0 to 1, got {iou_threshold}"));
            }
            let most = nms::CANDIDATES_MAX;
            if *candidates == 0 || *candidates > most || *max_output == 0 || max_output > candidates
            {
                return Err(format!(
                    "expected 'candidates' of 1 to {most} and 'max_output' of 1 to 'candidates', got \
                     {candidates} and {max_output}"
                ));
            }
            let rule = nms::Rule {
                overlap_max: *iou_threshold,
                score_min: *score_threshold,
                kept_max: *max_output as usize,
                centred: *boxes == BoxForm::Centers,
                any_class: *class_agnostic,
            };
            let types = [DataType::Fp32, DataType::Fp32, DataType::Int64, DataType::Int32];
            let forms = types.into_iter().zip(shapes::best(rule.kept_max));
            let forms = forms.map(|(datatype, dims)| Form { datatype, dims }).collect();
            Ok((Work::Nms { rule, candidates: *candidates as usize }, forms))
        }
        Operation::Decode { .. }
        | Operation::Crop { .. }
        | Operation::Resize { .. }
        | Operation::Channels { .. }
        | Operation::Normalize { .. }
        | Operation::Layout { .. } => Err(format!("is not for {first}")),
    }
}

fn understand_pad(
    input: &Form,
    (length, multiple): (Option<i64>, Option<i64>),
    value: f64,
    truncate: bool,
    named: usize,
) -> Result<(Work, Vec<Form>), String> {
    const LENGTH_MAX: i64 = 1 << 24;
    if input.datatype.size().is_none() || input.dims.is_empty() {
        return Err(format!(
            "expected elements of a fixed size in one dimension or more, got {input}"
        ));
    }
    let in_bounds = |number: i64| {
        let fits = usize::try_from(number).ok().filter(|_| (1..=LENGTH_MAX).contains(&number));
        fits.ok_or_else(|| format!("expected a number of 1 to {LENGTH_MAX}, got {number}"))
    };
    let (to, dim) = match (length, multiple) {
        (Some(length), None) => (PadTo::Length(in_bounds(length)?), length),
        (None, Some(multiple)) => {
            in_bounds(multiple)?;
            let dim = input.dims[0];
            let fixed = if dim < 0 { -1 } else { (dim + multiple - 1) / multiple * multiple };
            (PadTo::Multiple(multiple as usize), fixed)
        }
        _ => return Err("expected either 'length' or 'multiple'".to_owned()),
    };
    if input.dims[0] > dim && dim >= 0 && !truncate {
        return Err(format!("expected at most {dim} elements, or 'truncate', got {input}"));
    }
    let mut dims = input.dims.clone();
    dims[0] = dim;
    let mut forms = vec![Form { datatype: input.datatype, dims }];
    if named > 1 {
        forms.push(Form { datatype: DataType::Int64, dims: Shape::from([dim]) });
    }
    Ok((Work::Pad { to, value, truncate }, forms))
}

/// Whether a tensor's elements can count others.
fn is_index(form: &Form) -> bool {
    matches!(form.datatype, DataType::Int32 | DataType::Int64)
}

/// The length of a tensor's last dimension.
fn columns(form: &Form) -> Result<i64, String> {
    match (form.datatype, form.dims.last()) {
        (DataType::Fp32, Some(&columns)) if columns != 0 => Ok(columns),
        _ => Err(format!("expected FP32 with one dimension or more, got {form}")),
    }
}
