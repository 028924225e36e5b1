use std::mem;

/// The field of ModelInferResponse that holds the outputs.
const OUTPUTS: u64 = 5;

/// The bytes before a gRPC message: a compression flag and the length in big-endian order.
const PREFIX: u8 = 5;

/// Checks the answer to ModelInfer as its bytes arrive: that they are one gRPC message, whose
/// fields are well formed, with outputs among them. Tensors are skipped, not kept.
#[derive(Debug, Default)]
pub struct ResponseScan {
    state: State,
    /// Bytes that are left of the message.
    left: u32,
    outputs: usize,
}

#[derive(Debug)]
enum State {
    /// This many bytes of the prefix were read.
    Prefix(u8),
    /// Between fields or inside of a field's tag.
    Tag(Varint),
    Length(u64, Varint),
    Number(Varint),
    Skip(u64),
}

impl Default for State {
    fn default() -> Self {
        Self::Prefix(0)
    }
}

#[derive(Debug, Default)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    fn push(&mut self, byte: u8) -> Result<Option<u64>, &'static str> {
        if self.bits >= 64 {
            return Err("a number in it is too long");
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

impl ResponseScan {
    /// Reads the next bytes.
    ///
    /// # Errors
    /// When they cannot be part of a good answer.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let State::Prefix(read) = &mut self.state {
                match *read {
                    0 if byte != 0 => return Err("it is compressed"),
                    0 => {}
                    _ => self.left = self.left << 8 | u32::from(byte),
                }
                *read += 1;
                if *read == PREFIX {
                    self.state = State::Tag(Varint::default());
                }
                bytes = rest;
                continue;
            }
            if let State::Skip(count) = &mut self.state {
                let skipped = (*count).min(bytes.len() as u64);
                *count -= skipped;
                if *count == 0 {
                    self.state = State::Tag(Varint::default());
                }
                self.consume(skipped)?;
                bytes = bytes.get(skipped as usize..).unwrap_or_default();
                continue;
            }
            self.consume(1)?;
            bytes = rest;
            self.state = match mem::take(&mut self.state) {
                State::Tag(mut tag) => match tag.push(byte)? {
                    None => State::Tag(tag),
                    Some(tag) => match tag & 7 {
                        0 => State::Number(Varint::default()),
                        1 => State::Skip(8),
                        2 => State::Length(tag >> 3, Varint::default()),
                        5 => State::Skip(4),
                        _ => return Err("it is no ModelInferResponse"),
                    },
                },
                State::Length(field, mut length) => match length.push(byte)? {
                    None => State::Length(field, length),
                    Some(length) => {
                        self.outputs += usize::from(field == OUTPUTS);
                        match length {
                            0 => State::Tag(Varint::default()),
                            _ => State::Skip(length),
                        }
                    }
                },
                State::Number(mut number) => match number.push(byte)? {
                    None => State::Number(number),
                    Some(_) => State::Tag(Varint::default()),
                },
                other @ (State::Prefix(_) | State::Skip(_)) => other,
            };
        }
        Ok(())
    }

    /// Ends the answer and tells how many outputs it has, at least one.
    ///
    /// # Errors
    /// When the message is cut off or has no outputs.
    pub fn finish(self) -> Result<usize, &'static str> {
        match self.state {
            State::Prefix(_) => Err("it is empty"),
            State::Tag(Varint { bits: 0, .. }) if self.left == 0 => match self.outputs {
                0 => Err("it has no outputs"),
                outputs => Ok(outputs),
            },
            _ => Err("it is cut off"),
        }
    }

    fn consume(&mut self, count: u64) -> Result<(), &'static str> {
        let left = u64::from(self.left).checked_sub(count).ok_or("it is longer than it says")?;
        self.left = left as u32;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::{
        InferParameter, ModelInferResponse, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor,
    };

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    fn scan(chunks: &[&[u8]]) -> Result<usize, &'static str> {
        let mut scan = ResponseScan::default();
        for chunk in chunks {
            scan.feed(chunk)?;
        }
        scan.finish()
    }

    proptest! {
        #[test]
        fn outputs_are_counted_however_the_bytes_arrive(
            outputs in prop::collection::vec((".{0,20}", prop::collection::vec(0u8.., 0..300)), 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut response = ModelInferResponse { id: "7".to_owned(), ..Default::default() };
            let flag = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
            response.parameters.insert("flag".to_owned(), flag);
            for (name, data) in &outputs {
                let output = InferOutputTensor { name: name.clone(), ..Default::default() };
                response.outputs.push(output);
                response.raw_output_contents.push(data.clone().into());
            }
            let bytes = framed(&response.encode_to_vec());
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let expected = if outputs.is_empty() { Err("it has no outputs") } else { Ok(outputs.len()) };
            prop_assert_eq!(scan(&chunks), expected);
            prop_assert!(scan(&[&bytes[..keep.index(bytes.len())]]).is_err());
            prop_assert!(scan(&[&bytes, b"\0"]).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(0u8.., 0..64)) {
            let _ = scan(&[&bytes]);
            let _ = scan(&[&framed(&bytes)]);
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (bytes, problem) in [
            (vec![], "it is empty"),
            (vec![1, 0, 0, 0, 0], "it is compressed"),
            (framed(&[]), "it has no outputs"),
            (framed(&[0x2c]), "it is no ModelInferResponse"),
            (framed(&[0x2a, 5]), "it is cut off"),
            (framed(&[0x80; 11]), "a number in it is too long"),
            (vec![0, 0, 0, 0, 1, 0x2a, 0], "it is longer than it says"),
        ] {
            assert_eq!(scan(&[&bytes]), Err(problem), "{bytes:?}");
        }
    }
}
