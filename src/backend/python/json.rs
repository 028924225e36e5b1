use serde_json::{Map, Number, Value};

use crate::inference::{Parameter, Parameters};

/// Parameters as a JSON object.
pub fn of_parameters(parameters: &Parameters) -> String {
    if parameters.is_empty() {
        return "{}".to_owned();
    }
    let members: Map<String, Value> =
        parameters.iter().map(|(name, value)| (name.to_owned(), value_of(value))).collect();
    Value::Object(members).to_string()
}

fn value_of(parameter: &Parameter) -> Value {
    match parameter {
        Parameter::Bool(value) => Value::Bool(*value),
        Parameter::Int(value) => Value::Number((*value).into()),
        Parameter::Uint(value) => Value::Number((*value).into()),
        Parameter::Double(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
        Parameter::String(value) => Value::String(value.to_string()),
    }
}

/// The parameters of a JSON object; members that no parameter can be are left out.
pub fn to_parameters(text: &str) -> Parameters {
    let mut parameters = Parameters::default();
    if text.is_empty() {
        return parameters;
    }
    let Ok(Value::Object(members)) = serde_json::from_str(text) else { return parameters };
    for (name, value) in members {
        let parameter = match value {
            Value::Bool(value) => Parameter::Bool(value),
            Value::String(value) => Parameter::String(value.into()),
            Value::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
                (Some(value), ..) => Parameter::Int(value),
                (None, Some(value), _) => Parameter::Uint(value),
                (None, None, Some(value)) => Parameter::Double(value),
                (None, None, None) => continue,
            },
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        parameters.insert(name, parameter);
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_the_way_to_python_and_back() {
        let mut parameters = Parameters::default();
        assert_eq!(of_parameters(&parameters), "{}");
        parameters.insert("a", Parameter::Int(-1));
        parameters.insert("b", Parameter::String("\"quoted\"".into()));
        parameters.insert("c", Parameter::Bool(true));
        parameters.insert("d", Parameter::Double(1.5));
        parameters.insert("e", Parameter::Uint(u64::MAX));
        assert_eq!(to_parameters(&of_parameters(&parameters)), parameters);
        assert!(to_parameters("[1]").is_empty() && to_parameters("{\"x\": null}").is_empty());
    }
}
