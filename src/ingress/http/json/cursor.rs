use std::borrow::Cow;

use super::{Number, plain_length};
use crate::inference::Error;

/// How deep arrays and objects may nest.
pub const DEPTH_MAX: u32 = 100;

/// Where and why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to parse the request JSON buffer: {problem} at {at}")]
pub struct SyntaxError {
    pub problem: Problem,
    /// The byte offset in the text.
    pub at: usize,
}

/// What is wrong with a text, in Triton's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("The document is empty.")]
    Empty,
    #[error("The document root must not be followed by other values.")]
    TrailingValues,
    #[error("Invalid value.")]
    InvalidValue,
    #[error("Missing a name for object member.")]
    MissingName,
    #[error("Missing a colon after a name of object member.")]
    MissingColon,
    #[error("Missing a comma or '}}' after an object member.")]
    MissingCommaInObject,
    #[error("Missing a comma or ']' after an array element.")]
    MissingCommaInArray,
    #[error("Missing a closing quotation mark in string.")]
    UnclosedString,
    #[error("Invalid escape character in string.")]
    InvalidEscape,
    #[error("Incorrect hex digit after \\u escape in string.")]
    InvalidHex,
    #[error("The surrogate pair in string is invalid.")]
    InvalidSurrogate,
    #[error("Invalid encoding in string.")]
    InvalidEncoding,
    #[error("Miss fraction part in number.")]
    MissingFraction,
    #[error("Miss exponent in number.")]
    MissingExponent,
    #[error("Arrays and objects are nested deeper than {DEPTH_MAX} levels.")]
    TooDeep,
}

impl From<SyntaxError> for Error {
    fn from(error: SyntaxError) -> Self {
        Error::malformed(error.to_string())
    }
}

/// What the next value is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
    /// The first byte begins no value, or there is none.
    Invalid,
}

