//! Images of 8-bit pixels into a batch for a model, in one pass: crop, resize, crop or letterbox,
//! order of channels, mean and scale, layout, element type; `kernels/image.cu`.
//!
//! A picture's window is resized to a canvas, of which the output shows a part: a smaller part is a
//! crop, a larger one a letterbox. Positions are fractions of whole numbers, so that weights are exact
//! before they are rounded to float32.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::Grid;

/// The longest side of a picture's window, a canvas or an output.
pub const SIDE_MAX: i32 = 16384;

/// How the pixels of the canvas are made of those of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Filter {
    /// The pixel that holds the position.
    Nearest = 0,
    /// The four pixels about the position, by nearness.
    #[default]
    Bilinear = 1,
    /// When it shrinks, all pixels that come together in one, by nearness; otherwise as `Bilinear`.
    Antialias = 2,
}

/// One picture: what of it is shown, and where. The layout is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Picture {
    /// Bytes from a row to the next.
    pub stride: i32,
    /// The part of the picture that is resized.
    pub window: Window,
    /// What it is resized to: width and height.
    pub canvas: [i32; 2],
    /// Where in the canvas the output begins: x and y.
    pub output: [i32; 2],
}

/// A part of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Window {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

/// What all pictures of a batch become. The layout is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Target {
    /// In pixels.
    pub width: i32,
    /// In pixels.
    pub height: i32,
    /// Channels of a pixel, of the picture and of the output: 1 to 4.
    pub channels: i32,
    /// The output's channel c is the picture's channel `order[c]`.
    pub order: [i32; 4],
    /// Taken from each of the output's channels.
    pub mean: [f32; 4],
    /// What each of the output's channels is multiplied by after that.
    pub scale: [f32; 4],
    /// The output's channels beside the canvas, before mean and scale.
    pub fill: [f32; 4],
    /// A [`Filter`].
    pub filter: i32,
    /// 1 when each channel is a plane of its own (CHW), 0 when pixels are kept together (HWC).
    pub planar: i32,
}

/// Why a picture cannot be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A side is zero or longer than [`SIDE_MAX`].
    #[error("the {what} has {width} × {height} pixels: expected 1 to 16384 in each direction")]
    #[allow(missing_docs)]
    Side { what: &'static str, width: i32, height: i32 },
    /// The window is not inside of the pixels.
    #[error("the window {0:?} is not inside of the picture's pixels")]
    Window(Window),
    /// The target's channels are not 1 to 4 in an order of themselves.
    #[error("unexpected channels: {channels} in the order {order:?}")]
    #[allow(missing_docs)]
    Channels { channels: i32, order: [i32; 4] },
    /// The output has another length than the target says.
    #[error("the output has {got} elements: expected {expected}")]
    #[allow(missing_docs)]
    Output { expected: usize, got: usize },
}

/// How `image_*` is launched on a batch of `pictures`, at most [`PLACES_MAX`](super::PLACES_MAX).
pub fn grid(target: &Target, pictures: u32) -> Grid {
    let across = |side: i32, threads: u32| side.max(0).unsigned_abs().div_ceil(threads);
    Grid {
        blocks: [across(target.width, 32), across(target.height, 8), pictures],
        threads: [32, 8, 1],
        shared_bytes: 0,
    }
}

/// A type of output elements.
pub trait Element: Copy {
    /// The end of the kernel's name.
    const SUFFIX: &'static str;

