//! The protobuf text format of `config.pbtxt`.
//!
//! The parser is prost-reflect's. It wants a colon between a field's name and `[`, which most
//! public configurations leave out as protobuf's own parser lets them, so [`scan`] adds it first;
//! the same pass remembers where each field stands, for errors found later.

mod scan;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::Path, sync::LazyLock};

use miette::Diagnostic as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::error::{Error, Location};
use crate::proto::ModelConfig;

/// The descriptor of `inference.ModelConfig`.
pub(super) fn model_config_descriptor() -> MessageDescriptor {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(crate::proto::DESCRIPTORS).expect("the embedded descriptors decode")
    });
    POOL.get_message_by_name("inference.ModelConfig").expect("the protocol has a ModelConfig")
}

/// A configuration as read from a file.
#[derive(Debug)]
pub(super) struct Parsed {
    pub config: ModelConfig,
    pub outline: Outline,
}

/// Where the fields of a file stand.
#[derive(Clone, Debug)]
pub(super) struct Outline {
    text: String,
    fields: HashMap<String, usize>,
}

/// Reads a configuration from the text of a `config.pbtxt`.
///
/// # Errors
/// The first fault, with its line and column; the file it names is `config.pbtxt`.
pub fn parse_config(text: &str) -> Result<ModelConfig, Error> {
    parse(Path::new("config.pbtxt"), text).map(|parsed| parsed.config)
}

/// Parses `text`, which came from `file`.
///
/// # Errors
/// [`Error::Text`] with the line and column of the first fault.
pub(super) fn parse(file: &Path, text: &str) -> Result<Parsed, Error> {
    // Replaced, not removed, so that offsets stay what they are in the file.
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => &format!("   {rest}"),
        None => text,
    };
    let scan = scan::scan(text);
    let full = with_colons(text, &scan.missing_colons);
    let fault = |offset: usize, message: String| {
        let before = scan.missing_colons.iter().enumerate();
        let added = before.take_while(|(index, at)| *at + index < offset).count();
        let (line, column) = line_and_column(text, offset - added);
        Error::Text { location: Location { file: file.to_owned(), line, column }, message }
    };
    let message =
        DynamicMessage::parse_text_format(model_config_descriptor(), &full).map_err(|error| {
            let start = error.labels().and_then(|mut labels| labels.next());
            fault(start.map_or(full.len(), |label| label.offset()), error.to_string())
        })?;
    let config = message.transcode_to().map_err(|error| fault(0, error.to_string()))?;
    Ok(Parsed { config, outline: Outline { text: text.to_owned(), fields: scan.fields } })
}

impl Outline {
    /// The line and column of `field`, or of the nearest field around it that the file has.
    pub fn position(&self, field: &str) -> Option<(usize, usize)> {
        let mut segments: Vec<String> = field.split('.').map(str::to_owned).collect();
        while let Some(last) = segments.pop() {
            let mut prefix: String =
                segments
                    .iter()
                    .map(|part| {
                        if part.ends_with(']') { format!("{part}.") } else { format!("{part}[0].") }
                    })
                    .collect();
            prefix.push_str(&last);
            let first_mention = || {
                let end = prefix.rfind('[').filter(|_| prefix.ends_with(']'))?;
                self.fields.get(prefix.get(..end)?)
            };
            if let Some(&offset) = self.fields.get(&prefix).or_else(first_mention) {
                return Some(line_and_column(&self.text, offset));
            }
        }
        None
    }
}

fn with_colons(text: &str, offsets: &[usize]) -> String {
    let mut full = String::with_capacity(text.len() + offsets.len());
    let mut done = 0;
    for &offset in offsets {
        full.push_str(text.get(done..offset).unwrap_or_default());
        full.push(':');
        done = offset;
    }
    full.push_str(text.get(done..).unwrap_or_default());
    full
}

/// The line and column, counted from 1, of a byte offset; of the end when it lies beyond.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut before =
        String::from_utf8_lossy(text.as_bytes().get(..offset).unwrap_or(text.as_bytes()));
    if offset >= text.len() {
        before = before.trim_end().to_owned().into();
    }
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}
