//! What each stage makes of a batch, before it runs.

use bytemuck::bytes_of;
use bytes::Bytes;

use super::{
    super::{images::picture_dims, plan::Work, run::columns},
    ready,
};
use crate::{
    device::kernels::image::Picture,
    inference::{DataType, Shape},
};

/// What a stage makes of a batch.
pub(super) struct Made {
    pub dims: Vec<Shape>,
    /// What its launch depends on.
    pub numbers: Vec<u64>,
    /// What it reads beside its tensors.
    pub tables: Vec<Bytes>,
}

/// The size of a tensor with these dimensions in each row.
pub(super) fn bytes(dims: &Shape, datatype: DataType, rows: usize) -> Option<usize> {
    let count = usize::try_from(dims.element_count()?).ok()?;
    count.checked_mul(rows)?.checked_mul(datatype.size()?)
}

/// What a stage makes of rows whose first tensor has these dimensions; `ready` is that tensor where files were
/// made ready.
pub(super) fn make(
    work: &Work,
    given: &Shape,
    rows: usize,
    ready: Option<&Bytes>,
) -> Result<Made, String> {
    let plain = |dims, numbers| Made { dims, numbers, tables: Vec::new() };
    Ok(match work {
        Work::Cast { .. } => plain(vec![given.clone()], Vec::new()),
        Work::Softmax | Work::LogSoftmax => {
            plain(vec![given.clone()], vec![columns(given)? as u64])
        }
        Work::TopK { k } => {
            let columns = columns(given)?;
            if *k > columns {
                return Err(format!("expected {k} elements or more, got {columns}"));
            }
            let mut dims = given.clone();
            if let Some(last) = dims.last_mut() {
                *last = *k as i64;
            }
            plain(vec![dims.clone(), dims], vec![columns as u64])
        }
        Work::Argmax => {
            let columns = columns(given)?;
            let mut dims: Shape = given.iter().rev().skip(1).rev().copied().collect();
            if dims.is_empty() {
                dims = Shape::from([1]);
            }
            plain(vec![dims], vec![columns as u64])
        }
        Work::Image { geometry, look, .. } => {
            // Width and height of each row's picture, and where its pixels lie if that is no matter of course.
            let (sides, places): (Vec<[i32; 2]>, Vec<u64>) = match (ready, &**given) {
                (Some(ready), _) => {
                    let found = ready::found(ready, rows)
                        .ok_or("expected as many pictures as there are rows")?;
                    let places = found.iter().flat_map(|it| [it.pixels.start, it.pixels.end]);
                    let places = places.map(|place| place as u64).collect();
                    (found.iter().map(|it| it.sides).collect(), places)
                }
                (None, &[height, width, _]) => {
                    let side = |side: i64| i32::try_from(side).unwrap_or(i32::MAX);
                    (vec![[side(width), side(height)]; rows], Vec::new())
                }
                _ => return Err(format!("expected pixels, got {given}")),
            };
            let mut pictures: Vec<Picture> = Vec::with_capacity(rows);
            let mut made = None;
            for [width, height] in sides {
                let applied = geometry.apply(width, height, look.channels as i32);
                let (picture, size) = applied.map_err(|error| error.to_string())?;
                if *made.get_or_insert(size) != size {
                    return Err("its pictures become ones of several sizes".to_owned());
                }
                pictures.push(picture);
            }
            let size = made.ok_or("there are no rows")?;
            let mut numbers = size.map(|side| u64::from(side.unsigned_abs())).to_vec();
            numbers.extend(places);
            Made {
                dims: vec![picture_dims(look, size)],
                numbers,
                tables: vec![
                    Bytes::copy_from_slice(bytemuck::cast_slice(&pictures)),
                    Bytes::copy_from_slice(bytes_of(&look.target(size))),
                ],
            }
        }
        Work::Pad { .. } | Work::Gather | Work::Nms { .. } => {
            return Err("does not run on a device".to_owned());
        }
    })
}
