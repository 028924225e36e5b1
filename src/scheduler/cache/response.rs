use bytes::{Buf, BufMut, Bytes};
use compact_str::CompactString;
use smallvec::SmallVec;

use crate::inference::{DataType, InferOutput, Parameter, Parameters, Shape};

/// What an entry takes beside its tensors: its key, its places in map and list, its names.
const ENTRY_BYTES: usize = 256;
/// What an output takes beside its elements.
const OUTPUT_BYTES: usize = 128;

/// The form of entries that leave the process; an entry of another form is none.
const FORM: &[u8; 8] = b"nereid\0\x01";

/// An answer as it is kept: in memory of its own, so that it holds no batch.
#[derive(Clone, Debug)]
pub struct CachedResponse {
    /// The outputs, before classes are made of any.
    pub outputs: SmallVec<[InferOutput; 2]>,
    /// The response's parameters.
    pub parameters: Parameters,
}

/// Bytes that are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry of the response cache breaks off or has another form than this server writes")]
pub struct MalformedEntry;

impl CachedResponse {
    /// Copies an answer.
    pub fn copied(outputs: &[InferOutput], parameters: &Parameters) -> Self {
        let outputs = outputs.iter().map(|output| {
            let data = Bytes::copy_from_slice(&output.data);
            InferOutput { data, ..output.clone() }
        });
        Self { outputs: outputs.collect(), parameters: parameters.clone() }
    }

    /// The memory that it takes.
    pub fn byte_size(&self) -> usize {
        Self::byte_size_of(&self.outputs, &self.parameters)
    }

    /// The memory that a copy of an answer would take.
    pub fn byte_size_of(outputs: &[InferOutput], parameters: &Parameters) -> usize {
        let outputs = outputs.iter().map(|output| {
            OUTPUT_BYTES + size_of_val(&output.shape[..]) + output.name.len() + output.data.len()
        });
        let parameters = parameters.iter().map(|(name, value)| {
            let text = if let Parameter::String(text) = value { text.len() } else { 0 };
            size_of::<(CompactString, Parameter)>() + name.len() + text
        });
        ENTRY_BYTES + outputs.sum::<usize>() + parameters.sum::<usize>()
    }

    /// The answer in bytes that another process can read.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.byte_size());
        bytes.put_slice(FORM);
        bytes.put_u64_le(self.outputs.len() as u64);
        for output in &self.outputs {
            put(&mut bytes, output.name.as_bytes());
            put(&mut bytes, output.datatype.protocol_name().as_bytes());
            bytes.put_u64_le(output.shape.len() as u64);
            output.shape.iter().for_each(|&dim| bytes.put_i64_le(dim));
            put(&mut bytes, &output.data);
        }
        bytes.put_u64_le(self.parameters.len() as u64);
        for (name, value) in self.parameters.iter() {
            put(&mut bytes, name.as_bytes());
            match value {
                Parameter::Bool(value) => {
                    bytes.put_u8(0);
                    bytes.put_u64_le(u64::from(*value));
                }
                Parameter::Int(value) => {
                    bytes.put_u8(1);
                    bytes.put_i64_le(*value);
                }
                Parameter::Uint(value) => {
                    bytes.put_u8(2);
                    bytes.put_u64_le(*value);
                }
                Parameter::Double(value) => {
                    bytes.put_u8(3);
                    bytes.put_f64_le(*value);
                }
                Parameter::String(text) => {
                    bytes.put_u8(4);
                    put(&mut bytes, text.as_bytes());
                }
            }
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. The tensors share `bytes`.
    ///
    /// # Errors
    /// For anything else, such as what another version wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedEntry> {
        let mut rest = bytes;
        if rest.len() < FORM.len() || rest.split_to(FORM.len()) != FORM[..] {
            return Err(MalformedEntry);
        }
        let mut outputs = SmallVec::new();
        for _ in 0..number(&mut rest)? {
            let name = text(&mut rest)?.as_str().into();
            let datatype = text(&mut rest)?;
            let known = DataType::ALL.into_iter().find(|it| it.protocol_name() == datatype);
            let dims = number(&mut rest)?;
            let shape = (0..dims)
                .map(|_| rest.try_get_i64_le().map_err(|_| MalformedEntry))
                .collect::<Result<Vec<i64>, _>>()?;
            let output = InferOutput {
                name,
                datatype: known.ok_or(MalformedEntry)?,
                shape: Shape::from(shape.as_slice()),
                data: slice(&mut rest)?,
            };
            if !is_sound(&output) {
                return Err(MalformedEntry);
            }
            outputs.push(output);
        }
        let mut parameters = Parameters::default();
        for _ in 0..number(&mut rest)? {
            let name = text(&mut rest)?;
            parameters.insert(name, parameter(&mut rest)?);
        }
        if rest.is_empty() { Ok(Self { outputs, parameters }) } else { Err(MalformedEntry) }
    }
}

