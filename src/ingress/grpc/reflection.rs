//! Server reflection: clients ask which services there are, and for the descriptors of their messages.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;
use prost_reflect::{DescriptorPool, FileDescriptor};
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use crate::proto::{
    DESCRIPTORS,
    reflection::{
        ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
        ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        server_reflection_server::ServerReflection,
    },
};

/// The service's name in version 1 and, with the same messages, in the version before.
pub const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

const NOT_FOUND: i32 = 5;
const INVALID_ARGUMENT: i32 = 3;

/// Answers from our own descriptors.
pub struct Reflection {
    descriptors: Arc<Descriptors>,
}

struct Descriptors(DescriptorPool);

impl Reflection {
    /// Reads the descriptors that were compiled in.
    pub fn new() -> Self {
        // They are the build's own output, which a test reads; without them nothing is found.
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap_or_default();
        Self { descriptors: Arc::new(Descriptors(pool)) }
    }
}

#[tonic::async_trait]
impl ServerReflection for Reflection {
    async fn server_reflection_info(
        &self,
        requests: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<BoxStream<ServerReflectionResponse>>, Status> {
        let descriptors = self.descriptors.clone();
        let answers = requests
            .into_inner()
            .map(move |request| request.map(|request| descriptors.response(request)));
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Descriptors {
    fn response(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = self.answer(request.message_request.as_ref()).unwrap_or_else(|what| {
            let code = if what.is_empty() { INVALID_ARGUMENT } else { NOT_FOUND };
            let message = match code {
                NOT_FOUND => format!("unknown {what}"),
                _ => "the request asks for nothing".to_owned(),
            };
            MessageResponse::ErrorResponse(ErrorResponse {
                error_code: code,
                error_message: message,
            })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    /// What is asked for, or what is not known.
    fn answer(&self, asked: Option<&MessageRequest>) -> Result<MessageResponse, String> {
        let pool = &self.0;
        match asked {
            None => Err(String::new()),
            Some(MessageRequest::ListServices(_)) => {
                let ours = pool.services().map(|service| service.full_name().to_owned());
                let names = ours.chain([SERVICES[1].to_owned()]);
                let service = names.map(|name| ServiceResponse { name }).collect();
                Ok(MessageResponse::ListServicesResponse(ListServiceResponse { service }))
            }
            Some(MessageRequest::FileByFilename(name)) => {
                let file = pool.get_file_by_name(name);
                file.map(with_imports).ok_or_else(|| format!("file '{name}'"))
            }
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                let file = self.file_of(symbol);
                file.map(with_imports).ok_or_else(|| format!("symbol '{symbol}'"))
            }
            Some(MessageRequest::FileContainingExtension(asked)) => {
                Err(format!("extension {} of '{}'", asked.extension_number, asked.containing_type))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                pool.get_message_by_name(name).ok_or_else(|| format!("type '{name}'"))?;
                // None of ours can be extended.
                Ok(MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                }))
            }
        }
    }

    /// The file that has a message, an enum, a service, or a member of one of them.
    fn file_of(&self, symbol: &str) -> Option<FileDescriptor> {
        let pool = &self.0;
        // Version 1alpha is described by version 1.
        let symbol = symbol.replace("grpc.reflection.v1alpha.", "grpc.reflection.v1.");
        let whole = |name: &str| {
            let message = pool.get_message_by_name(name).map(|it| it.parent_file());
            let message = message.or_else(|| Some(pool.get_enum_by_name(name)?.parent_file()));
            message.or_else(|| Some(pool.get_service_by_name(name)?.parent_file()))
        };
        let member = || {
            let (parent, member) = symbol.rsplit_once('.')?;
            let message = pool.get_message_by_name(parent);
            let has = message.is_some_and(|it| it.get_field_by_name(member).is_some())
                || pool
                    .get_enum_by_name(parent)
                    .is_some_and(|it| it.get_value_by_name(member).is_some())
                || pool
                    .get_service_by_name(parent)
                    .is_some_and(|it| it.methods().any(|method| method.name() == member));
            has.then(|| whole(parent)).flatten()
        };
        whole(&symbol).or_else(member)
    }
}

/// A file and all that it needs, each once.
fn with_imports(file: FileDescriptor) -> MessageResponse {
    let mut files = vec![file];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        for import in file.dependencies() {
            if !files.contains(&import) {
                files.push(import);
            }
        }
        next += 1;
    }
    let encoded = |file: &FileDescriptor| Bytes::from(file.file_descriptor_proto().encode_to_vec());
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
        file_descriptor_proto: files.iter().map(encoded).collect(),
    })
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::FileDescriptorProto;

    use super::*;

    fn ask(asked: MessageRequest) -> Result<Vec<String>, String> {
        let descriptors = Reflection::new().descriptors;
        let request = ServerReflectionRequest { host: "h".into(), message_request: Some(asked) };
        let response = descriptors.response(request.clone());
        assert_eq!(response.original_request, Some(request));
        match response.message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                Ok(list.service.into_iter().map(|service| service.name).collect())
            }
            MessageResponse::FileDescriptorResponse(files) => Ok(files
                .file_descriptor_proto
                .into_iter()
                .map(|file| FileDescriptorProto::decode(file).unwrap().name().to_owned())
                .collect()),
            MessageResponse::AllExtensionNumbersResponse(all) => Ok(vec![all.base_type_name]),
            MessageResponse::ErrorResponse(error) => Err(error.error_message),
        }
    }

    #[test]
    fn every_service_is_listed() {
        let mut names = ask(MessageRequest::ListServices(String::new())).unwrap();
        names.sort_unstable();
        let expected =
            ["grpc.health.v1.Health", SERVICES[0], SERVICES[1], "inference.GRPCInferenceService"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_symbol_leads_to_its_file_and_what_that_imports() {
        for symbol in [
            "inference.GRPCInferenceService",
            "inference.GRPCInferenceService.ModelInfer",
            "inference.ModelInferRequest",
            "inference.ModelInferRequest.InferInputTensor",
            "inference.ModelInferRequest.model_name",
        ] {
            let files = ask(MessageRequest::FileContainingSymbol(symbol.into())).unwrap();
            assert_eq!(files, ["grpc_service.proto", "model_config.proto"], "{symbol}");
        }
        for service in SERVICES {
            let files = ask(MessageRequest::FileContainingSymbol(service.into())).unwrap();
            assert_eq!(files, ["reflection.proto"]);
        }
        let by_name = ask(MessageRequest::FileByFilename("model_config.proto".into()));
        assert_eq!(by_name.unwrap(), ["model_config.proto"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let unknown = ask(MessageRequest::FileContainingSymbol("inference.Nothing".into()));
        assert_eq!(unknown, Err("unknown symbol 'inference.Nothing'".to_owned()));
        let unknown = ask(MessageRequest::FileByFilename("x.proto".into()));
        assert_eq!(unknown, Err("unknown file 'x.proto'".to_owned()));
        let none = ask(MessageRequest::AllExtensionNumbersOfType("inference.ModelConfig".into()));
        assert_eq!(none, Ok(vec!["inference.ModelConfig".to_owned()]));
    }
}
