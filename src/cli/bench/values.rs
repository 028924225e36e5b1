use std::{str::FromStr, time::Duration};

/// The most bytes of a tensor.
pub const TENSOR_MAX: usize = 1 << 30;

/// The most of anything that is counted in options: requests in flight, connections, threads.
const COUNT_MAX: usize = 65_536;

/// The most loads in a range.
const LOADS_MAX: f64 = 10_000.0;

/// Numbers from `start` to `end`, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range<T> {
    start: T,
    end: T,
    step: T,
}

impl Range<usize> {
    /// Only `value`.
    pub const fn only(value: usize) -> Self {
        Self { start: value, end: value, step: 1 }
    }

    /// The numbers of the range.
    pub fn values(self) -> impl Iterator<Item = usize> {
        (self.start..=self.end).step_by(self.step)
    }
}

impl Range<f64> {
    /// The numbers of the range.
    pub fn values(self) -> impl Iterator<Item = f64> {
        // The allowance lets 0.1:0.3:0.1 reach its end.
        let end = self.end + self.step * 1e-9;
        (0..).map(move |n| self.start + f64::from(n) * self.step).take_while(move |&v| v <= end)
    }
}

impl FromStr for Range<usize> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = parse_range(text, 1)?;
        if range.start == 0 || range.step == 0 || range.end < range.start {
            return Err(bad_range(text));
        }
        if range.end > COUNT_MAX || range.values().count() as f64 > LOADS_MAX {
            return Err(long_range(text));
        }
        Ok(range)
    }
}

impl FromStr for Range<f64> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = parse_range(text, 1.0)?;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(range.start) || !positive(range.step) || !range.end.is_finite() {
            return Err(bad_range(text));
        }
        if range.end < range.start {
            return Err(bad_range(text));
        }
        if (range.end - range.start) / range.step > LOADS_MAX {
            return Err(long_range(text));
        }
        Ok(range)
    }
}

fn parse_range<T: FromStr + Copy>(text: &str, step: T) -> Result<Range<T>, String> {
    let number = |part: &str| part.trim().parse::<T>().map_err(|_| bad_range(text));
    match text.split(':').collect::<Vec<_>>()[..] {
        [start] => number(start).map(|start| Range { start, end: start, step }),
        [start, end] => Ok(Range { start: number(start)?, end: number(end)?, step }),
        [start, end, step] => {
            Ok(Range { start: number(start)?, end: number(end)?, step: number(step)? })
        }
        _ => Err(bad_range(text)),
    }
}

fn bad_range(text: &str) -> String {
    format!(
        "expected START[:END[:STEP]] with positive numbers and END not before START, got '{text}'"
    )
}

fn long_range(text: &str) -> String {
    format!("expected a range of at most {LOADS_MAX} loads, {COUNT_MAX} in flight, got '{text}'")
}

/// The dimensions that `--shape` gives an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// The input.
    pub name: String,
    /// Its dimensions, without the batch.
    pub dims: Vec<i64>,
}

impl FromStr for InputShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected NAME:D1,D2,… with dimensions of at least 1, got '{text}'");
        // Names of inputs may hold colons, dimensions never.
        let (name, dims) = text.rsplit_once(':').ok_or_else(bad)?;
        let dims = dims.split(',').map(|dim| dim.trim().parse::<i64>());
        let dims = dims.collect::<Result<Vec<_>, _>>().map_err(|_| bad())?;
        if name.is_empty() || dims.iter().any(|&dim| dim < 1) {
            return Err(bad());
        }
        Ok(Self { name: name.to_owned(), dims })
    }
}

/// Parses how many of something.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=COUNT_MAX).contains(&count) => Ok(count),
        _ => Err(format!("expected a whole number from 1 to {COUNT_MAX}, got '{text}'")),
    }
}

/// Parses a size of memory, up to that of the largest tensor.
pub fn bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (1..=TENSOR_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("expected bytes, 1 to {TENSOR_MAX}, got '{text}'")),
    }
}

/// Parses a stretch of time.
pub fn millis(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(0) | Err(_) => Err(format!("expected milliseconds, 1 to {}, got '{text}'", u32::MAX)),
        Ok(millis) => Ok(Duration::from_millis(millis.into())),
    }
}

/// Parses a stretch of time that may be none.
pub fn millis_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { millis(text) }
}

/// Parses a percentage that may be above 100.
pub fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 => Ok(percent),
        _ => Err(format!("expected a number above 0, got '{text}'")),
    }
}

/// Parses a percentage above 0.
pub fn percentage(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err(format!("expected a number above 0 and up to 100, got '{text}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_concurrency() {
        for (text, expected) in [
            ("4", vec![4]),
            ("1:4", vec![1, 2, 3, 4]),
            ("1:8:3", vec![1, 4, 7]),
            ("8:8:100", vec![8]),
        ] {
            let range: Range<usize> = text.parse().unwrap();
            assert_eq!(range.values().collect::<Vec<_>>(), expected, "{text}");
        }
        for text in ["", "0", "4:1", "1:4:0", "1:2:3:4", "-1", "x", "1:", "1:65536", "65537"] {
            assert!(text.parse::<Range<usize>>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_of_rates() {
        for (text, expected) in [("0.5", 1), ("100:300:100", 3), ("0.1:0.3:0.1", 3), ("1:4", 4)] {
            let range: Range<f64> = text.parse().unwrap();
            assert_eq!(range.values().count(), expected, "{text}");
        }
        for text in ["0", "-1", "nan", "inf", "1:inf", "2:1", "1:2:0", "1:1e300:1e-300"] {
            assert!(text.parse::<Range<f64>>().is_err(), "{text}");
        }
    }

    #[test]
    fn shapes_of_inputs() {
        let shape: InputShape = "in:put:3,224".parse().unwrap();
        assert_eq!((shape.name.as_str(), &shape.dims[..]), ("in:put", &[3, 224][..]));
        for text in ["", "x", "x:", ":1", "x:0", "x:-1", "x:1,,2", "x:99999999999999999999"] {
            assert!(text.parse::<InputShape>().is_err(), "{text}");
        }
    }
}
