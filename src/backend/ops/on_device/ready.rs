//! Files that were made ready for a device: in the place of each string that was a file there is one that begins
//! with the picture's width and height and goes on with its pixels.

use std::ops::Range;

use bytes::Bytes;

use super::super::{
    decode::{DecodeError, Pixels, decode},
    images::{picture_dims, strings, unequal},
    plan::{Stage, Work},
    run::Fault,
};
use crate::{backend::Prepared, memory::BufferPool};

/// Bytes of a string's length, as the wire has it, of a width and of a height.
const NUMBER: usize = 4;
const HEAD: usize = 3 * NUMBER;

/// A picture among the bytes of a tensor.
pub(super) struct Found {
    /// Width and height.
    pub sides: [i32; 2],
    /// Where its pixels lie.
    pub pixels: Range<usize>,
}

/// Decodes the files of a request.
pub(super) fn pictures(
    stage: &Stage,
    rows: usize,
    files: &Bytes,
    pool: &BufferPool,
) -> Result<Prepared, Fault> {
    let Work::Image { encoded: Some(limit), geometry, look, .. } = &stage.work else {
        return Err(Fault::Whole("it decodes no file".to_owned()));
    };
    let mut files = strings(files);
    let mut memory = pool.reservation();
    let mut decoded: Vec<Pixels> = Vec::with_capacity(rows);
    let mut first_size = None;
    for row in 0..rows {
        let fault = |error: &dyn std::fmt::Display| Fault::Row(row, error.to_string());
        let file = files.next().ok_or_else(|| fault(&"there is no file"))?;
        let pixels = decode(file, look.channels as u8, *limit, &mut memory);
        let pixels = pixels.map_err(|error| match error {
            DecodeError::Memory(exhausted) => Fault::Memory(exhausted),
            error => fault(&error),
        })?;
        // What is too small to be cut out of is this request's fault, not that of its batch.
        let applied = geometry.apply(pixels.width, pixels.height, look.channels as i32);
        let (_, size) = applied.map_err(|error| fault(&error))?;
        let first = *first_size.get_or_insert(size);
        if first != size {
            return Err(fault(&unequal(size, first)));
        }
        decoded.push(pixels);
    }
    let bytes = decoded.iter().map(|it| HEAD + it.bytes.len()).sum();
    let mut buffer = pool.allocate(bytes)?;
    let mut rest = &mut buffer[..];
    for (row, Pixels { bytes, width, height }) in decoded.into_iter().enumerate() {
        let len = u32::try_from(HEAD - NUMBER + bytes.len());
        let len = len.map_err(|_| Fault::Row(row, "the picture is too large".to_owned()))?;
        let (place, behind) = std::mem::take(&mut rest).split_at_mut(HEAD + bytes.len());
        let (head, pixels) = place.split_at_mut(HEAD);
        let numbers = [len, width.unsigned_abs(), height.unsigned_abs()];
        for (place, number) in head.chunks_exact_mut(NUMBER).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        pixels.copy_from_slice(&bytes);
        rest = behind;
    }
    let becomes = first_size.map(|size| picture_dims(look, size)).unwrap_or_default();
    Ok(Prepared { data: buffer.freeze(), becomes })
}

/// The pictures of a tensor that was made ready; none where it does not hold `rows` of them.
pub(super) fn found(ready: &Bytes, rows: usize) -> Option<Vec<Found>> {
    let first = ready.as_ptr().addr();
    let pictures = strings(ready).take(rows).map(|picture| {
        let (numbers, pixels) = picture.split_at_checked(2 * NUMBER)?;
        let side = |bytes: &[u8]| i32::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok();
        let sides = [side(numbers.get(..NUMBER)?)?, side(numbers.get(NUMBER..)?)?];
        let start = pixels.as_ptr().addr() - first;
        Some(Found { sides, pixels: start..start + pixels.len() })
    });
    let pictures: Vec<Found> = pictures.collect::<Option<_>>()?;
    (pictures.len() == rows).then_some(pictures)
}
