//! Requests and answers, as they lie in the arena.

use smallvec::SmallVec;

use crate::{
    DataType, Span, Status,
    wire::{Malformed, Reader, Writer},
};

/// The longest description of a request, and the longest answer without its tensors.
pub const DESCRIPTOR_MAX: usize = 64 << 10;
/// The most inputs, outputs or parameters.
pub const TENSORS_MAX: usize = 1024;

/// The dimensions of a tensor.
pub type Dims = SmallVec<[i64; 4]>;

/// In [`Request`]: it is the first of its sequence, the last of it; the sequence is named by a text.
const SEQUENCE_START: u32 = 1;
const SEQUENCE_END: u32 = 2;
const SEQUENCE_TEXT: u32 = 4;
/// Where in a request its area is told.
const AREA_AT: usize = 40;
/// In [`Wanted`]: the client has chosen the place.
const PLACED: u8 = 1;

/// Which sequence a request belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SequenceId<'a> {
    /// To none.
    #[default]
    None,
    /// To that of this number, which is not 0.
    Number(u64),
    /// To that of this name, which is not empty.
    Text(&'a str),
}

/// A request: what a submission leads to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The version; empty leaves the choice to the server.
    pub version: &'a str,
    /// The client's name for it, which comes back in the answer; may be empty.
    pub id: &'a str,
    /// The sequence it belongs to.
    pub sequence: SequenceId<'a>,
    /// Whether it begins its sequence.
    pub sequence_start: bool,
    /// Whether it ends its sequence.
    pub sequence_end: bool,
    /// 1 is the most urgent; 0 leaves it to the model.
    pub priority: u64,
    /// Microseconds that it may wait in the model's queue; 0 for the model's own.
    pub timeout_us: u64,
    /// Microseconds, from when the server takes it, after which nobody waits for it; 0 for none.
    pub deadline_us: u64,
    /// Where answers go, and outputs that have no place of their own.
    pub area: Span,
    /// Inputs.
    pub inputs: SmallVec<[Tensor<'a>; 2]>,
    /// Outputs that are wanted; none wants all.
    pub outputs: SmallVec<[Wanted<'a>; 2]>,
    /// Parameters.
    pub parameters: SmallVec<[Parameter<'a>; 0]>,
}

/// A tensor that lies in the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape.
    pub dims: Dims,
    /// Its elements, little-endian and row-major.
    pub data: Span,
}

/// An output that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many classes to answer instead of the tensor; 0 for the tensor.
    pub classes: u32,
    /// Where it goes; `None` leaves that to the server, which takes the request's area.
    pub place: Option<Span>,
}

/// A named value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: Value<'a>,
}

/// The value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(&'a str),
}

