//! The files that pictures come in.

use png::{ColorType, Transformations};
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use crate::{
    device::kernels::image::SIDE_MAX,
    memory::{Exhausted, Reservation},
};

/// A picture's pixels: rows of interleaved channels.
pub(super) struct Pixels {
    pub bytes: Vec<u8>,
    pub width: i32,
    pub height: i32,
}

/// Why a file gives no picture.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("expected a JPEG or PNG file, got {0} bytes that are neither")]
    Unknown(usize),
    #[error(
        "the picture has {width} × {height} pixels: expected at most {max} of them and no side above {SIDE_MAX}"
    )]
    TooLarge { width: usize, height: usize, max: u64 },
    #[error("the JPEG file cannot be decoded: {0}")]
    Jpeg(String),
    #[error("the PNG file cannot be decoded: {0}")]
    Png(String),
    #[error(transparent)]
    Memory(#[from] Exhausted),
}

/// The size of a picture that is allowed to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(pub u64);

impl Limit {
    /// The sides, unless they are too long or there are too many pixels.
    fn check(self, width: usize, height: usize) -> Result<(i32, i32), DecodeError> {
        let too_large = DecodeError::TooLarge { width, height, max: self.0 };
        let side =
            |side: usize| i32::try_from(side).ok().filter(|side| (1..=SIDE_MAX).contains(side));
        match (side(width), side(height)) {
            (Some(x), Some(y)) if x as u64 * y as u64 <= self.0 => Ok((x, y)),
            _ => Err(too_large),
        }
    }
}

/// Decodes a file into pixels of `channels` channels: 1 is grey, 3 RGB, 4 RGB with opacity. What that
/// takes is charged to `memory` before it is taken.
pub(super) fn decode(
    file: &[u8],
    channels: u8,
    limit: Limit,
    memory: &mut Reservation,
) -> Result<Pixels, DecodeError> {
    if file.starts_with(&[0xff, 0xd8, 0xff]) {
        decode_jpeg(file, channels, limit, memory)
    } else if file.starts_with(b"\x89PNG\r\n\x1a\n") {
        decode_png(file, channels, limit, memory)
    } else {
        Err(DecodeError::Unknown(file.len()))
    }
}

/// What decoding takes for each pixel, about: four channels, and those before their conversion.
const DECODED_BYTES: usize = 8;

fn decode_jpeg(
    file: &[u8],
    channels: u8,
    limit: Limit,
    memory: &mut Reservation,
) -> Result<Pixels, DecodeError> {
    let options = DecoderOptions::default()
        // Else a file that was cut off gives a picture with a grey end.
        .set_strict_mode(true)
        .set_max_width(SIDE_MAX as usize)
        .set_max_height(SIDE_MAX as usize);
    let fault = |error: DecodeErrors| DecodeError::Jpeg(error.to_string());
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(fault)?;
    let (width, height) =
        decoder.dimensions().ok_or_else(|| DecodeError::Jpeg("it has no size".to_owned()))?;
    let (width, height) = limit.check(width, height)?;
    memory.grow(width as usize * height as usize * DECODED_BYTES)?;
    let wanted = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        Some(ColorSpace::YCbCr) if channels == 1 => ColorSpace::Luma,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let bytes = decoder.decode().map_err(fault)?;
    let given = decoder.output_colorspace().map_or(0, |colours| colours.num_components());
    of_channels(bytes, given, channels, width, height)
        .ok_or_else(|| DecodeError::Jpeg("its colours are of an unknown kind".to_owned()))
}

fn decode_png(
    file: &[u8],
    channels: u8,
    limit: Limit,
    memory: &mut Reservation,
) -> Result<Pixels, DecodeError> {
    let fault = |error: png::DecodingError| DecodeError::Png(error.to_string());
    let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
    // Whatever the depth and the palette: 8 bits a channel.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(fault)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let (width, height) = limit.check(width, height)?;
    let len = reader.output_buffer_size().ok_or(DecodeError::TooLarge {
        width: width as usize,
        height: height as usize,
        max: limit.0,
    })?;
    memory.grow(len.max(width as usize * height as usize * DECODED_BYTES))?;
    let mut bytes = vec![0; len];
    let frame = reader.next_frame(&mut bytes).map_err(fault)?;
    let given = match frame.color_type {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgba => 4,
        ColorType::Rgb | ColorType::Indexed => 3,
    };
    of_channels(bytes, given, channels, width, height)
        .ok_or_else(|| DecodeError::Png("its colours are of an unknown kind".to_owned()))
}

/// The weights of red, green and blue in grey, in parts of 65536 (ITU-R BT.601).
const LUMA: [u32; 3] = [19_595, 38_470, 7_471];

/// Pixels of `given` channels as pixels of `wanted` channels; `None` when there are too few bytes or
/// channels of no known meaning.
fn of_channels(
    bytes: Vec<u8>,
    given: usize,
    wanted: u8,
    width: i32,
    height: i32,
) -> Option<Pixels> {
    let count = width as usize * height as usize;
    let wanted = usize::from(wanted);
    if !(1..=4).contains(&given) || bytes.len() < count * given {
        return None;
    }
    if given == wanted {
        return Some(Pixels { bytes, width, height });
    }
    let mut converted = vec![0; count * wanted];
    for (to, from) in converted.chunks_exact_mut(wanted).zip(bytes.chunks_exact(given)) {
        let (colour, opacity) = match *from {
            [grey] => ([grey; 3], u8::MAX),
            [grey, opacity] => ([grey; 3], opacity),
            [red, green, blue] => ([red, green, blue], u8::MAX),
            [red, green, blue, opacity, ..] => ([red, green, blue], opacity),
            [] => ([0; 3], 0),
        };
        match to {
            [grey] if given > 2 => {
                let sum: u32 =
                    colour.iter().zip(LUMA).map(|(&part, of)| u32::from(part) * of).sum();
                *grey = ((sum + (1 << 15)) >> 16) as u8;
            }
            [grey] => *grey = colour[0],
            [red, green, blue, rest @ ..] => {
                [*red, *green, *blue] = colour;
                rest.fill(opacity);
            }
            _ => return None,
        }
    }
    Some(Pixels { bytes: converted, width, height })
}
