//! Which group of calls, for restrictions, a path of gRPC belongs to.

use crate::ingress::restricted::ApiGroup;

/// The group of a call, if it is one that can be restricted.
pub fn of_path(path: &str) -> Option<ApiGroup> {
    if path == "/grpc.health.v1.Health/Check" {
        return Some(ApiGroup::Health);
    }
    Some(match path.strip_prefix("/inference.GRPCInferenceService/")? {
        "ServerLive" | "ServerReady" | "ModelReady" => ApiGroup::Health,
        "ServerMetadata" | "ModelMetadata" => ApiGroup::Metadata,
        "ModelInfer" | "ModelStreamInfer" => ApiGroup::Inference,
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => ApiGroup::SharedMemory,
        "ModelConfig" => ApiGroup::ModelConfig,
        "RepositoryIndex" | "RepositoryModelLoad" | "RepositoryModelUnload" => {
            ApiGroup::ModelRepository
        }
        "ModelStatistics" => ApiGroup::Statistics,
        "TraceSetting" => ApiGroup::Trace,
        "LogSettings" => ApiGroup::Logging,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    #[test]
    fn every_call_that_there_is_has_a_group() {
        let pool = DescriptorPool::decode(crate::proto::DESCRIPTORS).unwrap();
        let services: Vec<_> = pool
            .services()
            .filter(|service| !service.full_name().starts_with("grpc.reflection"))
            .collect();
        assert_eq!(services.len(), 2);
        for method in services.iter().flat_map(|service| service.methods()) {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            assert!(of_path(&path).is_some(), "{path}");
        }
        assert_eq!(of_path("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), None);
    }
}
