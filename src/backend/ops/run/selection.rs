//! Stages that choose among what there is: the largest of a row, entries by their numbers, boxes.

use super::{Fault, Run, Value, columns, elements, elements_mut};
use crate::{
    device::kernels::{nms, top_k},
    inference::{DataType, Shape},
    memory::Buffer,
};

impl Run<'_> {
    pub(super) fn top_k(&self, input: &Value, k: usize) -> Result<Vec<Value>, Fault> {
        let columns = columns(&input.dims).map_err(Fault::Whole)?;
        if k > columns {
            return Err(Fault::Whole(format!("expected {k} elements or more, got {columns}")));
        }
        let mut dims = input.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = k as i64;
        }
        let mut values = self.buffer::<f32>(&dims)?;
        let mut places = self.buffer::<i64>(&dims)?;
        let (of_values, of_places) = (elements_mut(&mut values)?, elements_mut(&mut places)?);
        top_k::top_k(elements(input)?, columns, k, of_values, of_places);
        let value = |datatype, buffer: Buffer| Value {
            datatype,
            dims: dims.clone(),
            data: buffer.freeze(),
        };
        Ok(vec![value(DataType::Fp32, values), value(DataType::Int64, places)])
    }

    pub(super) fn argmax(&self, input: &Value) -> Result<Value, Fault> {
        let columns = columns(&input.dims).map_err(Fault::Whole)?;
        let mut dims: Shape = input.dims.iter().rev().skip(1).rev().copied().collect();
        if dims.is_empty() {
            dims = Shape::from([1]);
        }
        let mut places = self.buffer::<i64>(&dims)?;
        top_k::argmax(elements(input)?, columns, elements_mut(&mut places)?);
        Ok(Value { datatype: DataType::Int64, dims, data: places.freeze() })
    }

    pub(super) fn gather(&self, entries: &Value, indices: &Value) -> Result<Value, Fault> {
        let wide: Vec<i64> = match indices.datatype {
            DataType::Int32 => elements::<i32>(indices)?.iter().copied().map(i64::from).collect(),
            _ => elements(indices)?.to_vec(),
        };
        let count = entries.dims.first().map_or(0, |&dim| usize::try_from(dim).unwrap_or(0));
        let wanted = indices.dims.first().map_or(0, |&dim| usize::try_from(dim).unwrap_or(0));
        let row_bytes = entries.data.len() / self.rows.max(1);
        let entry_bytes = row_bytes / count.max(1);
        let dims: Shape = indices.dims.iter().chain(entries.dims.iter().skip(1)).copied().collect();
        let bytes = wanted.checked_mul(entry_bytes).and_then(|bytes| bytes.checked_mul(self.rows));
        let bytes = bytes.ok_or_else(|| Fault::Whole(format!("{dims} has too many elements")))?;
        let mut buffer = self.pool.allocate(bytes)?;
        let places = buffer.chunks_exact_mut(entry_bytes.max(1));
        for (at, (place, &index)) in places.zip(&wide).enumerate() {
            let row = at / wanted.max(1);
            let entry = usize::try_from(index).ok().filter(|&entry| entry < count);
            let entry = entry.ok_or_else(|| {
                Fault::Row(
                    row,
                    format!("expected indices of 0 to {}, got {index}", count as i64 - 1),
                )
            })?;
            let start = row * row_bytes + entry * entry_bytes;
            if let Some(from) = entries.data.get(start..start + entry_bytes) {
                place.copy_from_slice(from);
            }
        }
        Ok(Value { datatype: entries.datatype, dims, data: buffer.freeze() })
    }

    pub(super) fn nms(
        &self,
        boxes: &Value,
        scores: &Value,
        rule: &nms::Rule,
        candidates: usize,
    ) -> Result<Vec<Value>, Fault> {
        let count = boxes.dims.first().map_or(0, |&dim| usize::try_from(dim).unwrap_or(0));
        let classes = scores.dims.get(1).map_or(1, |&dim| usize::try_from(dim).unwrap_or(0));
        if scores.dims.first() != boxes.dims.first() {
            return Err(Fault::Whole(format!(
                "expected a score for each box, got scores {} and boxes {}",
                scores.dims, boxes.dims
            )));
        }
        let kept_max = rule.kept_max;
        let dims = Shape::from([kept_max as i64]);
        let mut best_boxes = self.buffer::<f32>(&[kept_max as i64, 4])?;
        let mut best_scores = self.buffer::<f32>(&dims)?;
        let mut best_classes = self.buffer::<i64>(&dims)?;
        let mut counts = self.buffer::<i32>(&[1])?;
        best_boxes.fill(0);
        best_scores.fill(0);
        elements_mut::<i64>(&mut best_classes)?.fill(-1);
        counts.fill(0);

        let all_boxes: &[[f32; 4]] = elements(boxes)?;
        let all_scores: &[f32] = elements(scores)?;
        let per_row = count * classes;
        let candidates = candidates.min(per_row);
        let (mut values, mut order) = (vec![0.0; candidates], vec![0; candidates]);
        for row in (0..self.rows).take_while(|_| candidates > 0) {
            let (Some(boxes), Some(scores)) = (
                all_boxes.get(row * count..(row + 1) * count),
                all_scores.get(row * per_row..(row + 1) * per_row),
            ) else {
                break;
            };
            top_k::top_k(scores, per_row, candidates, &mut values, &mut order);
            let kept = nms::nms(boxes, scores, classes, &order, rule);
            elements_mut::<i32>(&mut counts)?[row] = kept.len() as i32;
            for (at, entry) in kept.into_iter().enumerate() {
                let (entry, at) = (entry as usize, row * kept_max + at);
                elements_mut::<[f32; 4]>(&mut best_boxes)?[at] = boxes[entry / classes];
                elements_mut::<f32>(&mut best_scores)?[at] = scores[entry];
                elements_mut::<i64>(&mut best_classes)?[at] = (entry % classes) as i64;
            }
        }
        let value = |datatype, dims: &[i64], buffer: Buffer| Value {
            datatype,
            dims: Shape::from(dims),
            data: buffer.freeze(),
        };
        Ok(vec![
            value(DataType::Fp32, &[kept_max as i64, 4], best_boxes),
            value(DataType::Fp32, &dims, best_scores),
            value(DataType::Int64, &dims, best_classes),
            value(DataType::Int32, &[1], counts),
        ])
    }
}
