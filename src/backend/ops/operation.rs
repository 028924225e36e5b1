//! What steps do that stand by themselves, and what they give.

use super::{
    chain::{BoxForm, Operation},
    plan::{Form, PadTo, Work},
    shapes,
};
use crate::{
    device::kernels::{self, nms},
    inference::{DataType, Shape},
};

/// What a step does by itself, and the tensors that it gives.
type Understood = Result<(Work, Vec<Form>), String>;

/// Holds a step that stands by itself against its inputs; `named` is how many outputs it names.
pub(super) fn understand(operation: &Operation, inputs: &[&Form], named: usize) -> Understood {
    let count = match operation {
        Operation::Unpad {} | Operation::Gather {} | Operation::Nms { .. } => 2,
        _ => 1,
    };
    if inputs.len() != count {
        return Err(format!("expected {count} input(s), got {}", inputs.len()));
    }
    let first = inputs[0];
    match operation {
        Operation::Cast { to, scale, zero_point } => cast(first, to.0, *scale, *zero_point),
        Operation::Pad { length, multiple, value, truncate } => {
            pad(first, (*length, *multiple), *value, *truncate, named)
        }
        Operation::Unpad {} => unpad(first, inputs[1]),
        Operation::Gather {} => gather(first, inputs[1]),
        Operation::Softmax {} => columns(first).map(|_| (Work::Softmax, vec![first.clone()])),
        Operation::LogSoftmax {} => columns(first).map(|_| (Work::LogSoftmax, vec![first.clone()])),
        Operation::TopK { k } => top_k(first, *k),
        Operation::Argmax {} => argmax(first),
        Operation::Nms {
            iou_threshold,
            score_threshold,
            max_output,
            boxes,
            candidates,
            class_agnostic,
        } => {
            let rule = nms::Rule {
                overlap_max: *iou_threshold,
                score_min: *score_threshold,
                kept_max: *max_output as usize,
                centred: *boxes == BoxForm::Centers,
                any_class: *class_agnostic,
            };
            nms(first, inputs[1], rule, *candidates as usize)
        }
        Operation::Decode { .. }
        | Operation::Crop { .. }
        | Operation::Resize { .. }
        | Operation::Channels { .. }
        | Operation::Normalize { .. }
        | Operation::Layout { .. } => Err(format!("is not for {first}")),
    }
}

fn cast(input: &Form, to: DataType, scale: f32, zero_point: f32) -> Understood {
    let narrow = if to == DataType::Fp32 { input.datatype } else { to };
    let is_integer = matches!(narrow, DataType::Uint8 | DataType::Int8);
    let is_known = (is_integer || matches!(narrow, DataType::Fp16 | DataType::Bf16))
        && (input.datatype == DataType::Fp32) != (to == DataType::Fp32);
    if !is_known {
        return Err(format!(
            "casts between FP32 and UINT8, INT8, FP16 or BF16, not {} to {to}",
            input.datatype
        ));
    }
    if scale == 0.0 || !scale.is_finite() || !zero_point.is_finite() {
        return Err(format!("expected 'scale' other than 0, got {scale}"));
    }
    if is_integer && (zero_point.fract() != 0.0 || zero_point.abs() > 255.0) {
        return Err(format!("expected a whole number as 'zero_point', got {zero_point}"));
    }
    let form = Form { datatype: to, dims: input.dims.clone() };
    Ok((Work::Cast { to, scale, zero_point }, vec![form]))
}

fn pad(
    input: &Form,
    (length, multiple): (Option<i64>, Option<i64>),
    value: f64,
    truncate: bool,
    named: usize,
) -> Understood {
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

fn unpad(padded: &Form, lengths: &Form) -> Understood {
    if padded.datatype.size().is_none() || padded.dims.is_empty() {
        return Err(format!("expected elements of a fixed size, got {padded}"));
    }
    if !is_index(lengths) || *lengths.dims != [1] {
        return Err(format!("expected a length, INT32 or INT64 [1], got {lengths}"));
    }
    let mut dims = padded.dims.clone();
    dims[0] = -1;
    Ok((Work::Unpad, vec![Form { datatype: padded.datatype, dims }]))
}

fn gather(entries: &Form, indices: &Form) -> Understood {
    if entries.datatype.size().is_none() || entries.dims.is_empty() {
        return Err(format!("expected entries of a fixed size, got {entries}"));
    }
    if !is_index(indices) || indices.dims.len() != 1 {
        return Err(format!("expected indices, INT32 or INT64 [count], got {indices}"));
    }
    let dims = indices.dims.iter().chain(entries.dims.iter().skip(1)).copied().collect();
    Ok((Work::Gather, vec![Form { datatype: entries.datatype, dims }]))
}

fn top_k(input: &Form, k: u32) -> Understood {
    let columns = columns(input)?;
    let most = i64::from(kernels::top_k::K_MAX);
    let most = if columns < 0 { most } else { columns.min(most) };
    if !(1..=most).contains(&i64::from(k)) {
        return Err(format!("expected 'k' of 1 to {most} for {input}, got {k}"));
    }
    let mut dims = input.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = i64::from(k);
    }
    let forms = vec![
        Form { datatype: DataType::Fp32, dims: dims.clone() },
        Form { datatype: DataType::Int64, dims },
    ];
    Ok((Work::TopK { k: k as usize }, forms))
}

fn argmax(input: &Form) -> Understood {
    columns(input)?;
    let mut dims: Shape = input.dims.iter().copied().take(input.dims.len() - 1).collect();
    if dims.is_empty() {
        dims = Shape::from([1]);
    }
    Ok((Work::Argmax, vec![Form { datatype: DataType::Int64, dims }]))
}

fn nms(boxes: &Form, scores: &Form, rule: nms::Rule, candidates: usize) -> Understood {
    if boxes.datatype != DataType::Fp32 || boxes.dims.len() != 2 || boxes.dims[1] != 4 {
        return Err(format!("expected boxes, FP32 [count,4], got {boxes}"));
    }
    let is_scores = scores.datatype == DataType::Fp32
        && matches!(scores.dims.len(), 1 | 2)
        && (scores.dims[0] == boxes.dims[0] || scores.dims[0] < 0 || boxes.dims[0] < 0);
    if !is_scores {
        return Err(format!("expected scores, FP32 [count] or [count,classes], got {scores}"));
    }
    if !(0.0..=1.0).contains(&rule.overlap_max) || rule.score_min.is_nan() {
        return Err(format!("expected 'iou_threshold' of 0 to 1, got {}", rule.overlap_max));
    }
    let most = nms::CANDIDATES_MAX as usize;
    if !(1..=most).contains(&candidates) || !(1..=candidates).contains(&rule.kept_max) {
        return Err(format!(
            "expected 'candidates' of 1 to {most} and 'max_output' of 1 to 'candidates', got \
             {candidates} and {}",
            rule.kept_max
        ));
    }
    let types = [DataType::Fp32, DataType::Fp32, DataType::Int64, DataType::Int32];
    let forms = types.into_iter().zip(shapes::best(rule.kept_max));
    let forms = forms.map(|(datatype, dims)| Form { datatype, dims }).collect();
    Ok((Work::Nms { rule, candidates }, forms))
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