    /// Converts as many elements as both slices have.
    fn convert(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";

    fn convert(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Element for u8 {
    const SUFFIX: &'static str = "u8";

    fn convert(from: &[f32], to: &mut [Self]) {
        super::cast::Narrow::narrow(from, to, 1.0, 0.0);
    }
}

impl Element for f16 {
    const SUFFIX: &'static str = "f16";

    fn convert(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";

    fn convert(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

/// Memory that one picture after another uses.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The weights of the columns, those of one output column behind those of the one before.
    weights: Vec<f32>,
    /// For each output column inside of the canvas its first source column and its weights' end.
    columns: Vec<(usize, usize)>,
    /// Source rows added up by their weights.
    sum: Vec<f32>,
    /// And of that, columns: the pixels of an output row that show a part of the canvas.
    row: Vec<f32>,
    /// A row of the output before its conversion.
    line: Vec<f32>,
}

impl Target {
    /// The elements of one picture's output.
    pub fn elements(&self) -> usize {
        let [width, height, channels] =
            [self.width, self.height, self.channels].map(|side| side.max(0) as usize);
        width * height * channels
    }

    fn check(&self) -> Result<(), ImageError> {
        check_sides("output", self.width, self.height)?;
        let Self { channels, order, .. } = *self;
        let is_possible = (1..=4).contains(&channels)
            && order.iter().take(channels as usize).all(|channel| (0..channels).contains(channel));
        if is_possible { Ok(()) } else { Err(ImageError::Channels { channels, order }) }
    }
}

impl Picture {
    /// Whether the window lies in `len` bytes of pixels, and all sides are within bounds.
    fn check(&self, len: usize, channels: i32) -> Result<(), ImageError> {
        let Self { stride, window, canvas, .. } = *self;
        check_sides("window", window.width, window.height)?;
        check_sides("canvas", canvas[0], canvas[1])?;
        let [x, y, stride] = [window.x, window.y, stride].map(i64::from);
        let row_end = (x + i64::from(window.width)) * i64::from(channels);
        let end = (y + i64::from(window.height) - 1) * stride + row_end;
        let is_inside = x >= 0 && y >= 0 && row_end <= stride && end <= len as i64;
        if is_inside { Ok(()) } else { Err(ImageError::Window(window)) }
    }
}

fn check_sides(what: &'static str, width: i32, height: i32) -> Result<(), ImageError> {
    let is_possible = |side: i32| (1..=SIDE_MAX).contains(&side);
    if is_possible(width) && is_possible(height) {
        Ok(())
    } else {
        Err(ImageError::Side { what, width, height })
    }
}

/// Makes `output` of one picture.
///
/// Rows are added up by their weights first and columns after that: the rows' part, the larger one
/// when a picture is shrunk, is one loop over neighbouring elements.
///
/// # Errors
/// When sizes do not fit each other.
pub fn picture<T: Element>(
    pixels: &[u8],
    picture: &Picture,
    target: &Target,
    scratch: &mut Scratch,
    output: &mut [T],
) -> Result<(), ImageError> {
    target.check()?;
    picture.check(pixels.len(), target.channels)?;
    let expected = target.elements();
    if output.len() != expected {
        return Err(ImageError::Output { expected, got: output.len() });
    }
    let channels = target.channels as usize;
    let shown = Columns::prepare(picture, target, scratch);
    for y in 0..target.height {
        let canvas_y = y + picture.output[1];
        let is_inside = (0..picture.canvas[1]).contains(&canvas_y) && !shown.columns.is_empty();
        if is_inside {
            let taps = Taps::new(canvas_y, picture.window.height, picture.canvas[1], target.filter);
            add_rows(pixels, picture, channels, &shown, &taps, &mut scratch.sum);
            match channels {
                1 => add_columns::<1>(&shown, scratch),
                2 => add_columns::<2>(&shown, scratch),
                3 => add_columns::<3>(&shown, scratch),
                _ => add_columns::<4>(&shown, scratch),
            }
        }
        write_row(target, &shown, is_inside, scratch, y as usize, output);
    }
    Ok(())
}

/// Of the output's columns those that show a part of the canvas, and the source columns for them.
struct Columns {
    columns: std::ops::Range<usize>,
    source: std::ops::Range<usize>,
}

impl Columns {
    fn prepare(picture: &Picture, target: &Target, scratch: &mut Scratch) -> Self {
        scratch.weights.clear();
        scratch.columns.clear();
        let first = (-picture.output[0]).clamp(0, target.width);
        let end = (picture.canvas[0] - picture.output[0]).clamp(first, target.width);
        let (mut source_first, mut source_end) = (usize::MAX, 0);
        for x in first..end {
            let taps = Taps::new(
                x + picture.output[0],
                picture.window.width,
                picture.canvas[0],
                target.filter,
            );
            scratch.weights.extend(taps.weights());
            scratch.columns.push((taps.first as usize, scratch.weights.len()));
            source_first = source_first.min(taps.first as usize);
            source_end = source_end.max(taps.last as usize + 1);
        }
        Self { columns: first as usize..end as usize, source: source_first..source_end }
    }
}

/// Adds up the rows of `taps` by their weights, as far as `shown` needs them.
fn add_rows(
    pixels: &[u8],
    picture: &Picture,
    channels: usize,
    shown: &Columns,
    taps: &Taps,
    sum: &mut Vec<f32>,
) {
    let window = picture.window;
    let len = shown.source.len() * channels;
    let start = (window.x as usize + shown.source.start) * channels;
    sum.clear();
    sum.resize(len, 0.0);
    for (j, weight) in (taps.first..).zip(taps.weights()) {
        let row = (window.y + j) as usize * picture.stride as usize + start;
        let row = pixels.get(row..row + len).unwrap_or_default();
        for (sum, &pixel) in sum.iter_mut().zip(row) {
            *sum += weight * f32::from(pixel);
        }
    }
}

/// Adds up the columns of what [`add_rows`] gave, by their weights. `C` is the number of channels.
fn add_columns<const C: usize>(shown: &Columns, scratch: &mut Scratch) {
    let Scratch { weights, columns, sum, row, .. } = scratch;
    row.clear();
    row.resize(columns.len() * C, 0.0);
    let source = sum.as_chunks::<C>().0;
    let mut begin = 0;
    for (pixel, &(first, end)) in row.as_chunks_mut::<C>().0.iter_mut().zip(&*columns) {
        let source = &source[first - shown.source.start..];
        for (weight, source) in weights[begin..end].iter().zip(source) {
            for (value, source) in pixel.iter_mut().zip(source) {
                *value += weight * source;
            }
        }
        begin = end;
    }
}

fn write_row<T: Element>(
    target: &Target,
    shown: &Columns,
    is_inside: bool,
    scratch: &mut Scratch,
    y: usize,
    output: &mut [T],
) {
    let (width, channels) = (target.width as usize, target.channels as usize);
    let plane = width * target.height as usize;
    let Scratch { row, line, .. } = scratch;
    line.clear();
    line.resize(width * channels, 0.0);
    // Where in the line a channel's pixels begin, and how far apart they are.
    let (apart, step) = if target.planar != 0 { (width, 1) } else { (1, channels) };
    for c in 0..channels {
        let (mean, scale) = (target.mean[c], target.scale[c]);
        let fill = (target.fill[c] - mean) * scale;
        let of_channel = row.iter().skip(target.order[c] as usize).step_by(channels);
        let inside = if is_inside { shown.columns.clone() } else { 0..0 };
        let mut places = line[c * apart..].iter_mut().step_by(step).take(width);
        places.by_ref().take(inside.start).for_each(|place| *place = fill);
        for (place, value) in places.by_ref().take(inside.len()).zip(of_channel) {
            *place = (value - mean) * scale;
        }
        places.for_each(|place| *place = fill);
    }
    if target.planar == 0 {
        T::convert(line, &mut output[y * width * channels..][..width * channels]);
        return;
    }
    for (c, line) in line.chunks_exact(width).enumerate() {
        T::convert(line, &mut output[c * plane + y * width..][..width]);
    }
}

/// The source pixels that make up one output pixel, along one axis.
struct Taps {
    first: i32,
    last: i32,
    centre: i32,
    reach: i32,
    canvas: i32,
    total: f32,
}

impl Taps {
    /// Those of pixel `at` of a canvas that `source` pixels are resized to.
    fn new(at: i32, source: i32, canvas: i32, filter: i32) -> Self {
        let centre = (2 * at + 1) * source;
        if filter == Filter::Nearest as i32 {
            let nearest = centre / (2 * canvas);
            return Self { first: nearest, last: nearest, centre, reach: 0, canvas, total: 1.0 };
        }
        let is_wide = filter == Filter::Antialias as i32 && source > canvas;
        let reach = 2 * if is_wide { source } else { canvas };
        let first = (centre - reach - canvas).div_euclid(2 * canvas) + 1;
        let last = -(-(centre + reach - canvas)).div_euclid(2 * canvas) - 1;
        let (first, last) = (first.max(0), last.min(source - 1));
        let mut taps = Self { first, last, centre, reach, canvas, total: 1.0 };
        taps.total = (first..=last).map(|i| taps.weight(i)).sum::<i32>() as f32;
        taps
    }

    /// The weight of source pixel `i`, in parts of `total`.
    fn weight(&self, i: i32) -> i32 {
        if self.reach == 0 {
            return 1;
        }
        self.reach - ((2 * i + 1) * self.canvas - self.centre).abs()
    }

    fn weights(&self) -> impl Iterator<Item = f32> {
        (self.first..=self.last).map(|i| self.weight(i) as f32 / self.total)
    }
}