/// What a completion leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<'a> {
    /// How it went.
    pub status: Status,
    /// What went wrong; empty if nothing did.
    pub message: &'a str,
    /// The model that ran.
    pub model: &'a str,
    /// The version that ran.
    pub version: i64,
    /// The request's id.
    pub id: &'a str,
    /// Outputs, where they lie now.
    pub outputs: SmallVec<[Tensor<'a>; 2]>,
    /// Parameters.
    pub parameters: SmallVec<[Parameter<'a>; 0]>,
}

impl<'a> Request<'a> {
    /// Appends it to `target`.
    ///
    /// # Errors
    /// When it is longer, or has more of something, than a request may.
    pub fn encode(&self, target: &mut Vec<u8>) -> Result<(), Malformed> {
        const WHAT: &str = "a request's description";
        let (number, text, kind) = match self.sequence {
            SequenceId::None => (0, "", 0),
            SequenceId::Number(number) => (number, "", 0),
            SequenceId::Text(text) => (0, text, SEQUENCE_TEXT),
        };
        let mut writer = Writer::new(target);
        writer.u32(0);
        let start = if self.sequence_start { SEQUENCE_START } else { 0 };
        let end = if self.sequence_end { SEQUENCE_END } else { 0 };
        writer.u32(start | end | kind);
        writer.u64(number);
        writer.u64(self.priority);
        writer.u64(self.timeout_us);
        writer.u64(self.deadline_us);
        writer.u64(self.area.offset);
        writer.u64(self.area.length);
        let texts = [self.model, self.version, self.id, text];
        for text in texts {
            writer.length16("a name's length", text.len(), DESCRIPTOR_MAX);
        }
        writer.length16("the number of inputs", self.inputs.len(), TENSORS_MAX);
        writer.length16("the number of outputs", self.outputs.len(), TENSORS_MAX);
        writer.length16("the number of parameters", self.parameters.len(), TENSORS_MAX);
        writer.u16(0);
        for text in texts {
            writer.bytes(text.as_bytes());
        }
        writer.align();
        self.inputs.iter().for_each(|input| input.encode(&mut writer));
        self.outputs.iter().for_each(|output| output.encode(&mut writer));
        self.parameters.iter().for_each(|parameter| parameter.encode(&mut writer));
        writer.finish(WHAT, DESCRIPTOR_MAX)
    }

    /// Where answers go by what may else make no sense; of no length if even that cannot be read.
    pub fn area_of(bytes: &[u8]) -> Span {
        let mut reader = Reader::new("a request's description", bytes);
        reader.bytes(AREA_AT).and_then(|_| span(&mut reader)).unwrap_or_default()
    }

    /// Reads one. Whether its spans lie within the arena is for the caller to see.
    ///
    /// # Errors
    /// Names what makes no sense.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "a request's description";
        let mut reader = Reader::new(WHAT, bytes);
        check_size(WHAT, reader.u32()?, bytes)?;
        let flags = reader.u32()?;
        let number = reader.u64()?;
        let [priority, timeout_us, deadline_us] = [reader.u64()?, reader.u64()?, reader.u64()?];
        let area = span(&mut reader)?;
        let lengths = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        let inputs = count("the number of inputs", reader.u16()?)?;
        let outputs = count("the number of outputs", reader.u16()?)?;
        let parameters = count("the number of parameters", reader.u16()?)?;
        reader.u16()?;
        let [model, version, id, text] = lengths.map(usize::from);
        let (model, version) = (reader.text(model)?, reader.text(version)?);
        let (id, text) = (reader.text(id)?, reader.text(text)?);
        reader.align()?;
        let sequence = match (flags & SEQUENCE_TEXT != 0, number) {
            (true, _) if !text.is_empty() => SequenceId::Text(text),
            (true, _) | (false, 0) => SequenceId::None,
            (false, number) => SequenceId::Number(number),
        };
        Ok(Self {
            model,
            version,
            id,
            sequence,
            sequence_start: flags & SEQUENCE_START != 0,
            sequence_end: flags & SEQUENCE_END != 0,
            priority,
            timeout_us,
            deadline_us,
            area,
            inputs: (0..inputs).map(|_| Tensor::parse(&mut reader)).collect::<Result<_, _>>()?,
            outputs: (0..outputs).map(|_| Wanted::parse(&mut reader)).collect::<Result<_, _>>()?,
            parameters: parse_parameters(&mut reader, parameters)?,
        })
    }
}

impl<'a> Answer<'a> {
    /// An answer that only tells what went wrong.
    pub fn failed(status: Status, message: &'a str) -> Self {
        Self {
            status,
            message,
            model: "",
            version: 0,
            id: "",
            outputs: SmallVec::new(),
            parameters: SmallVec::new(),
        }
    }

    /// Appends it to `target`.
    ///
    /// # Errors
    /// When it has more of something than can be told.
    pub fn encode(&self, target: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut writer = Writer::new(target);
        writer.u32(0);
        writer.u32(self.status as u32);
        writer.i64(self.version);
        writer.length16("a model name's length", self.model.len(), DESCRIPTOR_MAX);
        writer.length16("an id's length", self.id.len(), DESCRIPTOR_MAX);
        writer.length16("the number of outputs", self.outputs.len(), TENSORS_MAX);
        writer.length16("the number of parameters", self.parameters.len(), TENSORS_MAX);
        writer.length32("a message's length", self.message.len());
        writer.u32(0);
        for text in [self.model, self.id, self.message] {
            writer.bytes(text.as_bytes());
        }
        writer.align();
        self.outputs.iter().for_each(|output| output.encode(&mut writer));
        self.parameters.iter().for_each(|parameter| parameter.encode(&mut writer));
        writer.finish("an answer", u32::MAX as usize)
    }

