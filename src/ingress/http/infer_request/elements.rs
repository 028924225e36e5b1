use super::members::shortened;
use crate::{
    inference::{DataType, Error, Shape},
    ingress::http::json::{Cursor, Kind, Number, SyntaxError},
};

/// Reads the member `data` of an input, flat or nested, into the bytes of its elements.
///
/// # Errors
/// Names the element that is not of the type, or the count that does not fit the shape.
pub fn read(
    cursor: &mut Cursor<'_>,
    input: &str,
    datatype: DataType,
    shape: &Shape,
) -> Result<Vec<u8>, Error> {
    if cursor.kind() != Kind::Array && !is_binary_only(datatype) {
        cursor.skip()?;
        return Err(Error::malformed(
            "Unable to parse 'data': attempt to access JSON non-array as array",
        ));
    }
    read_leaves(cursor, input, datatype, shape)
}

fn is_binary_only(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16)
}

/// The same for a value that may also be one element by itself.
///
/// # Errors
/// Names the element that is not of the type, or the count that does not fit the shape.
pub fn read_leaves(
    cursor: &mut Cursor<'_>,
    input: &str,
    datatype: DataType,
    shape: &Shape,
) -> Result<Vec<u8>, Error> {
    if is_binary_only(datatype) {
        return Err(Error::malformed(format!(
            "receiving {datatype} data via JSON is not supported. Please use the binary data \
             format for input {input}"
        )));
    }
    let expected = shape.element_count().ok_or_else(|| {
        Error::malformed(format!(
            "input '{input}' has shape {shape}: the number of elements is too large"
        ))
    })?;
    let mut reader = ElementReader { cursor, input, datatype, expected };
    match datatype {
        DataType::Bool => reader.elements(|cursor, bytes| {
            if cursor.kind() != Kind::Bool {
                return Err(Refusal::Kind("boolean").into());
            }
            bytes.push(u8::from(cursor.boolean()?));
            Ok(())
        }),
        DataType::Uint8 => reader.integers(unsigned, |value| u8::try_from(value).ok()),
        DataType::Uint16 => reader.integers(unsigned, |value| u16::try_from(value).ok()),
        DataType::Uint32 => reader.integers(unsigned, |value| u32::try_from(value).ok()),
        DataType::Uint64 => reader.integers(unsigned, Some),
        DataType::Int8 => reader.integers(signed, |value| i8::try_from(value).ok()),
        DataType::Int16 => reader.integers(signed, |value| i16::try_from(value).ok()),
        DataType::Int32 => reader.integers(signed, |value| i32::try_from(value).ok()),
        DataType::Int64 => reader.integers(signed, Some),
        DataType::Fp32 => reader.numbers(|number| number.to_f32().ok_or(Refusal::Range)),
        DataType::Fp64 => reader.numbers(|number| number.to_f64().ok_or(Refusal::Range)),
        DataType::Bytes => reader.elements(|cursor, bytes| {
            if cursor.kind() != Kind::String {
                return Err(Refusal::Kind("string").into());
            }
            let string = cursor.string()?;
            let length = u32::try_from(string.len()).map_err(|_| Refusal::Range)?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(string.as_bytes());
            Ok(())
        }),
        DataType::Fp16 | DataType::Bf16 => Ok(Vec::new()),
    }
}

fn unsigned(number: Number<'_>) -> Result<u64, Refusal> {
    number.to_u64().ok_or(Refusal::Kind("unsigned-integer"))
}

fn signed(number: Number<'_>) -> Result<i64, Refusal> {
    number.to_i64().ok_or(Refusal::Kind("signed-integer"))
}