/// A place in a JSON text. Its methods read the value there and leave the cursor behind it.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`, which are held against UTF-8 at once.
    pub fn new(bytes: &'a [u8]) -> Result<Self, SyntaxError> {
        let text = std::str::from_utf8(bytes).map_err(|error| SyntaxError {
            problem: Problem::InvalidEncoding,
            at: error.valid_up_to(),
        })?;
        let mut cursor = Self { text, at: 0, depth: 0 };
        match cursor.peek() {
            Some(_) => Ok(cursor),
            None => Err(cursor.error(Problem::Empty)),
        }
    }

    /// Checks that nothing follows the value that was read.
    pub fn finish(mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error(Problem::TrailingValues)),
        }
    }

    /// What the next value is.
    #[inline]
    pub fn kind(&mut self) -> Kind {
        match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => Kind::Number,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            _ => Kind::Invalid,
        }
    }

    /// The bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.text.len() - self.at
    }

    /// Reads an object; `member` must read the value that belongs to the name.
    pub fn object<E: From<SyntaxError>>(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open(b'{')?;
        if !self.take(b'}') {
            loop {
                let name = self.name()?;
                member(self, name)?;
                if self.take(b'}') {
                    break;
                }
                self.expect(b',', Problem::MissingCommaInObject)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array; `element` must read one value.
    pub fn array<E: From<SyntaxError>>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open(b'[')?;
        if !self.take(b']') {
            loop {
                element(self)?;
                if self.take(b']') {
                    break;
                }
                self.expect(b',', Problem::MissingCommaInArray)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array, nested or flat, and has `leaf` read each value in it that is not an array.
    pub fn leaves<E: From<SyntaxError>>(
        &mut self,
        mut leaf: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let base = self.depth;
        let mut opened = false;
        loop {
            match self.peek() {
                Some(b']') if opened => {
                    self.at += 1;
                    self.depth -= 1;
                }
                Some(b'[') => {
                    self.open(b'[')?;
                    opened = true;
                    continue;
                }
                _ => leaf(self)?,
            }
            opened = false;
            while self.depth > base {
                if self.take(b']') {
                    self.depth -= 1;
                    continue;
                }
                self.expect(b',', Problem::MissingCommaInArray)?;
                break;
            }
            if self.depth == base {
                return Ok(());
            }
        }
    }

    /// Reads a string; it is copied only if it has escapes.
    #[inline]
    pub fn string(&mut self) -> Result<Cow<'a, str>, SyntaxError> {
        self.expect(b'"', Problem::InvalidValue)?;
        self.characters()
    }

    /// Reads what is behind the quote that opens a string.
    #[inline]
    fn characters(&mut self) -> Result<Cow<'a, str>, SyntaxError> {
        let start = self.at;
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        let end = start + plain_length(rest);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(self.text.get(start..end).unwrap_or_default()));
        }
        self.unescaped().map(Cow::Owned)
    }

    /// The same for a string that has escapes or does not end.
    #[cold]
    fn unescaped(&mut self) -> Result<String, SyntaxError> {
        let mut unescaped = String::new();
        loop {
            let start = self.at;
            self.plain_characters()?;
            unescaped.push_str(self.text.get(start..self.at).unwrap_or_default());
            if self.byte() == Some(b'"') {
                self.at += 1;
                return Ok(unescaped);
            }
            self.at += 1;
            unescaped.push(self.escape()?);
        }
    }

    /// Reads the next number if it is like most: a few digits and nothing else.
    #[inline]
    pub fn short_integer(&mut self) -> Option<u64> {
        // So many digits fit 64 bits, whatever they are.
        const DIGITS_MAX: usize = 18;
        let first = self.peek()?;
        let digits = self.text.as_bytes().get(self.at..)?;
        let mut value = 0;
        for (index, &byte) in digits.iter().take(DIGITS_MAX + 1).enumerate() {
            match byte {
                b'0'..=b'9' => value = value * 10 + u64::from(byte - b'0'),
                b'.' | b'e' | b'E' => return None,
                _ if index == 0 || (first == b'0' && index > 1) => return None,
                _ => {
                    self.at += index;
                    return Some(value);
                }
            }
        }
        None
    }

    /// Reads a number.
    #[inline]
    pub fn number(&mut self) -> Result<Number<'a>, SyntaxError> {
        self.whitespace();
        let (number, length) = Number::read(self.text, self.at)
            .map_err(|(problem, at)| SyntaxError { problem, at })?;
        self.at += length;
        Ok(number)
    }

    /// Reads `true` or `false`.
    pub fn boolean(&mut self) -> Result<bool, SyntaxError> {
        if self.literal("true") {
            Ok(true)
        } else if self.literal("false") {
            Ok(false)
        } else {
            Err(self.error(Problem::InvalidValue))
        }
    }

    /// Reads any value, holds it against the grammar and returns a cursor at its start.
    pub fn skip(&mut self) -> Result<Cursor<'a>, SyntaxError> {
        self.whitespace();
        let start = self.clone();
        let base = self.depth;
        // Bit `d` is set while the container at depth `d` is an object; depths stay below 128.
        let mut objects = 0_u128;
        loop {
            match self.kind() {
                Kind::Object => {
                    self.open(b'{')?;
                    if self.take(b'}') {
                        self.depth -= 1;
                    } else {
                        objects |= 1 << self.depth;
                        self.name()?;
                        continue;
                    }
                }
                Kind::Array => {
                    self.open(b'[')?;
                    if self.take(b']') {
                        self.depth -= 1;
                    } else {
                        objects &= !(1 << self.depth);
                        continue;
                    }
                }
                Kind::String => {
                    self.string()?;
                }
                Kind::Number => {
                    self.number()?;
                }
                Kind::Bool => {
                    self.boolean()?;
                }
                Kind::Null | Kind::Invalid => {
                    if !self.literal("null") {
                        return Err(self.error(Problem::InvalidValue));
                    }
                }
            }
            loop {
                if self.depth == base {
                    return Ok(start);
                }
                let in_object = objects >> self.depth & 1 == 1;
                if self.take(if in_object { b'}' } else { b']' }) {
                    self.depth -= 1;
                } else if in_object {
                    self.expect(b',', Problem::MissingCommaInObject)?;
                    self.name()?;
                    break;
                } else {
                    self.expect(b',', Problem::MissingCommaInArray)?;
                    break;
                }
            }
        }
    }

    fn name(&mut self) -> Result<Cow<'a, str>, SyntaxError> {
        if !self.take(b'"') {
            return Err(self.error(Problem::MissingName));
        }
        let name = self.characters()?;
        self.expect(b':', Problem::MissingColon)?;
        Ok(name)
    }

    fn open(&mut self, bracket: u8) -> Result<(), SyntaxError> {
        if self.peek() == Some(bracket) && self.depth >= DEPTH_MAX {
            return Err(self.error(Problem::TooDeep));
        }
        self.expect(bracket, Problem::InvalidValue)?;
        self.depth += 1;
        Ok(())
    }

    /// Moves to the next quote or backslash.
    fn plain_characters(&mut self) -> Result<(), SyntaxError> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += plain_length(rest);
        match self.byte() {
            None | Some(0) => Err(self.error(Problem::UnclosedString)),
            Some(..0x20) => Err(self.error(Problem::InvalidEncoding)),
            Some(_) => Ok(()),
        }
    }

    fn escape(&mut self) -> Result<char, SyntaxError> {
        let Some(escape) = self.byte() else {
            return Err(self.error(Problem::UnclosedString));
        };
        self.at += 1;
        Ok(match escape {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                let code = match unit {
                    0xD800..=0xDBFF => {
                        if !self.rest_starts_with("\\u") {
                            return Err(self.error(Problem::InvalidSurrogate));
                        }
                        self.at += 2;
                        let low = self.hex4()?;
                        if !(0xDC00..=0xDFFF).contains(&low) {
                            return Err(self.error(Problem::InvalidSurrogate));
                        }
                        0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
                    }
                    _ => unit,
                };
                char::from_u32(code).ok_or_else(|| self.error(Problem::InvalidSurrogate))?
            }
            _ => return Err(self.error(Problem::InvalidEscape)),
        })
    }

    fn hex4(&mut self) -> Result<u32, SyntaxError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.byte().and_then(|byte| char::from(byte).to_digit(16));
            code = code << 4 | digit.ok_or_else(|| self.error(Problem::InvalidHex))?;
            self.at += 1;
        }
        Ok(code)
    }

    fn literal(&mut self, literal: &str) -> bool {
        self.whitespace();
        let found = self.rest_starts_with(literal);
        if found {
            self.at += literal.len();
        }
        found
    }

    fn rest_starts_with(&self, prefix: &str) -> bool {
        self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(prefix.as_bytes()))
    }

    fn expect(&mut self, byte: u8, otherwise: Problem) -> Result<(), SyntaxError> {
        if self.take(byte) { Ok(()) } else { Err(self.error(otherwise)) }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn peek(&mut self) -> Option<u8> {
        self.whitespace();
        self.byte()
    }

    #[inline]
    fn whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error(&self, problem: Problem) -> SyntaxError {
        SyntaxError { problem, at: self.at }
    }
}
