//! What the calls that load and unload models say.

use crate::{
    inference::Error,
    ingress::describe,
    proto::{
        ModelRepositoryParameter, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
        model_repository_parameter::ParameterChoice,
    },
    repository::Overrides,
};

/// What a request gives in place of what is in the repository.
///
/// # Errors
/// It names a repository, or has a parameter that is not known or of another type.
pub fn overrides(request: RepositoryModelLoadRequest) -> Result<Overrides, Error> {
    describe::only_all_repositories(&request.repository_name)?;
    let mut overrides = Overrides::default();
    for (name, ModelRepositoryParameter { parameter_choice }) in request.parameters {
        let expected = |kind: &str| {
            Error::malformed(format!(
                "invalid value type for load parameter '{name}', expected {kind}."
            ))
        };
        if name == "config" {
            let Some(ParameterChoice::StringParam(config)) = parameter_choice else {
                return Err(expected("string_param"));
            };
            overrides.config = Some(config);
        } else if let Some(path) = name.strip_prefix(describe::FILE_PREFIX) {
            let Some(ParameterChoice::BytesParam(content)) = parameter_choice else {
                return Err(expected("bytes_param"));
            };
            overrides.files.push((path.to_owned(), content));
        } else {
            return Err(Error::malformed(format!("unrecognized load parameter '{name}'.")));
        }
    }
    Ok(overrides)
}

/// Whether the models that an ensemble has steps for are to go with it.
///
/// # Errors
/// It names a repository, or has a parameter of another type.
pub fn unload_dependents(request: &RepositoryModelUnloadRequest) -> Result<bool, Error> {
    describe::only_all_repositories(&request.repository_name)?;
    match request.parameters.get(describe::UNLOAD_DEPENDENTS) {
        None => Ok(false),
        Some(ModelRepositoryParameter {
            parameter_choice: Some(ParameterChoice::BoolParam(is_asked)),
        }) => Ok(*is_asked),
        Some(_) => Err(Error::malformed(format!(
            "invalid value type for '{}' parameter, expected bool_param.",
            describe::UNLOAD_DEPENDENTS
        ))),
    }
}

#[cfg(test)]
mod tests {
    use ParameterChoice::{BoolParam, BytesParam, Int64Param, StringParam};

    use super::*;

    fn load(parameters: &[(&str, ParameterChoice)]) -> Result<Overrides, String> {
        let parameters = parameters.iter().map(|(name, choice)| {
            let parameter_choice = Some(choice.clone());
            (name.to_string(), ModelRepositoryParameter { parameter_choice })
        });
        let request = RepositoryModelLoadRequest {
            parameters: parameters.collect(),
            ..RepositoryModelLoadRequest::default()
        };
        overrides(request).map_err(|error| error.to_string())
    }

    #[test]
    fn parameters_are_a_configuration_and_files() {
        let content = bytes::Bytes::from_static(b"x");
        let read = load(&[
            ("config", StringParam("{}".into())),
            ("file:1/model.onnx", BytesParam(content.clone())),
        ]);
        let files = vec![("1/model.onnx".to_owned(), content)];
        assert_eq!(read, Ok(Overrides { config: Some("{}".into()), files }));
    }

    #[test]
    fn other_parameters_and_types_are_refused() {
        for (name, value, expected) in [
            (
                "config",
                Int64Param(1),
                "invalid value type for load parameter 'config', expected string_param.",
            ),
            (
                "file:1/m",
                StringParam("x".into()),
                "invalid value type for load parameter 'file:1/m', expected bytes_param.",
            ),
            ("no_such", BoolParam(true), "unrecognized load parameter 'no_such'."),
        ] {
            assert_eq!(load(&[(name, value)]), Err(expected.to_owned()));
        }
        let mut request = RepositoryModelUnloadRequest::default();
        assert_eq!(unload_dependents(&request), Ok(false));
        let choices = [(BoolParam(true), Some(true)), (StringParam("x".into()), None)];
        for (value, expected) in choices {
            let parameter = ModelRepositoryParameter { parameter_choice: Some(value) };
            request.parameters.insert("unload_dependents".into(), parameter);
            assert_eq!(unload_dependents(&request).ok(), expected);
        }
        request.repository_name = "other".into();
        assert!(matches!(unload_dependents(&request), Err(Error::Unsupported { .. })));
    }
}