/// Why a value is not an element of the type.
enum Refusal {
    /// It is not of this JSON type.
    Kind(&'static str),
    Range,
}

/// Why reading stopped.
enum Stop {
    Refused(Refusal),
    TooMany,
    Failed(SyntaxError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SyntaxError> for Stop {
    fn from(error: SyntaxError) -> Self {
        Self::Failed(error)
    }
}

struct ElementReader<'r, 'a> {
    cursor: &'r mut Cursor<'a>,
    input: &'r str,
    datatype: DataType,
    expected: u64,
}

impl ElementReader<'_, '_> {
    fn integers<Wide, T: LittleEndian>(
        &mut self,
        widen: impl Fn(Number<'_>) -> Result<Wide, Refusal>,
        narrow: impl Fn(Wide) -> Option<T>,
    ) -> Result<Vec<u8>, Error> {
        self.numbers(|number| narrow(widen(number)?).ok_or(Refusal::Range))
    }

    fn numbers<T: LittleEndian>(
        &mut self,
        convert: impl Fn(Number<'_>) -> Result<T, Refusal>,
    ) -> Result<Vec<u8>, Error> {
        let expected_kind = match self.datatype {
            DataType::Fp32 | DataType::Fp64 => "number",
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                "signed-integer"
            }
            _ => "unsigned-integer",
        };
        self.elements(|cursor, bytes| {
            if cursor.kind() != Kind::Number {
                return Err(Refusal::Kind(expected_kind).into());
            }
            bytes.extend_from_slice(convert(cursor.number()?)?.to_little_endian().as_ref());
            Ok(())
        })
    }

    /// Reads as many elements as the shape says, each by `element`.
    fn elements(
        &mut self,
        mut element: impl FnMut(&mut Cursor<'_>, &mut Vec<u8>) -> Result<(), Stop>,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(self.capacity());
        let mut count = 0_u64;
        // Where the element that is being read begins, for messages.
        let mut at = self.cursor.clone();
        let outcome = self.cursor.leaves(|cursor| {
            at = cursor.clone();
            if count == self.expected {
                return Err(Stop::TooMany);
            }
            element(cursor, &mut bytes)?;
            count += 1;
            Ok(())
        });
        match outcome {
            Ok(()) if count == self.expected => Ok(bytes),
            Ok(()) | Err(Stop::TooMany) => Err(Error::malformed(
                "Unable to parse 'data': Shape does not match true shape of 'data' field",
            )),
            Err(Stop::Failed(error)) => Err(error.into()),
            Err(Stop::Refused(refusal)) => Err(self.refused(refusal, at, count)),
        }
    }

    /// A guess that a hostile shape cannot blow up: no element takes less than two bytes of JSON.
    fn capacity(&self) -> usize {
        let elements = (self.cursor.remaining() / 2 + 1).min(self.expected as usize);
        match self.datatype.size() {
            Some(size) => elements.saturating_mul(size),
            None => self.cursor.remaining().min(elements.saturating_mul(16)),
        }
    }

    fn refused(&self, refusal: Refusal, mut at: Cursor<'_>, index: u64) -> Error {
        let Self { input, datatype, .. } = self;
        let number = at.clone().number();
        if let Err(error) = at.skip() {
            return error.into();
        }
        Error::malformed(match (refusal, number) {
            (Refusal::Kind(expected), _) => {
                let what = match *datatype {
                    DataType::Bytes => "JSON bytes array",
                    _ => "'data'",
                };
                let target = if expected == "number" { "double" } else { expected };
                format!("Unable to parse {what}: attempt to access JSON non-{expected} as {target}")
            }
            (Refusal::Range, number) => format!(
                "Unable to parse 'data': element {index} of input '{input}' is {}, out of range \
                 for {datatype}",
                number.map_or("a string".to_owned(), shortened)
            ),
        })
    }
}

/// A number whose bytes are an element's.
trait LittleEndian {
    type Bytes: AsRef<[u8]>;

    fn to_little_endian(self) -> Self::Bytes;
}

macro_rules! little_endian {
    ($($number:ty),*) => {$(
        impl LittleEndian for $number {
            type Bytes = [u8; size_of::<$number>()];

            fn to_little_endian(self) -> Self::Bytes {
                self.to_le_bytes()
            }
        }
    )*};
}

little_endian!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);
