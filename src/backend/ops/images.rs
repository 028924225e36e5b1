//! The image stages of a chain.

use bytemuck::Pod;

use super::{
    decode::{DecodeError, Limit, Pixels, decode},
    picture::{Geometry, GeometryError, Look},
    run::{Fault, Run, Value, elements_mut},
};
use crate::{
    device::kernels::image::{self, Element, ImageError, Scratch},
    inference::Shape,
    memory::Buffer,
};

/// An image stage.
pub(super) struct Pictures<'a> {
    pub encoded: Option<Limit>,
    pub geometry: &'a Geometry,
    pub look: &'a Look,
}

impl Run<'_> {
    /// The pictures of all rows: the dimensions of each and the elements.
    pub fn images<T: Element + Pod>(
        &self,
        input: &Value,
        pictures: &Pictures<'_>,
    ) -> Result<(Shape, Buffer), Fault> {
        let channels = pictures.look.channels;
        let mut files = pictures.encoded.map(|_| strings(&input.data));
        let mut scratch = Scratch::default();
        let mut made: Option<([i32; 2], Buffer)> = None;
        for row in 0..self.rows {
            let fault = |error: &dyn std::fmt::Display| Fault::Row(row, error.to_string());
            let mut decoded = None;
            let mut memory = self.pool.reservation();
            let (pixels, width, height): (&[u8], i32, i32) = match (pictures.encoded, &mut files) {
                (Some(limit), Some(files)) => {
                    let file = files.next().ok_or_else(|| fault(&"there is no file"))?;
                    let pixels = decode(file, channels as u8, limit, &mut memory);
                    let Pixels { bytes, width, height } =
                        decoded.insert(pixels.map_err(|error| match error {
                            DecodeError::Memory(exhausted) => Fault::Memory(exhausted),
                            error => fault(&error),
                        })?);
                    (bytes, *width, *height)
                }
                _ => row_pixels(input, row, self.rows)
                    .ok_or_else(|| fault(&"there are no pixels"))?,
            };
            let geometry = pictures.geometry.apply(width, height, channels as i32);
            let (geometry, size) = geometry.map_err(|error: GeometryError| fault(&error))?;
            let target = pictures.look.target(size);
            let (first_size, buffer) = match &mut made {
                Some(made) => made,
                None => {
                    let buffer = self.buffer::<T>(&picture_dims(pictures.look, size))?;
                    made.insert((size, buffer))
                }
            };
            if *first_size != size {
                return Err(fault(&unequal(size, *first_size)));
            }
            let output = elements_mut::<T>(buffer)?;
            let each = target.elements();
            let output = output.get_mut(row * each..(row + 1) * each).unwrap_or_default();
            image::picture(pixels, &geometry, &target, &mut scratch, output)
                .map_err(|error: ImageError| fault(&error))?;
        }
        match made {
            Some((size, buffer)) => Ok((picture_dims(pictures.look, size), buffer)),
            None => Err(Fault::Whole("there are no rows".to_owned())),
        }
    }
}

/// What is told of a picture that has another size than that of row 0; width and height.
pub(super) fn unequal([width, height]: [i32; 2], first: [i32; 2]) -> String {
    format!(
        "its picture becomes {width} × {height} pixels, that of row 0 {} × {}: a batch has one size",
        first[0], first[1]
    )
}

/// The pixels of one row, with their width and height.
fn row_pixels(input: &Value, row: usize, rows: usize) -> Option<(&[u8], i32, i32)> {
    let &[height, width, _] = &*input.dims else { return None };
    let each = input.data.len().checked_div(rows)?;
    let pixels = input.data.get(row * each..(row + 1) * each)?;
    Some((pixels, i32::try_from(width).ok()?, i32::try_from(height).ok()?))
}

/// The dimensions of a picture of this width and height.
pub(super) fn picture_dims(look: &Look, [width, height]: [i32; 2]) -> Shape {
    let (width, height, channels) = (width.into(), height.into(), look.channels as i64);
    if look.planar {
        Shape::from([channels, height, width])
    } else {
        Shape::from([height, width, channels])
    }
}

/// Strings in the wire's form; they were found well-formed when the request was admitted.
pub(super) fn strings(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = wire.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        wire = rest;
        Some(string)
    })
}
