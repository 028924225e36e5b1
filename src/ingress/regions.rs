//! Registering shared memory. gRPC sends these messages, HTTP writes them as JSON.

use std::sync::Arc;

use super::away::away;
use crate::{
    device::IpcHandle,
    inference::Error,
    memory::Regions,
    proto::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryStatusResponse,
        SystemSharedMemoryRegisterRequest, SystemSharedMemoryStatusResponse,
        cuda_shared_memory_status_response::RegionStatus as CudaRegionStatus,
        system_shared_memory_status_response::RegionStatus,
    },
    serving::Server,
};

/// The region `name`, or all of them when it is empty.
///
/// # Errors
/// When there is none of that name.
pub fn status(server: &Server, name: &str) -> Result<SystemSharedMemoryStatusResponse, Error> {
    let regions = named(Kind::System, server, name, server.regions().all(), |it| &it.name)?;
    let described = regions.iter().map(|region| {
        let status = RegionStatus {
            name: region.name.to_string(),
            key: region.key.clone(),
            offset: region.offset,
            byte_size: region.byte_size,
        };
        (region.name.to_string(), status)
    });
    Ok(SystemSharedMemoryStatusResponse { regions: described.collect() })
}

/// What a region is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    System,
    Cuda,
}

/// Of `all` regions of a kind the one of a `name`, or all when it is empty.
fn named<R>(
    kind: Kind,
    server: &Server,
    name: &str,
    mut all: Vec<Arc<R>>,
    name_of: impl Fn(&R) -> &str,
) -> Result<Vec<Arc<R>>, Error> {
    if name.is_empty() {
        return Ok(all);
    }
    all.retain(|region| name_of(region) == name);
    let is_other = match kind {
        Kind::System => server.device_regions().all().iter().any(|region| *region.name == *name),
        Kind::Cuda => server.regions().all().iter().any(|region| *region.name == *name),
    };
    let name = name.to_owned();
    match kind {
        Kind::System if is_other => {
            Err(Error::RegionOfOtherKind { name, is: "CUDA", asked: "system" })
        }
        Kind::Cuda if is_other => {
            Err(Error::RegionOfOtherKind { name, is: "system", asked: "CUDA" })
        }
        Kind::System if all.is_empty() => Err(Error::UnknownRegion { kind: "system ", name }),
        Kind::Cuda if all.is_empty() => Err(Error::UnknownRegion { kind: "cuda ", name }),
        Kind::System | Kind::Cuda => Ok(all),
    }
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

/// The CUDA region `name`, or all of them when it is empty.
///
/// # Errors
/// When there is none of that name.
pub fn cuda_status(server: &Server, name: &str) -> Result<CudaSharedMemoryStatusResponse, Error> {
    let regions = named(Kind::Cuda, server, name, server.device_regions().all(), |it| &it.name)?;
    let described = regions.iter().map(|region| {
        let status = CudaRegionStatus {
            name: region.name.to_string(),
            device_id: region.device as u64,
            byte_size: region.byte_size,
        };
        (region.name.to_string(), status)
    });
    Ok(CudaSharedMemoryStatusResponse { regions: described.collect() })
}

/// Registers a CUDA region.
///
/// # Errors
/// When it cannot be had, or clients may not.
pub async fn cuda_register(
    server: &Arc<Server>,
    request: CudaSharedMemoryRegisterRequest,
) -> Result<(), Error> {
    let handle = <[u8; IpcHandle::BYTES]>::try_from(&*request.raw_handle)
        .map_err(|_| Error::malformed("failed to register shared memory region: invalid args"))?;
    let server = server.clone();
    // The driver takes its time, and may have to be started first.
    away(move || {
        let CudaSharedMemoryRegisterRequest { name, device_id, byte_size, .. } = request;
        let (regions, host) = (server.device_regions(), server.regions());
        regions.register(host, &name, IpcHandle(handle), device_id, byte_size)
    })
    .await
}