    /// Reads one.
    ///
    /// # Errors
    /// Names what makes no sense.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "an answer";
        let mut reader = Reader::new(WHAT, bytes);
        check_size(WHAT, reader.u32()?, bytes)?;
        let status = Status::from_number(reader.u32()?);
        let version = reader.i64()?;
        let (model, id) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        let outputs = count("the number of outputs", reader.u16()?)?;
        let parameters = count("the number of parameters", reader.u16()?)?;
        let message = reader.u32()? as usize;
        reader.u32()?;
        let (model, id) = (reader.text(model)?, reader.text(id)?);
        let message = reader.text(message)?;
        reader.align()?;
        Ok(Self {
            status,
            message,
            model,
            version,
            id,
            outputs: (0..outputs).map(|_| Tensor::parse(&mut reader)).collect::<Result<_, _>>()?,
            parameters: parse_parameters(&mut reader, parameters)?,
        })
    }
}

impl<'a> Tensor<'a> {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u64(self.data.offset);
        writer.u64(self.data.length);
        writer.length16("a tensor name's length", self.name.len(), DESCRIPTOR_MAX);
        writer.u8(self.datatype as u8);
        writer.length8("the number of a tensor's dimensions", self.dims.len());
        writer.u32(0);
        self.dims.iter().for_each(|&dim| writer.i64(dim));
        writer.bytes(self.name.as_bytes());
        writer.align();
    }

    fn parse(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let data = span(reader)?;
        let name = usize::from(reader.u16()?);
        let datatype = reader.u8()?;
        let rank = usize::from(reader.u8()?);
        reader.u32()?;
        let datatype = DataType::from_number(datatype)
            .ok_or_else(|| Malformed::new("a tensor's type", "a number of 1 to 14", datatype))?;
        let dims = (0..rank).map(|_| reader.i64()).collect::<Result<_, _>>()?;
        let name = reader.text(name)?;
        reader.align()?;
        Ok(Self { name, datatype, dims, data })
    }
}

impl<'a> Wanted<'a> {
    fn encode(&self, writer: &mut Writer<'_>) {
        let place = self.place.unwrap_or_default();
        writer.u64(place.offset);
        writer.u64(place.length);
        writer.length16("an output name's length", self.name.len(), DESCRIPTOR_MAX);
        writer.u8(if self.place.is_some() { PLACED } else { 0 });
        writer.u8(0);
        writer.u32(self.classes);
        writer.bytes(self.name.as_bytes());
        writer.align();
    }

    fn parse(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let place = span(reader)?;
        let name = usize::from(reader.u16()?);
        let flags = reader.u8()?;
        reader.u8()?;
        let classes = reader.u32()?;
        let name = reader.text(name)?;
        reader.align()?;
        Ok(Self { name, classes, place: (flags & PLACED != 0).then_some(place) })
    }
}

impl<'a> Parameter<'a> {
    fn encode(&self, writer: &mut Writer<'_>) {
        let (kind, bits, text) = match self.value {
            Value::Bool(value) => (1, u64::from(value), ""),
            Value::Int(value) => (2, value.cast_unsigned(), ""),
            Value::Uint(value) => (3, value, ""),
            Value::Double(value) => (4, value.to_bits(), ""),
            Value::Text(text) => (5, 0, text),
        };
        writer.length16("a parameter name's length", self.name.len(), DESCRIPTOR_MAX);
        writer.u8(kind);
        writer.u8(0);
        writer.length32("a parameter's length", text.len());
        writer.u64(bits);
        writer.bytes(self.name.as_bytes());
        writer.bytes(text.as_bytes());
        writer.align();
    }

    fn parse(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let name = usize::from(reader.u16()?);
        let kind = reader.u8()?;
        reader.u8()?;
        let length = reader.u32()? as usize;
        let bits = reader.u64()?;
        let name = reader.text(name)?;
        let text = reader.text(length)?;
        reader.align()?;
        let value = match kind {
            1 => Value::Bool(bits != 0),
            2 => Value::Int(bits.cast_signed()),
            3 => Value::Uint(bits),
            4 => Value::Double(f64::from_bits(bits)),
            5 => Value::Text(text),
            other => return Err(Malformed::new("a parameter's kind", "1 to 5", other)),
        };
        Ok(Self { name, value })
    }
}

fn parse_parameters<'a>(
    reader: &mut Reader<'a>,
    count: usize,
) -> Result<SmallVec<[Parameter<'a>; 0]>, Malformed> {
    (0..count).map(|_| Parameter::parse(reader)).collect()
}

fn span(reader: &mut Reader<'_>) -> Result<Span, Malformed> {
    Ok(Span { offset: reader.u64()?, length: reader.u64()? })
}

