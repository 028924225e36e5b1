//! The bodies of the calls about shared memory.

use bytes::Bytes;
use serde::Serialize;

use super::{
    body::{base64, members, skip, string, unsigned},
    metadata::write,
};
use crate::{
    device::IpcHandle,
    inference::{Error, Rope},
    proto::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryStatusResponse,
        SystemSharedMemoryRegisterRequest, SystemSharedMemoryStatusResponse,
    },
};

/// The body of a status.
pub fn status(status: &SystemSharedMemoryStatusResponse) -> Bytes {
    #[derive(Serialize)]
    struct Region<'a> {
        name: &'a str,
        key: &'a str,
        offset: u64,
        byte_size: u64,
    }
    let regions = status.regions.values();
    let body: Vec<_> = regions
        .map(|region| Region {
            name: &region.name,
            key: &region.key,
            offset: region.offset,
            byte_size: region.byte_size,
        })
        .collect();
    write(&body)
}

/// The body of a status of CUDA regions.
pub fn cuda_status(status: &CudaSharedMemoryStatusResponse) -> Bytes {
    #[derive(Serialize)]
    struct Region<'a> {
        name: &'a str,
        device_id: u64,
        byte_size: u64,
    }
    let regions = status.regions.values();
    let body: Vec<_> = regions
        .map(|region| Region {
            name: &region.name,
            device_id: region.device_id,
            byte_size: region.byte_size,
        })
        .collect();
    write(&body)
}

/// What to register under `name`.
///
/// # Errors
/// The body is not JSON, or lacks a member.
pub fn register(name: &str, body: &Rope) -> Result<SystemSharedMemoryRegisterRequest, Error> {
    check_name(name, "system")?;
    let (mut key, mut offset, mut byte_size) = (None, 0, None);
    members(body, |cursor, member| {
        match member {
            "key" => key = Some(string(cursor)?),
            "offset" => offset = unsigned(cursor)?,
            "byte_size" => byte_size = Some(unsigned(cursor)?),
            _ => skip(cursor)?,
        }
        Ok(())
    })?;
    Ok(SystemSharedMemoryRegisterRequest {
        name: name.to_owned(),
        key: key.ok_or_else(|| missing("key"))?,
        offset,
        byte_size: byte_size.ok_or_else(|| missing("byte_size"))?,
    })
}

/// What to register under `name` of a GPU's memory.
///
/// # Errors
/// The body is not JSON, or lacks a member, or has a handle of another size.
pub fn cuda_register(name: &str, body: &Rope) -> Result<CudaSharedMemoryRegisterRequest, Error> {
    check_name(name, "cuda")?;
    let (mut handle, mut device_id, mut byte_size) = (None, 0, None);
    members(body, |cursor, member| {
        match member {
            "raw_handle" => {
                let mut encoded = None;
                cursor.object(|cursor, member| match &*member {
                    "b64" => {
                        encoded = Some(string(cursor)?);
                        Ok(())
                    }
                    _ => skip(cursor),
                })?;
                handle = encoded;
            }
            "device_id" => device_id = unsigned(cursor)?,
            "byte_size" => byte_size = Some(unsigned(cursor)?),
            _ => skip(cursor)?,
        }
        Ok(())
    })?;
    let handle = handle.ok_or_else(|| missing("raw_handle"))?;
    let raw_handle = base64(&handle).filter(|handle| handle.len() == IpcHandle::BYTES);
    let raw_handle = raw_handle.ok_or_else(|| {
        Error::malformed("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    })?;
    Ok(CudaSharedMemoryRegisterRequest {
        name: name.to_owned(),
        raw_handle,
        device_id: i64::try_from(device_id).unwrap_or(i64::MAX),
        byte_size: byte_size.ok_or_else(|| missing("byte_size"))?,
    })
}

fn check_name(name: &str, kind: &str) -> Result<(), Error> {
    if !name.is_empty() {
        return Ok(());
    }
    Err(Error::malformed(format!(
        "'region name' is necessary to register {kind} shared memory region"
    )))
}

fn missing(member: &str) -> Error {
    Error::malformed(format!("Shared memory register request has no '{member}' field"))
}
