//! Neighbouring steps on pictures, made one.

use super::{
    chain::{Each, FilterName, Layout, Operation, Step},
    decode::Limit,
    picture::{Crop, Geometry, Look, Resize},
    plan::{Form, Slot},
};
use crate::{
    device::kernels::{image, image::SIDE_MAX},
    inference::{DataType, Shape},
};

/// An image step that further steps may join.
pub(super) struct Joined {
    pub input: Slot,
    pub encoded: Option<Limit>,
    pub geometry: Geometry,
    pub look: Look,
    /// Float32 once it has been normalised.
    pub datatype: DataType,
    pub label: String,
    /// Whether its element type is decided, and so nothing can join any more.
    pub is_cast: bool,
}

impl Joined {
    /// The beginning of an image step, if this step is one on pictures.
    pub fn begin(step: &Step, inputs: &[Slot], forms: &[Form]) -> Result<Option<Self>, String> {
        let is_image = match step.operation {
            Operation::Decode { .. }
            | Operation::Crop { .. }
            | Operation::Resize { .. }
            | Operation::Channels { .. }
            | Operation::Normalize { .. }
            | Operation::Layout { .. } => true,
            Operation::Cast { .. }
            | Operation::Pad { .. }
            | Operation::Unpad {}
            | Operation::Gather {}
            | Operation::Softmax {}
            | Operation::LogSoftmax {}
            | Operation::TopK { .. }
            | Operation::Argmax {}
            | Operation::Nms { .. } => false,
        };
        if !is_image {
            return Ok(None);
        }
        let &[input] = inputs else {
            return Err(format!("expected one input, got {}", inputs.len()));
        };
        let form = &forms[input];
        let (encoded, channels) = if let Operation::Decode { channels, max_pixels } = step.operation
        {
            if form.datatype != DataType::Bytes || *form.dims != [1] {
                return Err(format!("expected BYTES [1], one file a row, got {form}"));
            }
            if !matches!(channels, 1 | 3 | 4) {
                return Err(format!("expected 1, 3 or 4 as 'channels', got {channels}"));
            }
            (Some(Limit(max_pixels)), usize::from(channels))
        } else {
            let channels = match (&*form.dims, form.datatype) {
                (&[_, _, channels @ 1..=4], DataType::Uint8) => channels as usize,
                _ => {
                    return Err(format!(
                        "expected pixels, UINT8 [height,width,channels] with 1 to 4 channels, got {form}"
                    ));
                }
            };
            (None, channels)
        };
        Ok(Some(Self {
            input,
            encoded,
            geometry: Geometry::default(),
            look: Look::plain(channels),
            datatype: DataType::Uint8,
            label: String::new(),
            is_cast: false,
        }))
    }

    /// The type and dimensions of what it gives.
    pub fn form(&self) -> Form {
        let [height, width] =
            self.geometry.fixed_size().map_or([-1, -1], |size| size.map(i64::from));
        let channels = self.look.channels as i64;
        let dims = match self.look.planar {
            true => [channels, height, width],
            false => [height, width, channels],
        };
        Form { datatype: self.datatype, dims: Shape::from(dims) }
    }

    /// Lets a step join; `false` when it is of another kind.
    pub fn join(&mut self, step: &Step) -> Result<bool, String> {
        if !self.take(&step.operation)? {
            return Ok(false);
        }
        if !self.label.is_empty() {
            self.label.push_str(", ");
        }
        self.label.push_str(&step.label);
        Ok(true)
    }