fn check_size(what: &'static str, told: u32, bytes: &[u8]) -> Result<(), Malformed> {
    match told as usize == bytes.len() {
        true => Ok(()),
        false => Err(Malformed::new(what, format!("{} bytes", bytes.len()), told)),
    }
}

fn count(what: &'static str, count: u16) -> Result<usize, Malformed> {
    let count = usize::from(count);
    match count <= TENSORS_MAX {
        true => Ok(count),
        false => Err(Malformed::new(what, format!("at most {TENSORS_MAX}"), count)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use smallvec::smallvec;

    use super::*;

    fn request<'a>() -> Request<'a> {
        Request {
            model: "m",
            version: "3",
            id: "",
            sequence: SequenceId::Text("talk"),
            sequence_start: true,
            deadline_us: 7,
            area: Span { offset: 64, length: 128 },
            inputs: smallvec![Tensor {
                name: "INPUT0",
                datatype: DataType::Fp32,
                dims: smallvec![1, 16],
                data: Span { offset: 0, length: 64 },
            }],
            outputs: smallvec![
                Wanted { name: "a", classes: 3, place: None },
                Wanted { name: "b", classes: 0, place: Some(Span::default()) },
            ],
            parameters: smallvec![
                Parameter { name: "p", value: Value::Double(0.5) },
                Parameter { name: "q", value: Value::Text("text") },
                Parameter { name: "r", value: Value::Int(-1) },
            ],
            ..Request::default()
        }
    }

    #[test]
    fn a_request_lies_where_the_book_says() {
        let mut bytes = Vec::new();
        request().encode(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 72 + 8 + (24 + 16 + 8) + 2 * 32 + 3 * 24);
        assert_eq!(bytes[0..4], (bytes.len() as u32).to_le_bytes());
        assert_eq!(bytes[32..40], 7u64.to_le_bytes());
        assert_eq!(Request::area_of(&bytes), request().area);
        assert_eq!(bytes[72..78], *b"m3talk");
        assert_eq!(bytes[98], DataType::Fp32 as u8);
        assert_eq!(Request::parse(&bytes), Ok(request()));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let long = "x".repeat(70_000);
        let refused =
            |request: Request<'_>| request.encode(&mut Vec::new()).unwrap_err().to_string();
        let error = refused(Request { model: &long, ..request() });
        assert_eq!(error, "a name's length: expected at most 65535, got 70000");
        let error = refused(Request { model: &long[..65_000], id: &long[..65_000], ..request() });
        assert!(error.contains("at most 65536 bytes"), "{error}");
        let outputs = std::iter::repeat_n(Wanted::default(), 1025).collect();
        assert!(refused(Request { outputs, ..request() }).contains("at most 1024"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in vec(any::<u8>(), 0..400)) {
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
            let size = (bytes.len() as u32).to_le_bytes();
            if bytes.len() >= 72 {
                bytes[..4].copy_from_slice(&size);
                // Few of something, so that what follows is read too.
                for (at, byte) in bytes[56..72].iter_mut().enumerate() {
                    *byte &= if at % 2 == 0 { 3 } else { 0 };
                }
                let _ = Request::parse(&bytes);
            }
        }

        #[test]
        fn a_byte_that_is_changed_makes_another_request_or_none(
            at in any::<prop::sample::Index>(), to: u8,
        ) {
            let mut bytes = Vec::new();
            request().encode(&mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = Request::parse(&bytes) {
                let mut again = Vec::new();
                read.encode(&mut again).unwrap();
                prop_assert!(Request::parse(&again).is_ok());
            }
        }

        #[test]
        fn answers_are_read_as_written(
            model in ".{0,9}", message in ".{0,40}", version: i64, dims in vec(any::<i64>(), 0..6),
        ) {
            let mut bytes = Vec::new();
            let answer = Answer {
                status: Status::NotFound,
                message: &message,
                model: &model,
                version,
                id: "id",
                outputs: smallvec![Tensor {
                    name: "OUT",
                    datatype: DataType::Bytes,
                    dims: dims.into(),
                    data: Span { offset: 8, length: 9 },
                }],
                parameters: smallvec![Parameter { name: "n", value: Value::Bool(true) }],
            };
            answer.encode(&mut bytes).unwrap();
            prop_assert_eq!(Answer::parse(&bytes), Ok(answer));
        }
    }
}
