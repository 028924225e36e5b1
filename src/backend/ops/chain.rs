//! The words of a chain: what the configuration's parameter `chain` holds, read and not yet
//! understood.

use serde::Deserialize;
use serde_json::Value;

use crate::inference::DataType;

/// The most steps of a chain.
const STEPS_MAX: usize = 64;

/// One step of a chain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// The tensors it takes, by name; empty for what the step before gives.
    pub inputs: Vec<String>,
    /// The names of what it gives; empty where nobody but the next step needs it.
    pub outputs: Vec<String>,
    /// What it does.
    pub operation: Operation,
    /// For messages: its number, from 1, and the name of the operation.
    pub label: String,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Operation {
    /// A JPEG or PNG file into pixels.
    Decode {
        #[serde(default = "rgb")]
        channels: u8,
        #[serde(default = "pixels_max")]
        max_pixels: u64,
    },
    /// The middle of a picture.
    Crop {
        /// Height and width.
        size: Option<[i32; 2]>,
        /// A square whose sides are this share of the picture's shorter side.
        square: Option<f64>,
    },
    /// A picture of another size.
    Resize {
        /// Height and width.
        size: Option<[i32; 2]>,
        /// The length of the shorter side; the other follows.
        shorter: Option<i32>,
        #[serde(default)]
        fit: Fit,
        #[serde(default)]
        anchor: Anchor,
        #[serde(default)]
        filter: FilterName,
        #[serde(default)]
        fill: Each,
    },
    /// Channels in another order.
    Channels {
        order: String,
    },
    /// `(x * scale - mean) / std` for each channel.
    Normalize {
        #[serde(default = "one")]
        scale: f32,
        #[serde(default)]
        mean: Each,
        #[serde(default = "each_one")]
        std: Each,
    },
    /// Channels as planes, or pixels kept together.
    Layout {
        to: Layout,
    },
    /// Another element type.
    Cast {
        to: TypeName,
        #[serde(default = "one")]
        scale: f32,
        #[serde(default)]
        zero_point: f32,
    },
    /// Rows of one length.
    Pad {
        length: Option<i64>,
        multiple: Option<i64>,
        #[serde(default)]
        value: f64,
        #[serde(default)]
        truncate: bool,
    },
    /// The beginnings of rows.
    Unpad {},
    /// The entries that indices name.
    Gather {},
    Softmax {},
    LogSoftmax {},
    TopK {
        k: u32,
    },
    Argmax {},
    /// The best of boxes that overlap.
    Nms {
        iou_threshold: f32,
        #[serde(default = "everything")]
        score_threshold: f32,
        max_output: u32,
        #[serde(default)]
        boxes: BoxForm,
        #[serde(default = "candidates_max")]
        candidates: u32,
        #[serde(default)]
        class_agnostic: bool,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fit {
    /// The sides change independently.
    #[default]
    Stretch,
    /// All of the picture, with a border.
    Letterbox,
    /// No border: what is too much is cut off.
    Cover,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Anchor {
    #[default]
    Center,
    TopLeft,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FilterName {
    Nearest,
    #[default]
    Bilinear,
    Antialias,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Layout {
    Hwc,
    Chw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BoxForm {
    #[default]
    Corners,
    Centers,
}

/// A number for all channels, or one for each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Each {
    All(f32),
    One(Vec<f32>),
}

impl Default for Each {
    fn default() -> Self {
        Self::All(0.0)
    }
}

impl Each {
    /// The numbers of `count` channels, if there are as many.
    pub fn of(&self, count: usize) -> Option<[f32; 4]> {
        let mut each = [0.0; 4];
        match self {
            Self::All(number) => each = [*number; 4],
            Self::One(numbers) if numbers.len() == count => {
                each.get_mut(..count)?.copy_from_slice(numbers);
            }
            Self::One(_) => return None,
        }
        each.iter().all(|number| number.is_finite()).then_some(each)
    }
}

/// An element type, by its name in the protocol or in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct TypeName(pub DataType);

impl TryFrom<String> for TypeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        DataType::ALL
            .into_iter()
            .find(|datatype| datatype.protocol_name() == name || datatype.config_name() == name)
            .map(Self)
            .ok_or_else(|| format!("unknown element type '{name}'"))
    }
}

fn rgb() -> u8 {
    3
}

/// 8192 × 4096: more than any camera of today.
fn pixels_max() -> u64 {
    1 << 25
}

fn one() -> f32 {
    1.0
}

fn each_one() -> Each {
    Each::All(1.0)
}

fn everything() -> f32 {
    f32::NEG_INFINITY
}

fn candidates_max() -> u32 {
    1024
}

/// Reads the text of a chain.
///
/// # Errors
/// Names the step, what was expected and what came.
pub(super) fn parse(text: &str) -> Result<Vec<Step>, String> {
    let steps: Vec<serde_json::Map<String, Value>> = serde_json::from_str(text)
        .map_err(|error| format!("expected a list of steps in JSON: {error}"))?;
    if steps.is_empty() || steps.len() > STEPS_MAX {
        return Err(format!("expected 1 to {STEPS_MAX} steps, got {}", steps.len()));
    }
    steps.into_iter().enumerate().map(|(index, members)| step(index + 1, members)).collect()
}

fn step(number: usize, mut members: serde_json::Map<String, Value>) -> Result<Step, String> {
    let label = match members.get("op").and_then(Value::as_str) {
        Some(name) => format!("step {number} ({name})"),
        None => format!("step {number}"),
    };
    let mut names = |member: &str| match members.remove(member) {
        None => Ok(Vec::new()),
        Some(Value::String(name)) => Ok(vec![name]),
        Some(value) => serde_json::from_value::<Vec<String>>(value)
            .map_err(|_| format!("{label}: expected a name or a list of names as '{member}'")),
    };
    let (inputs, outputs) = (names("input")?, names("output")?);
    if let Some(empty) = inputs.iter().chain(&outputs).find(|name| name.is_empty()) {
        return Err(format!("{label}: a tensor's name is empty: '{empty}'"));
    }
    let operation = serde_json::from_value(Value::Object(members))
        .map_err(|error| format!("{label}: {error}"))?;
    Ok(Step { inputs, outputs, operation, label })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_defaults() {
        let steps = parse(
            r#"[{"op": "decode", "input": "FILE"}, {"op": "top_k", "k": 5, "output": ["V", "I"]}]"#,
        )
        .unwrap();
        assert_eq!(steps[0].operation, Operation::Decode { channels: 3, max_pixels: 1 << 25 });
        assert_eq!(steps[0].inputs, ["FILE"]);
        assert_eq!(steps[1].outputs, ["V", "I"]);
        assert_eq!(steps[1].label, "step 2 (top_k)");
    }

    #[test]
    fn what_is_no_chain_is_refused_with_the_step() {
        for (text, expected) in [
            ("{}", "expected a list of steps in JSON"),
            ("[]", "expected 1 to 64 steps, got 0"),
            ("[1]", "expected a list of steps in JSON"),
            (r#"[{"k": 1}]"#, "step 1: missing field `op`"),
            (r#"[{"op": "blur"}]"#, "step 1 (blur): unknown variant `blur`"),
            (r#"[{"op": "top_k"}]"#, "step 1 (top_k): missing field `k`"),
            (r#"[{"op": "softmax", "axis": 1}]"#, "step 1 (softmax): unknown field `axis`"),
            (r#"[{"op": "cast", "to": "FP8"}]"#, "step 1 (cast): unknown element type 'FP8'"),
            (r#"[{"op": "argmax", "input": 3}]"#, "expected a name or a list of names as 'input'"),
            (r#"[{"op": "argmax", "output": ""}]"#, "a tensor's name is empty"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
