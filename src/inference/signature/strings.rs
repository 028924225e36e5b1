//! Tensors of strings as they travel: each string behind its length.

use crate::inference::{Error, Rope};

/// Checks that `data` is exactly `expected` strings, each behind its length.
pub fn check(model: &str, input: &str, expected: u64, data: &Rope) -> Result<(), Error> {
    const PREFIX: usize = size_of::<u32>();
    let mut cursor = RopeCursor { rope: data, piece: 0, offset: 0 };
    let mut remaining = data.len();
    let mut count = 0_u64;
    while remaining > 0 {
        if count == expected && remaining >= PREFIX {
            return Err(Error::SurplusString {
                input: input.to_owned(),
                model: model.to_owned(),
                expected,
            });
        }
        if remaining < PREFIX {
            return Err(Error::TruncatedStringLength {
                input: input.to_owned(),
                model: model.to_owned(),
                got: remaining,
            });
        }
        let mut prefix = [0; PREFIX];
        cursor.read(&mut prefix);
        remaining -= PREFIX;
        let length = u32::from_le_bytes(prefix) as usize;
        if length > remaining {
            return Err(Error::TruncatedString {
                input: input.to_owned(),
                model: model.to_owned(),
                expected: length,
                got: remaining,
            });
        }
        cursor.skip(length);
        remaining -= length;
        count += 1;
    }
    if count != expected {
        return Err(Error::MissingStrings {
            input: input.to_owned(),
            model: model.to_owned(),
            expected,
            got: count,
        });
    }
    Ok(())
}

/// Walks a rope's bytes across its pieces; the caller never asks for more than is there.
struct RopeCursor<'a> {
    rope: &'a Rope,
    piece: usize,
    offset: usize,
}

impl RopeCursor<'_> {
    fn read(&mut self, target: &mut [u8]) {
        for byte in target {
            self.next_piece();
            *byte = self.rope.pieces()[self.piece][self.offset];
            self.offset += 1;
        }
    }

    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            self.next_piece();
            let step = count.min(self.rope.pieces()[self.piece].len() - self.offset);
            self.offset += step;
            count -= step;
        }
    }

    fn next_piece(&mut self) {
        if self.offset == self.rope.pieces()[self.piece].len() {
            self.piece += 1;
            self.offset = 0;
        }
    }
}
