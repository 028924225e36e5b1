//! A pass over the tokens of a text-format file, ahead of the real parser.
//!
//! It never fails: what it cannot make sense of, the parser refuses with a better message.

use std::collections::HashMap;

/// Fields remembered per file; beyond it, positions are only as fine as what was seen before.
const FIELDS_MAX: usize = 65_536;
/// Nesting followed; the configuration's own messages are at most seven deep.
const DEPTH_MAX: usize = 32;

/// What the pass found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Byte offsets of each `[` that follows a field name without the colon that the parser wants.
    pub missing_colons: Vec<usize>,
    /// The byte offset of each field by its path, such as `input[1].dims[0]`; a path without a last
    /// index is the field's first mention.
    pub fields: HashMap<String, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Name,
    Number,
    String,
    Mark(u8),
}

/// A level of nesting; `None` in place of a path beyond [`DEPTH_MAX`].
enum Level {
    Message { prefix: Option<String> },
    List { field: Option<String> },
}

/// A field name whose value has not come yet.
struct Pending {
    field: Option<String>,
    offset: usize,
    colon: bool,
}

/// Finds the fields of `text` and the places where a colon is to be added.
pub(super) fn scan(text: &str) -> Scan {
    let mut pass = Pass {
        levels: vec![Level::Message { prefix: Some(String::new()) }],
        pending: None,
        counts: HashMap::new(),
        found: Scan::default(),
    };
    let mut position = 0;
    while let Some((kind, start, end)) = next_token(text.as_bytes(), position) {
        pass.token(kind, start, text.get(start..end).unwrap_or_default());
        position = end;
    }
    pass.found
}

struct Pass {
    levels: Vec<Level>,
    pending: Option<Pending>,
    counts: HashMap<String, usize>,
    found: Scan,
}

impl Pass {
    fn token(&mut self, kind: Kind, start: usize, text: &str) {
        match kind {
            Kind::Name => self.name(start, text),
            Kind::Number | Kind::String => self.scalar(start),
            Kind::Mark(b':') => {
                if let Some(pending) = &mut self.pending {
                    pending.colon = true;
                }
            }
            Kind::Mark(b'[') => self.open_list(start),
            Kind::Mark(b'{' | b'<') => self.open_message(start),
            Kind::Mark(b'}' | b'>' | b']') => {
                self.pending = None;
                if self.levels.len() > 1 {
                    self.levels.pop();
                }
            }
            Kind::Mark(_) => {}
        }
    }

    fn name(&mut self, start: usize, text: &str) {
        if self.pending.as_ref().is_some_and(|pending| pending.colon) {
            return self.scalar(start);
        }
        match self.levels.last() {
            Some(Level::Message { prefix }) => {
                let field = prefix.as_ref().map(|prefix| format!("{prefix}{text}"));
                if let Some(field) = &field
                    && self.found.fields.len() < FIELDS_MAX
                {
                    self.found.fields.entry(field.clone()).or_insert(start);
                }
                self.pending = Some(Pending { field, offset: start, colon: false });
            }
            _ => self.scalar(start),
        }
    }

    fn scalar(&mut self, start: usize) {
        if let Some(pending) = self.pending.take() {
            self.record(pending.field, pending.offset);
        } else if let Some(Level::List { field }) = self.levels.last() {
            self.record(field.clone(), start);
        }
    }

    fn open_list(&mut self, start: usize) {
        let field = self.pending.take().and_then(|pending| {
            if !pending.colon {
                self.found.missing_colons.push(start);
            }
            pending.field
        });
        self.levels.push(Level::List { field });
    }

    fn open_message(&mut self, start: usize) {
        let path = if let Some(pending) = self.pending.take() {
            self.record(pending.field, pending.offset)
        } else if let Some(Level::List { field }) = self.levels.last() {
            self.record(field.clone(), start)
        } else {
            None
        };
        let prefix = path.filter(|_| self.levels.len() < DEPTH_MAX).map(|path| format!("{path}."));
        self.levels.push(Level::Message { prefix });
    }

    /// Remembers one more occurrence of `field` and returns its path.
    fn record(&mut self, field: Option<String>, offset: usize) -> Option<String> {
        let field = field?;
        if self.found.fields.len() >= FIELDS_MAX {
            return None;
        }
        let count = self.counts.entry(field.clone()).or_insert(0);
        let path = format!("{field}[{count}]");
        *count += 1;
        self.found.fields.insert(path.clone(), offset);
        Some(path)
    }
}

/// The first token at or after `position`: its kind, start and end.
fn next_token(text: &[u8], mut position: usize) -> Option<(Kind, usize, usize)> {
    loop {
        match text.get(position)? {
            b'#' => position = end_of(text, position, |byte| byte != b'\n'),
            byte if byte.is_ascii_whitespace() || *byte == 0x0b => position += 1,
            quote @ (b'"' | b'\'') => {
                return Some((Kind::String, position, end_of_string(text, position, *quote)));
            }
            byte if byte.is_ascii_alphabetic() || *byte == b'_' => {
                let end =
                    end_of(text, position, |byte| byte.is_ascii_alphanumeric() || byte == b'_');
                return Some((Kind::Name, position, end));
            }
            byte if byte.is_ascii_digit() => {
                return Some((Kind::Number, position, end_of_number(text, position)));
            }
            mark => return Some((Kind::Mark(*mark), position, position + 1)),
        }
    }
}

fn end_of(text: &[u8], start: usize, belongs: impl Fn(u8) -> bool) -> usize {
    text.iter().skip(start).position(|&byte| !belongs(byte)).map_or(text.len(), |n| start + n)
}

/// A string ends at its quote or, being broken, at the end of its line.
fn end_of_string(text: &[u8], start: usize, quote: u8) -> usize {
    let mut position = start + 1;
    while let Some(&byte) = text.get(position) {
        match byte {
            b'\\' => position += 2,
            b'\n' => return position,
            _ if byte == quote => return position + 1,
            _ => position += 1,
        }
    }
    text.len()
}

fn end_of_number(text: &[u8], start: usize) -> usize {
    let mut position = start;
    let mut before = 0;
    while let Some(&byte) = text.get(position) {
        let exponent_sign = matches!(byte, b'+' | b'-') && matches!(before, b'e' | b'E');
        if !(byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || exponent_sign) {
            break;
        }
        before = byte;
        position += 1;
    }
    position
}