/// Whether the elements are as many as the shape says.
fn is_sound(output: &InferOutput) -> bool {
    let Some(elements) = output.shape.element_count() else { return false };
    match output.datatype.size() {
        Some(size) => elements.checked_mul(size as u64) == Some(output.data.len() as u64),
        None => strings(&output.data) == Some(elements),
    }
}

/// How many length-prefixed strings there are; `None` when the last breaks off.
fn strings(mut rest: &[u8]) -> Option<u64> {
    let mut count = 0;
    while !rest.is_empty() {
        let (prefix, tail) = rest.split_first_chunk()?;
        rest = tail.get(u32::from_le_bytes(*prefix) as usize..)?;
        count += 1;
    }
    Some(count)
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.put_u64_le(part.len() as u64);
    bytes.put_slice(part);
}

fn number(rest: &mut Bytes) -> Result<u64, MalformedEntry> {
    rest.try_get_u64_le().map_err(|_| MalformedEntry)
}

fn slice(rest: &mut Bytes) -> Result<Bytes, MalformedEntry> {
    let len = usize::try_from(number(rest)?).map_err(|_| MalformedEntry)?;
    if len > rest.len() { Err(MalformedEntry) } else { Ok(rest.split_to(len)) }
}

fn text(rest: &mut Bytes) -> Result<CompactString, MalformedEntry> {
    CompactString::from_utf8(&slice(rest)?[..]).map_err(|_| MalformedEntry)
}

fn parameter(rest: &mut Bytes) -> Result<Parameter, MalformedEntry> {
    let kind = rest.try_get_u8().map_err(|_| MalformedEntry)?;
    if kind == 4 {
        return text(rest).map(Parameter::String);
    }
    let bits = number(rest)?;
    match kind {
        0 => Ok(Parameter::Bool(bits != 0)),
        1 => Ok(Parameter::Int(bits.cast_signed())),
        2 => Ok(Parameter::Uint(bits)),
        3 => Ok(Parameter::Double(f64::from_bits(bits))),
        _ => Err(MalformedEntry),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn response(data: &[u8]) -> CachedResponse {
        let output = |name: &str, datatype, shape: &[i64], data: &[u8]| InferOutput {
            name: name.into(),
            datatype,
            shape: shape.into(),
            data: data.to_vec().into(),
        };
        let string = [&(data.len() as u32).to_le_bytes(), data].concat();
        let mut parameters = Parameters::default();
        for (name, value) in [
            ("yes", Parameter::Bool(true)),
            ("less", Parameter::Int(-3)),
            ("more", Parameter::Uint(u64::MAX)),
            ("half", Parameter::Double(0.5)),
            ("text", Parameter::String("größer".into())),
        ] {
            parameters.insert(name, value);
        }
        let outputs = [
            output("A", DataType::Uint8, &[1, data.len() as i64], data),
            output("B", DataType::Bytes, &[], &string),
        ];
        CachedResponse::copied(&outputs, &parameters)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(data in prop::collection::vec(any::<u8>(), 0..50)) {
            let written = response(&data);
            let read = CachedResponse::decode(written.encode().into()).unwrap();
            prop_assert_eq!(format!("{read:?}"), format!("{written:?}"));
        }

        /// Whatever else is found there is refused, and not read past its end.
        #[test]
        fn nothing_else_is_read(
            cut in any::<prop::sample::Index>(),
            change in (any::<prop::sample::Index>(), any::<u8>()),
        ) {
            let bytes = response(&[1, 2, 3]).encode();
            let short = bytes[..cut.index(bytes.len())].to_vec();
            prop_assert_eq!(CachedResponse::decode(short.into()).err(), Some(MalformedEntry));
            let mut changed = bytes;
            let at = change.0.index(changed.len());
            changed[at] = change.1;
            let _ = CachedResponse::decode(changed.into());
        }
    }
}
