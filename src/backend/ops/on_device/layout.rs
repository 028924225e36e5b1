//! What each stage makes of a batch, before it runs.

use bytemuck::{NoUninit, bytes_of, cast_slice};
use bytes::Bytes;

use super::{
    super::{
        images::picture_dims,
        picture::{Geometry, Look},
        plan::{Stage, Work},
        run::indices,
        shapes::{
            Gathering, Padding, Suppression, Unpadding, best, columns, largest, reduced, too_many,
        },
    },
    ready,
};
use crate::{
    device::kernels::image::Picture,
    inference::{DataType, Shape},
};

/// What a stage makes of a batch.
#[derive(Default)]
pub(super) struct Made {
    pub dims: Vec<Shape>,
    /// What its launches depend on.
    pub numbers: Vec<u64>,
    /// What it reads beside its tensors.
    pub tables: Vec<Bytes>,
    /// Bytes of what lies between its launches.
    pub scratch: Vec<usize>,
    /// Where the content of rows can be at fault, of how many entries each row has its choice.
    pub entries: Option<usize>,
}

/// The size of a tensor with these dimensions in each row.
pub(super) fn bytes(dims: &Shape, datatype: DataType, rows: usize) -> Option<usize> {
    let count = usize::try_from(dims.element_count()?).ok()?;
    count.checked_mul(rows)?.checked_mul(datatype.size()?)
}

fn table<T: NoUninit>(entries: &[T]) -> Bytes {
    Bytes::copy_from_slice(cast_slice(entries))
}

/// What a stage makes of rows whose tensors have these dimensions; `ready` is that of its inputs whose content
/// decides, if there is one, with its type.
pub(super) fn make(
    stage: &Stage,
    given: &[&Shape],
    rows: usize,
    ready: Option<(&Bytes, DataType)>,
) -> Result<Made, String> {
    let &[first, ..] = given else { return Err("it has no input".to_owned()) };
    let second = given.get(1).copied().ok_or_else(|| "it has one input".to_owned());
    let plain = |dims, columns| Made { dims, numbers: vec![columns as u64], ..Made::default() };
    Ok(match &stage.work {
        Work::Cast { .. } => Made { dims: vec![first.clone()], ..Made::default() },
        Work::Softmax | Work::LogSoftmax => plain(vec![first.clone()], columns(first)?),
        Work::TopK { k } => {
            let (dims, columns) = largest(first, *k)?;
            plain(vec![dims.clone(), dims], columns)
        }
        Work::Argmax => {
            let (dims, columns) = reduced(first)?;
            plain(vec![dims], columns)
        }
        Work::Image { geometry, look, .. } => {
            pictures(geometry, look, first, rows, ready.map(|it| it.0))?
        }
        Work::Pad { to, truncate, .. } => {
            let padding = Padding::of(first, *to, *truncate)?;
            let row = padding.dims.element_count().ok_or_else(|| too_many(&padding.dims))?;
            let offsets = |each| {
                let offsets = padding.offsets(rows, each).map(|offset| offset as u64);
                table(&offsets.collect::<Vec<_>>())
            };
            let mut made = Made {
                dims: vec![padding.dims.clone()],
                numbers: vec![row],
                tables: vec![offsets(padding.each)],
                ..Made::default()
            };
            if stage.outputs.len() > 1 {
                made.dims.push(Shape::from([padding.length as i64]));
                made.numbers.push(padding.length as u64);
                made.tables.push(offsets(1));
            }
            made
        }
        Work::Unpad => {
            let (lengths, datatype) = ready.ok_or("it has no lengths")?;
            let length = indices(lengths, datatype).first().copied().unwrap_or_default();
            let unpadding =
                Unpadding::of(first, length).map_err(|told| format!("row 0: {told}"))?;
            let offsets: Vec<u64> = unpadding.offsets(rows).map(|offset| offset as u64).collect();
            Made {
                numbers: vec![(unpadding.given * unpadding.each) as u64],
                dims: vec![unpadding.dims],
                tables: vec![table(&offsets)],
                ..Made::default()
            }
        }
        Work::Gather => {
            let Gathering { dims, count, wanted, each } = Gathering::of(first, second?)?;
            Made {
                dims: vec![dims],
                numbers: [count, wanted, each].map(|number| number as u64).to_vec(),
                entries: Some(count),
                ..Made::default()
            }
        }
        Work::Nms { rule, candidates } => {
            let Suppression { count, classes, candidates } =
                Suppression::of(first, second?, *candidates)?;
            let bytes = |each: usize, size: usize| {
                each.checked_mul(rows)?.checked_mul(size).filter(|_| u32::try_from(rows).is_ok())
            };
            let scratch = [
                bytes(candidates, size_of::<f32>()),
                bytes(candidates, size_of::<i64>()),
                bytes(rule.kept_max, size_of::<i64>()),
            ];
            let scratch = scratch.into_iter().collect::<Option<_>>();
            Made {
                dims: best(rule.kept_max).to_vec(),
                numbers: [count, classes, candidates].map(|number| number as u64).to_vec(),
                scratch: scratch.ok_or_else(|| too_many(first))?,
                ..Made::default()
            }
        }
    })
}

fn pictures(
    geometry: &Geometry,
    look: &Look,
    given: &Shape,
    rows: usize,
    ready: Option<&Bytes>,
) -> Result<Made, String> {
    // Width and height of each row's picture, and where its pixels lie if that is no matter of course.
    let (sides, places): (Vec<[i32; 2]>, Vec<u64>) = match (ready, &**given) {
        (Some(ready), _) => {
            let found = ready::found(ready, rows);
            let found = found.ok_or("expected as many pictures as there are rows")?;
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
    for (row, [width, height]) in sides.into_iter().enumerate() {
        let applied = geometry.apply(width, height, look.channels as i32);
        let (picture, size) = applied.map_err(|error| format!("row {row}: {error}"))?;
        if *made.get_or_insert(size) != size {
            return Err("its pictures become ones of several sizes".to_owned());
        }
        pictures.push(picture);
    }
    let size = made.ok_or("there are no rows")?;
    let mut numbers = size.map(|side| u64::from(side.unsigned_abs())).to_vec();
    numbers.extend(places);
    Ok(Made {
        dims: vec![picture_dims(look, size)],
        numbers,
        tables: vec![table(&pictures), Bytes::copy_from_slice(bytes_of(&look.target(size)))],
        ..Made::default()
    })
}
