//! A configuration as JSON, as Triton prints and reads it.
//!
//! Names are those of the `.proto` file and in its order, enum values are names, 64-bit integers
//! are numbers, and every field without presence is printed, so a reader finds `"input": []` and
//! `"max_batch_size": 0` rather than nothing.

use std::fmt::Write as _;

use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, Value,
};

use super::{error::Error, text::model_config_descriptor};
use crate::proto::ModelConfig;

/// The 64-bit integers that are texts all the same, as protobuf's own mapping has them.
const TEXTS: [&str; 3] = [
    "inference.ModelInstanceGroup.SecondaryDevice.device_id",
    "inference.ModelOptimizationPolicy.Cuda.GraphSpec.Shape.dim",
    "inference.ModelSequenceBatching.InitialState.dims",
];

/// Prints a configuration the way `GET /v2/models/{model}/config` does.
pub fn to_json(config: &ModelConfig) -> String {
    let mut message = DynamicMessage::new(model_config_descriptor());
    message.transcode_from(config).expect("a ModelConfig has its own descriptor");
    let mut json = String::new();
    write_message(&mut json, &message);
    json
}

/// Reads the configuration that a load request gives in place of the file's.
///
/// # Errors
/// The text is not JSON, or has a field or value that a configuration does not have.
pub fn from_json(json: &str) -> Result<ModelConfig, Error> {
    let invalid =
        |error: &dyn std::fmt::Display| Error::invalid(format!("Invalid config override: {error}"));
    let descriptor = model_config_descriptor();
    let mut value = serde_json::from_str(json).map_err(|error| invalid(&error))?;
    correct_enums(&descriptor, &mut value);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor, value, &options)
        .map_err(|error| invalid(&error))?
        .transcode_to()
        .map_err(|error| invalid(&error))
}

/// Writes the names of enum values as the `.proto` file does: Triton takes them in any case.
fn correct_enums(descriptor: &MessageDescriptor, value: &mut serde_json::Value) {
    let Some(members) = value.as_object_mut() else { return };
    for (name, value) in members {
        let field =
            descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(kind) = field.map(|field| field.kind()) else { continue };
        let (kind, values): (Kind, Vec<&mut serde_json::Value>) = match (kind, value) {
            (Kind::Message(entry), serde_json::Value::Object(entries)) if entry.is_map_entry() => {
                (entry.map_entry_value_field().kind(), entries.values_mut().collect())
            }
            (kind, serde_json::Value::Array(values)) => (kind, values.iter_mut().collect()),
            (kind, value) => (kind, vec![value]),
        };
        for value in values {
            match &kind {
                Kind::Message(message) => correct_enums(message, value),
                Kind::Enum(names) => {
                    let known = value.as_str().and_then(|given| {
                        names.values().find(|known| known.name().eq_ignore_ascii_case(given))
                    });
                    if let Some(known) = known {
                        *value = known.name().into();
                    }
                }
                _ => {}
            }
        }
    }
}

fn write_message(json: &mut String, message: &DynamicMessage) {
    json.push('{');
    let descriptor = message.descriptor();
    let declared = descriptor.descriptor_proto().field.iter();
    let fields = declared.filter_map(|field| descriptor.get_field_by_name(field.name()));
    let mut separator = "";
    for field in fields.filter(|field| !field.supports_presence() || message.has_field(field)) {
        json.push_str(separator);
        separator = ",";
        write_string(json, field.name());
        json.push(':');
        write_field(json, &field, &message.get_field(&field));
    }
    json.push('}');
}

fn write_field(json: &mut String, field: &FieldDescriptor, value: &Value) {
    let quote = if TEXTS.contains(&field.full_name()) { "\"" } else { "" };
    match value {
        Value::List(values) => {
            json.push('[');
            for (index, value) in values.iter().enumerate() {
                json.push_str(if index > 0 { "," } else { "" });
                json.push_str(quote);
                write_value(json, &field.kind(), value);
                json.push_str(quote);
            }
            json.push(']');
        }
        Value::Map(values) => {
            let entry = field.kind();
            let Some(entry) = entry.as_message() else { return };
            let kind = entry.map_entry_value_field().kind();
            let mut entries: Vec<(&MapKey, &Value)> = values.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            json.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                json.push_str(if index > 0 { "," } else { "" });
                write_string(json, &key_text(key));
                json.push(':');
                write_value(json, &kind, value);
            }
            json.push('}');
        }
        value => {
            json.push_str(quote);
            write_value(json, &field.kind(), value);
            json.push_str(quote);
        }
    }
}

fn write_value(json: &mut String, kind: &Kind, value: &Value) {
    let written = match value {
        Value::Bool(value) => write!(json, "{value}"),
        Value::I32(value) => write!(json, "{value}"),
        Value::I64(value) => write!(json, "{value}"),
        Value::U32(value) => write!(json, "{value}"),
        Value::U64(value) => write!(json, "{value}"),
        Value::F32(value) if value.is_finite() => write!(json, "{value}"),
        Value::F64(value) if value.is_finite() => write!(json, "{value}"),
        Value::F32(value) => write!(json, "\"{}\"", not_finite(f64::from(*value))),
        Value::F64(value) => write!(json, "\"{}\"", not_finite(*value)),
        Value::EnumNumber(number) => {
            match kind.as_enum().and_then(|kind| kind.get_value(*number)) {
                Some(value) => write!(json, "\"{}\"", value.name()),
                None => write!(json, "{number}"),
            }
        }
        Value::String(value) => {
            write_string(json, value);
            Ok(())
        }
        Value::Message(message) => {
            write_message(json, message);
            Ok(())
        }
        Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
            unreachable!("a configuration has no bytes and no nested lists")
        }
    };
    written.expect("a String takes all that is written");
}

/// The JSON mapping's names of the numbers that JSON does not have.
fn not_finite(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn write_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}
