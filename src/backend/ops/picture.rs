//! What becomes of a picture of a given size.

use super::chain::{Anchor, Fit};
use crate::device::kernels::image::{Filter, Picture, SIDE_MAX, Target, Window};

/// What is cut out of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Crop {
    /// Height and width.
    Size([i32; 2]),
    /// A square whose sides are a share of the shorter side.
    Square(f64),
}

/// What a picture's size becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Resize {
    Fixed { size: [i32; 2], fit: Fit, anchor: Anchor },
    Shorter(i32),
}

/// Crops, at most one resize, and crops.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Geometry {
    pub before: Vec<Crop>,
    pub resize: Option<Resize>,
    pub after: Vec<Crop>,
}

/// Why a picture does not fit a chain.
#[derive(Debug, thiserror::Error)]
pub(super) enum GeometryError {
    #[error(
        "a picture of {width} × {height} pixels is too small to cut {crop_width} × {crop_height} out of it"
    )]
    Crop { width: i32, height: i32, crop_width: i32, crop_height: i32 },
    #[error(
        "a picture of {width} × {height} pixels would become one of {new_width} × {new_height}: expected sides of 1 to {SIDE_MAX}"
    )]
    Side { width: i32, height: i32, new_width: i64, new_height: i64 },
}

impl Crop {
    /// Width and height of what is cut out of a picture of this width and height.
    fn of(self, [width, height]: [i32; 2]) -> Result<[i32; 2], GeometryError> {
        let [crop_width, crop_height] = match self {
            Self::Size([height, width]) => [width, height],
            Self::Square(share) => [((f64::from(width.min(height)) * share) as i32).max(1); 2],
        };
        if crop_width > width || crop_height > height {
            return Err(GeometryError::Crop { width, height, crop_width, crop_height });
        }
        Ok([crop_width, crop_height])
    }
}

impl Geometry {
    /// The size of the output, if all pictures give the same: height and width.
    pub fn fixed_size(&self) -> Option<[i32; 2]> {
        let crops = self.after.iter().chain(match self.resize {
            None => self.before.as_slice(),
            Some(_) => &[],
        });
        let last = crops.last().copied();
        match (last, self.resize) {
            (Some(Crop::Size(size)), _) => Some(size),
            (Some(Crop::Square(share)), Some(Resize::Fixed { size, .. })) => Crop::Square(share)
                .of([size[1], size[0]])
                .ok()
                .map(|[width, height]| [height, width]),
            (Some(Crop::Square(_)), _) => None,
            (None, Some(Resize::Fixed { size, .. })) => Some(size),
            (None, _) => None,
        }
    }

    /// How a picture of this width and height is processed, and the width and height of its output.
    pub fn apply(
        &self,
        width: i32,
        height: i32,
        channels: i32,
    ) -> Result<(Picture, [i32; 2]), GeometryError> {
        let is_possible = |side| (0..=SIDE_MAX).contains(&side);
        if !is_possible(width) || !is_possible(height) {
            let (new_width, new_height) = (width.into(), height.into());
            return Err(GeometryError::Side { width, height, new_width, new_height });
        }
        let stride = width * channels;
        let mut window = Window { x: 0, y: 0, width, height };
        for crop in &self.before {
            let [width, height] = crop.of([window.width, window.height])?;
            window.x += (window.width - width) / 2;
            window.y += (window.height - height) / 2;
            (window.width, window.height) = (width, height);
        }
        let source = [window.width, window.height];
        let (canvas, mut output, mut size) = match self.resize {
            None => (source, [0, 0], source),
            Some(resize) => resize.apply(source)?,
        };
        for crop in &self.after {
            let smaller = crop.of(size)?;
            for axis in 0..2 {
                output[axis] += half_to_even(size[axis] - smaller[axis]);
            }
            size = smaller;
        }
        Ok((Picture { stride, window, canvas, output }, size))
    }
}

impl Resize {
    /// Canvas, place of the output in it, and size of the output, each as x and y.
    #[allow(clippy::type_complexity)]
    fn apply(
        self,
        [width, height]: [i32; 2],
    ) -> Result<([i32; 2], [i32; 2], [i32; 2]), GeometryError> {
        let (wide, high) = (i64::from(width), i64::from(height));
        let (canvas, size, anchor) = match self {
            Self::Shorter(length) => {
                let length = i64::from(length);
                let canvas = match wide <= high {
                    true => [length, (length * high / wide.max(1)).max(1)],
                    false => [(length * wide / high.max(1)).max(1), length],
                };
                (canvas, canvas, Anchor::TopLeft)
            }
            Self::Fixed { size: [to_height, to_width], fit, anchor } => {
                let (to_wide, to_high) = (i64::from(to_width), i64::from(to_height));
                // Which side decides: the one that shrinks more fits all of the picture, the other
                // leaves no border.
                let by_width = (to_wide * high <= to_high * wide) == (fit == Fit::Letterbox);
                let canvas = match fit {
                    Fit::Stretch => [to_wide, to_high],
                    _ if by_width => [to_wide, divide_rounded(high * to_wide, wide).max(1)],
                    _ => [divide_rounded(wide * to_high, high).max(1), to_high],
                };
                (canvas, [to_wide, to_high], anchor)
            }
        };
        let fits =
            |side: i64| i32::try_from(side).ok().filter(|side| (1..=SIDE_MAX).contains(side));
        let (Some(canvas_width), Some(canvas_height), Some(size_width), Some(size_height)) =
            (fits(canvas[0]), fits(canvas[1]), fits(size[0]), fits(size[1]))
        else {
            return Err(GeometryError::Side {
                width,
                height,
                new_width: canvas[0],
                new_height: canvas[1],
            });
        };
        let (canvas, size) = ([canvas_width, canvas_height], [size_width, size_height]);
        let output = match anchor {
            Anchor::TopLeft => [0, 0],
            Anchor::Center => [0, 1].map(|axis| (canvas[axis] - size[axis]).div_euclid(2)),
        };
        Ok((canvas, output, size))
    }
}

fn divide_rounded(value: i64, by: i64) -> i64 {
    let by = by.max(1);
    (2 * value + by) / (2 * by)
}

/// Half of a number, rounded to even as Python's `round` has it.
fn half_to_even(number: i32) -> i32 {
    let half = number / 2;
    if number % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// All of an image step but the picture's own part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Look {
    pub channels: usize,
    pub order: [i32; 4],
    pub mean: [f32; 4],
    pub scale: [f32; 4],
    pub fill: [f32; 4],
    pub filter: Filter,
    pub planar: bool,
}

impl Look {
    /// Pixels as they are.
    pub fn plain(channels: usize) -> Self {
        Self {
            channels,
            order: [0, 1, 2, 3],
            mean: [0.0; 4],
            scale: [1.0; 4],
            fill: [0.0; 4],
            filter: Filter::Nearest,
            planar: false,
        }
    }

    /// For an output of this width and height.
    pub fn target(&self, [width, height]: [i32; 2]) -> Target {
        Target {
            width,
            height,
            channels: self.channels as i32,
            order: self.order,
            mean: self.mean,
            scale: self.scale,
            fill: self.fill,
            filter: self.filter as i32,
            planar: i32::from(self.planar),
        }
    }
}