    fn take(&mut self, operation: &Operation) -> Result<bool, String> {
        let channels = self.look.channels;
        let is_normalised = self.datatype != DataType::Uint8;
        match operation {
            Operation::Decode { .. } if self.label.is_empty() => {}
            Operation::Crop { .. } | Operation::Resize { .. } if is_normalised => {
                return Err("must come before 'normalize'".to_owned());
            }
            Operation::Crop { size, square } => {
                let crop = match (*size, *square) {
                    (Some(size), None) => Crop::Size(sides(size)?),
                    (None, Some(share)) if share > 0.0 && share <= 1.0 => Crop::Square(share),
                    (None, Some(share)) => {
                        return Err(format!("expected 'square' above 0 and up to 1, got {share}"));
                    }
                    _ => return Err("expected either 'size' or 'square'".to_owned()),
                };
                match self.geometry.resize {
                    None => self.geometry.before.push(crop),
                    Some(_) => self.geometry.after.push(crop),
                }
            }
            Operation::Resize { size, shorter, fit, anchor, filter, fill } => {
                if self.geometry.resize.is_some() {
                    return Err(
                        "a picture is resized once; name what is to be resized again".to_owned()
                    );
                }
                self.geometry.resize = Some(match (*size, *shorter) {
                    (Some(size), None) => {
                        Resize::Fixed { size: sides(size)?, fit: *fit, anchor: *anchor }
                    }
                    (None, Some(length)) => Resize::Shorter(sides([length; 2])?[0]),
                    _ => return Err("expected either 'size' or 'shorter'".to_owned()),
                });
                self.look.filter = match filter {
                    FilterName::Nearest => image::Filter::Nearest,
                    FilterName::Bilinear => image::Filter::Bilinear,
                    FilterName::Antialias => image::Filter::Antialias,
                };
                self.look.fill = each(fill, channels, "fill")?;
            }
            Operation::Channels { order } => {
                let places = channel_order(order, channels)?;
                let Look { order, mean, scale, fill, .. } = &mut self.look;
                *order = places.map(|place| order[place]);
                *mean = places.map(|place| mean[place]);
                *scale = places.map(|place| scale[place]);
                *fill = places.map(|place| fill[place]);
            }
            Operation::Normalize { scale, mean, std } => {
                let (means, stds) = (each(mean, channels, "mean")?, each(std, channels, "std")?);
                if *scale == 0.0 || !scale.is_finite() || stds[..channels].contains(&0.0) {
                    return Err("expected 'scale' and 'std' other than 0".to_owned());
                }
                for c in 0..channels {
                    // (v - m) * s, and of that (x * scale - mean) / std.
                    let before = self.look.scale[c];
                    self.look.mean[c] += means[c] / scale / before;
                    self.look.scale[c] = before * scale / stds[c];
                }
                self.datatype = DataType::Fp32;
            }
            Operation::Layout { to } => self.look.planar = *to == Layout::Chw,
            Operation::Cast { to, scale, zero_point }
                if (*scale, *zero_point) == (1.0, 0.0)
                    && matches!(to.0, DataType::Fp32 | DataType::Fp16 | DataType::Bf16) =>
            {
                self.datatype = to.0;
                self.is_cast = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn sides(size: [i32; 2]) -> Result<[i32; 2], String> {
    match size.iter().all(|side| (1..=SIDE_MAX).contains(side)) {
        true => Ok(size),
        false => Err(format!("expected sides of 1 to {SIDE_MAX}, got {size:?}")),
    }
}

fn each(numbers: &Each, channels: usize, what: &str) -> Result<[f32; 4], String> {
    numbers.of(channels).ok_or_else(|| {
        format!(
            "expected one number or {channels} as '{what}', one for each channel, got {numbers:?}"
        )
    })
}

/// Where in RGB, RGBA or grey the channels of `order` are.
fn channel_order(order: &str, channels: usize) -> Result<[usize; 4], String> {
    let names = match channels {
        1 => "L",
        3 => "RGB",
        4 => "RGBA",
        _ => "LA",
    };
    let mut places = [0, 1, 2, 3];
    let mut seen = 0_u32;
    let found = order.chars().map(|channel| names.find(channel));
    for (place, found) in places.iter_mut().zip(found) {
        *place = found.unwrap_or(usize::MAX);
        seen |= found.map_or(0, |found| 1 << found);
    }
    if order.chars().count() == channels && seen.count_ones() as usize == channels {
        Ok(places)
    } else {
        Err(format!("expected 'order' to be the letters of {names} in any order, got '{order}'"))
    }
}
