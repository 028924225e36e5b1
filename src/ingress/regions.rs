//! Registering shared memory. gRPC sends these messages, HTTP writes them as JSON.

use std::sync::Arc;

use crate::{
    inference::Error,
    memory::{Region, Regions},
    proto::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryStatusResponse,
        SystemSharedMemoryRegisterRequest, SystemSharedMemoryStatusResponse,
        system_shared_memory_status_response::RegionStatus,
    },
};

/// The size of CUDA's handle of memory that another process may open.
pub const CUDA_HANDLE_BYTES: usize = 64;

/// The region `name`, or all of them when it is empty.
///
/// # Errors
/// When there is none of that name.
pub fn status(regions: &Regions, name: &str) -> Result<SystemSharedMemoryStatusResponse, Error> {
    let mut all = regions.all();
    if !name.is_empty() {
        all.retain(|region| *region.name == *name);
        if all.is_empty() {
            return Err(Error::UnknownRegion { kind: "system ", name: name.to_owned() });
        }
    }
    let described = |region: &Arc<Region>| {
        let status = RegionStatus {
            name: region.name.to_string(),
            key: region.key.clone(),
            offset: region.offset,
            byte_size: region.byte_size,
        };
        (region.name.to_string(), status)
    };
    Ok(SystemSharedMemoryStatusResponse { regions: all.iter().map(described).collect() })
}

/// Registers a region.
///
/// # Errors
/// When it cannot be had, or clients may not.
pub fn register(
    regions: &Regions,
    request: &SystemSharedMemoryRegisterRequest,
) -> Result<(), Error> {
    let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = request;
    regions.register(name, key, *offset, *byte_size)
}

/// Forgets the region `name`, or all of them when it is empty.
pub fn unregister(regions: &Regions, name: &str) {
    match name {
        "" => regions.unregister_all(),
        name => regions.unregister(name),
    }
}

/// The CUDA region `name`, or all of them when it is empty: there are none without a GPU.
///
/// # Errors
/// When there is none of that name.
pub fn cuda_status(name: &str) -> Result<CudaSharedMemoryStatusResponse, Error> {
    match name {
        "" => Ok(CudaSharedMemoryStatusResponse::default()),
        name => Err(Error::UnknownRegion { kind: "cuda ", name: name.to_owned() }),
    }
}

/// Refuses to register a CUDA region, because the server uses no GPU.
pub fn cuda_register(request: &CudaSharedMemoryRegisterRequest) -> Error {
    match request.raw_handle.len() {
        CUDA_HANDLE_BYTES => Error::malformed(format!(
            "failed to register shared memory region '{}': this server uses no GPU, so there is no \
             device {}",
            request.name, request.device_id
        )),
        _ => Error::malformed("failed to register shared memory region: invalid args"),
    }
}
