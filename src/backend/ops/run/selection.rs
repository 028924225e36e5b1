//! Stages that choose among what there is: the largest of a row, entries by their numbers, boxes.

use super::{
    super::shapes::{Gathering, Suppression, best, largest, reduced},
    Fault, Run, Value, elements, elements_mut, indices,
};
use crate::{
    device::kernels::{
        nms::{self, Best},
        take, top_k,
    },
    inference::DataType,
    memory::Buffer,
};

impl Run<'_> {
    pub(super) fn top_k(&self, input: &Value, k: usize) -> Result<Vec<Value>, Fault> {
        let (dims, columns) = largest(&input.dims, k).map_err(Fault::Whole)?;
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
        let (dims, columns) = reduced(&input.dims).map_err(Fault::Whole)?;
        let mut places = self.buffer::<i64>(&dims)?;
        top_k::argmax(elements(input)?, columns, elements_mut(&mut places)?);
        Ok(Value { datatype: DataType::Int64, dims, data: places.freeze() })
    }

    pub(super) fn gather(&self, entries: &Value, named: &Value) -> Result<Value, Fault> {
        let gathering = Gathering::of(&entries.dims, &named.dims).map_err(Fault::Whole)?;
        let of_indices = indices(&named.data, named.datatype);
        let Gathering { dims, count, wanted, each } = gathering;
        for (row, indices) in of_indices.chunks(wanted.max(1)).enumerate() {
            if let Some((_, index)) = take::first_fault(indices, count) {
                return Err(Fault::Row(row, Gathering::fault(count, index)));
            }
        }
        let size = entries.datatype.size().unwrap_or(1);
        let mut buffer = self.memory(&dims, size)?;
        take::take(&entries.data, &of_indices, &mut buffer, [count, wanted, each * size]);
        Ok(Value { datatype: entries.datatype, dims, data: buffer.freeze() })
    }

    pub(super) fn nms(
        &self,
        boxes: &Value,
        scores: &Value,
        rule: &nms::Rule,
        candidates: usize,
    ) -> Result<Vec<Value>, Fault> {
        let suppression = Suppression::of(&boxes.dims, &scores.dims, candidates);
        let suppression = suppression.map_err(Fault::Whole)?;
        let Suppression { count, classes, candidates } = suppression;
        let (kept_max, per_row) = (rule.kept_max, suppression.scores());
        let dims = best(kept_max);
        let mut best_boxes = self.buffer::<f32>(&dims[0])?;
        let mut best_scores = self.buffer::<f32>(&dims[1])?;
        let mut best_classes = self.buffer::<i64>(&dims[2])?;
        let mut counts = self.buffer::<i32>(&dims[3])?;
        counts.fill(0);

        let (boxes, scores): (&[[f32; 4]], &[f32]) = (elements(boxes)?, elements(scores)?);
        let mut kept = vec![-1; self.rows * kept_max];
        let (mut values, mut order) = (vec![0.0; candidates], vec![0; candidates]);
        for row in (0..self.rows).take_while(|_| candidates > 0) {
            let (Some(boxes), Some(scores)) = (
                boxes.get(row * count..(row + 1) * count),
                scores.get(row * per_row..(row + 1) * per_row),
            ) else {
                break;
            };
            top_k::top_k(scores, per_row, candidates, &mut values, &mut order);
            let of_row = nms::nms(boxes, scores, classes, &order, rule);
            elements_mut::<i32>(&mut counts)?[row] = of_row.len() as i32;
            kept[row * kept_max..][..of_row.len()].copy_from_slice(&of_row);
        }
        let results = Best {
            boxes: elements_mut(&mut best_boxes)?,
            scores: elements_mut(&mut best_scores)?,
            classes: elements_mut(&mut best_classes)?,
        };
        nms::results(boxes, scores, &kept, [count, classes, kept_max], results);
        let types = [DataType::Fp32, DataType::Fp32, DataType::Int64, DataType::Int32];
        let buffers = [best_boxes, best_scores, best_classes, counts];
        let made = types.into_iter().zip(dims).zip(buffers);
        let value = |((datatype, dims), buffer): (_, Buffer)| Value {
            datatype,
            dims,
            data: buffer.freeze(),
        };
        Ok(made.map(value).collect())
    }
}
