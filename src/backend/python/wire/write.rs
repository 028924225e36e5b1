use super::{Correlation, HEADER_BYTES, Range, Request, to_process as kind};
use crate::inference::{Code, DataType, Shape};

/// What a call gave: parameters and how many tensors follow, or an error.
pub type CallOutcome<'a> = Result<(&'a str, usize), (Code, &'a str)>;

/// Triton's number of a type, which its Python models know.
pub const fn datatype_number(datatype: DataType) -> u8 {
    match datatype {
        DataType::Bool => 1,
        DataType::Uint8 => 2,
        DataType::Uint16 => 3,
        DataType::Uint32 => 4,
        DataType::Uint64 => 5,
        DataType::Int8 => 6,
        DataType::Int16 => 7,
        DataType::Int32 => 8,
        DataType::Int64 => 9,
        DataType::Fp16 => 10,
        DataType::Fp32 => 11,
        DataType::Fp64 => 12,
        DataType::Bytes => 13,
        DataType::Bf16 => 14,
    }
}

pub(super) fn datatype_of(number: u8) -> Option<DataType> {
    DataType::ALL.into_iter().find(|&datatype| datatype_number(datatype) == number)
}

fn code_number(code: Code) -> u8 {
    match code {
        Code::Unknown => 0,
        Code::Internal => 1,
        Code::NotFound => 2,
        Code::InvalidArgument => 3,
        Code::Unavailable => 4,
        Code::Unsupported => 5,
        Code::AlreadyExists => 6,
        Code::Cancelled => 7,
    }
}

/// Frames for the process, one behind the other.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    start: usize,
}

impl Writer {
    /// The frames.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn begin(&mut self, kind: u8) {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0]);
    }

    fn end(&mut self) {
        self.align();
        let length = self.bytes.len() - self.start - HEADER_BYTES;
        // What does not fit is refused by the other end, whose limit is lower.
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        if let Some(header) = self.bytes.get_mut(self.start..self.start + length.len()) {
            header.copy_from_slice(&length);
        }
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn name(&mut self, name: &str) {
        // Names come from configurations and requests, whose own limits are far below.
        let name = name.get(..usize::from(u16::MAX)).unwrap_or(name);
        let length = u16::try_from(name.len()).unwrap_or(0);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&name.as_bytes()[..length.into()]);
    }

    fn text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).unwrap_or(0);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&text.as_bytes()[..length as usize]);
    }

    fn u64(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// Starts the model; `start` is a JSON object.
    pub fn start(&mut self, start: &str) {
        self.begin(kind::START);
        self.text(start);
        self.end();
    }

    /// Ends the model.
    pub fn finalize(&mut self) {
        self.begin(kind::FINALIZE);
        self.end();
    }

    /// Asks the model's hook `is_ready`.
    pub fn ask_ready(&mut self, number: u64) {
        self.begin(kind::ASK_READY);
        self.u64(number);
        self.end();
    }

    /// Asks for the lent memory that nothing refers to any more.
    pub fn flush(&mut self) {
        self.begin(kind::FLUSH);
        self.end();
    }

    /// Asks for the pages of free memory from an offset on.
    pub fn trim(&mut self, from: u64) {
        self.begin(kind::TRIM);
        self.u64(from);
        self.end();
    }

    /// Gives memory back, by offset.
    pub fn free(&mut self, offsets: &[u64]) {
        self.begin(kind::FREE);
        self.bytes.extend_from_slice(&u32::try_from(offsets.len()).unwrap_or(0).to_le_bytes());
        offsets.iter().for_each(|&offset| self.u64(offset));
        self.end();
    }

    /// Answers a question with a number.
    pub fn reply(&mut self, question: u64, number: u64) {
        self.begin(kind::REPLY);
        self.u64(question);
        self.bytes.push(0);
        self.u64(number);
        self.end();
    }

    /// Refuses a question.
    pub fn refuse(&mut self, question: u64, message: &str) {
        self.begin(kind::REPLY);
        self.u64(question);
        self.bytes.push(1);
        self.text(message);
        self.end();
    }

    /// Begins a frame of requests.
    pub fn begin_execute(&mut self) {
        self.begin(kind::EXECUTE);
        self.bytes.extend_from_slice(&[0; 4]);
    }

    /// Ends the frame of `count` requests.
    pub fn end_execute(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        let begin = self.start + HEADER_BYTES;
        if let Some(place) = self.bytes.get_mut(begin..begin + count.len()) {
            place.copy_from_slice(&count);
        }
        self.end();
    }

    /// Where the next thing is written.
    pub fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Takes back what was written since `mark`.
    pub fn undo(&mut self, mark: usize) {
        self.bytes.truncate(mark);
    }

    /// Ends a frame that was begun.
    pub fn finish(&mut self) {
        self.end();
    }

    /// A request; its inputs follow as tensors, `inputs` of them.
    pub fn request<'n>(
        &mut self,
        request: &Request<'_>,
        inputs: usize,
        outputs: impl ExactSizeIterator<Item = &'n str>,
    ) {
        let inputs = u16::try_from(inputs).unwrap_or(u16::MAX);
        self.u64(request.number);
        self.u64(request.timeout_us);
        let (number, text) = match request.correlation {
            Correlation::Number(number) => (*number, None),
            Correlation::Text(text) => (0, Some(text)),
        };
        self.u64(number);
        self.bytes.extend_from_slice(&request.flags.to_le_bytes());
        self.bytes.extend_from_slice(&inputs.to_le_bytes());
        let count = u16::try_from(outputs.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&count.to_le_bytes());
        self.bytes.push(text.is_some().into());
        self.text(request.id);
        if let Some(text) = text {
            self.name(text);
        }
        self.text(request.parameters);
        self.text(request.trace);
        outputs.take(count.into()).for_each(|name| self.name(name));
    }

    /// What comes before a tensor's bytes; one of [`Self::inline`] and [`Self::range`] follows.
    fn tensor(&mut self, name: &str, datatype: DataType, shape: &Shape, place: u8) {
        self.name(name);
        let rank = u8::try_from(shape.len()).unwrap_or(u8::MAX);
        self.bytes.extend_from_slice(&[datatype_number(datatype), rank, place]);
        for dim in shape.iter().take(rank.into()) {
            self.bytes.extend_from_slice(&dim.to_le_bytes());
        }
    }

    /// A tensor whose bytes, in pieces, travel in the frame.
    pub fn inline<'p>(
        &mut self,
        name: &str,
        datatype: DataType,
        shape: &Shape,
        length: usize,
        pieces: impl Iterator<Item = &'p [u8]>,
    ) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.tensor(name, datatype, shape, 0);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.align();
        pieces.for_each(|piece| self.bytes.extend_from_slice(piece));
    }

    /// A tensor whose bytes are in the shared memory, lent by the server.
    pub fn lent(&mut self, name: &str, datatype: DataType, shape: &Shape, range: Range) {
        self.tensor(name, datatype, shape, 1);
        self.u64(range.offset);
        self.u64(range.length);
    }

    /// Begins a response to a call. After one with tensors these follow, `tensors` of them.
    pub fn begin_response(&mut self, call: u64, is_last: bool, outcome: Option<CallOutcome<'_>>) {
        self.begin(kind::CALL_RESPONSE);
        self.u64(call);
        let last = u8::from(is_last);
        match outcome {
            None => self.bytes.extend_from_slice(&[last, 0, 0, 0]),
            Some(Ok((parameters, tensors))) => {
                let [low, high] = u16::try_from(tensors).unwrap_or(u16::MAX).to_le_bytes();
                self.bytes.extend_from_slice(&[last | 2, 0, low, high]);
                self.text(parameters);
            }
            Some(Err((code, message))) => {
                self.bytes.extend_from_slice(&[last | 2 | 4, code_number(code), 0, 0]);
                self.text(message);
            }
        }
    }
}
