use std::{os::raw::c_void, sync::Arc};

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUresult},
};

use super::driver::Context;
use crate::{
    device::{Allocation, DeviceError, DeviceMemory, ExportedMemory, IpcHandle},
    memory::BufferPool,
};

/// Memory of a GPU's pool.
pub(super) struct PoolAllocation {
    shop: Arc<Shop>,
    address: sys::CUdeviceptr,
    len: usize,
}

/// Where a device's memory is taken and given back: on one stream of its own, so that the pool can
/// use again what was given back.
pub(super) struct Shop {
    pub context: Arc<Context>,
    stream: sys::CUstream,
    total: usize,
}

// SAFETY: a stream may be used from any thread; the handle is a name.
unsafe impl Send for Shop {}
// SAFETY: as above.
unsafe impl Sync for Shop {}

impl Shop {
    /// Opens the device's default pool, which keeps `keep` bytes of what is given back.
    pub fn open(context: Arc<Context>, mut keep: u64) -> Result<Self, DeviceError> {
        let handle = context.handle;
        let (stream, total) = context.call("cuMemPoolSetAttribute", || {
            // SAFETY: the device exists; the attribute is a 64-bit integer, which the call reads.
            unsafe {
                let pool = result::device::get_default_mem_pool(handle)?;
                result::mem_pool::set_attribute(
                    pool,
                    sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                    (&raw mut keep).cast::<c_void>(),
                )?;
                let total = result::device::total_mem(handle)?;
                let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
                Ok((stream, total))
            }
        })?;
        Ok(Self { context, stream, total })
    }

    /// Takes memory that every stream may use.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Result<DeviceMemory, DeviceError> {
        let taken = self.context.call("cuMemAllocAsync", || {
            // SAFETY: the stream is alive. It has passed the allocation before the address is known
            // to anybody, so other streams need no event to use it.
            let taken = unsafe { result::malloc_async(self.stream, len.max(1)) };
            match taken {
                Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
                taken => {
                    let address = taken?;
                    // SAFETY: as above.
                    unsafe { result::stream::synchronize(self.stream) }?;
                    Ok(Some(address))
                }
            }
        })?;
        let Some(address) = taken else {
            let (device, free, total) = (self.context.device, self.free_bytes(), self.total);
            return Err(DeviceError::OutOfMemory { device, asked: len, free, total });
        };
        Ok(DeviceMemory::new(Arc::new(PoolAllocation { shop: self.clone(), address, len })))
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn free_bytes(&self) -> usize {
        let info = self.context.call("cuMemGetInfo", result::mem_get_info);
        info.map_or(0, |(free, _)| free)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // SAFETY: made in `open` and destroyed once; its allocations held the shop.
        self.context.release("cuStreamDestroy", || unsafe { result::stream::destroy(self.stream) });
    }
}

impl Allocation for PoolAllocation {
    fn address(&self) -> u64 {
        self.address
    }

    fn size(&self) -> usize {
        self.len
    }

    fn device(&self) -> usize {
        self.shop.context.device
    }
}

impl Drop for PoolAllocation {
    fn drop(&mut self) {
        let shop = &self.shop;
        // SAFETY: allocated on this stream and freed once. Operations that use the memory hold it, so
        // all of them have run, whatever stream they were on.
        shop.context
            .release("cuMemFreeAsync", || unsafe { result::free_async(self.address, shop.stream) });
    }
}

/// Memory of another process. Should that process end, using it may lose the device.
pub(super) struct IpcAllocation {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    len: usize,
}

impl IpcAllocation {
    /// Opens shared memory.
    pub fn open(context: &Arc<Context>, handle: IpcHandle) -> Result<DeviceMemory, DeviceError> {
        let raw = sys::CUipcMemHandle { reserved: handle.0.map(|byte| byte as std::ffi::c_char) };
        let mut refusal = None;
        let opened = context.call("cuIpcOpenMemHandle", || {
            let (mut address, mut base, mut len): (_, _, usize) = (0, 0, 0);
            let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
            // SAFETY: the calls write the places given; the handle is data that the driver checks.
            unsafe {
                let opened = sys::cuIpcOpenMemHandle_v2(&mut address, raw, flags).result();
                refusal = opened.err().map(refused);
                opened?;
                let range = sys::cuMemGetAddressRange_v2(&mut base, &mut len, address).result();
                if let Err(error) = range {
                    sys::cuIpcCloseMemHandle(address).result()?;
                    return Err(error);
                }
            }
            // A small allocation may be a part of a larger block, all of which was opened.
            let before = usize::try_from(address.saturating_sub(base)).unwrap_or(usize::MAX);
            Ok((address, len.saturating_sub(before)))
        });
        let device = context.device;
        let (address, len) = opened.map_err(|error| match (error, refusal) {
            (DeviceError::Driver { .. }, Some(reason)) => DeviceError::Shared { device, reason },
            (error, _) => error,
        })?;
        let context = context.clone();
        Ok(DeviceMemory::new(Arc::new(Self { context, address, len })))
    }
}

impl Allocation for IpcAllocation {
    fn address(&self) -> u64 {
        self.address
    }

    fn size(&self) -> usize {
        self.len
    }

    fn device(&self) -> usize {
        self.context.device
    }
}

impl Drop for IpcAllocation {
    fn drop(&mut self) {
        self.context.release("cuIpcCloseMemHandle", || {
            // SAFETY: opened in `open` and closed once; operations that use it held this.
            unsafe { sys::cuIpcCloseMemHandle(self.address) }.result()
        });
    }
}

/// Why the driver does not open a handle: its words, and what they mean here.
fn refused(error: DriverError) -> String {
    let hint = match error.0 {
        CUresult::CUDA_ERROR_INVALID_VALUE => {
            "; memory of virtual address ranges and of stream-ordered pools has no such handle, only \
             that of cudaMalloc has"
        }
        CUresult::CUDA_ERROR_INVALID_CONTEXT => "; it is memory of this very process",
        CUresult::CUDA_ERROR_INVALID_HANDLE | CUresult::CUDA_ERROR_MAP_FAILED => {
            "; the process that shares it may have ended, or it is on another device"
        }
        _ => "",
    };
    let words = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    format!("{}{hint}", words.unwrap_or_else(|| format!("{:?}", error.0)))
}

/// Memory that other processes may open.
struct Shared {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
}

/// Takes memory that holds `content` and that other processes may open.
pub(super) fn share(context: &Arc<Context>, content: &[u8]) -> Result<ExportedMemory, DeviceError> {
    let address = context.call("cuMemAlloc", || {
        // SAFETY: the call makes new memory, of a pool that the driver can share.
        unsafe { result::malloc_sync(content.len().max(1)) }
    })?;
    let memory = Shared { context: context.clone(), address };
    let handle = context.call("cuIpcGetMemHandle", || {
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the memory is as long as the content; the last call writes the handle.
        unsafe {
            result::memcpy_htod_sync(address, content)?;
            // The copy of pageable memory may still be under way on the device, and who opens the memory is
            // ordered behind nothing here.
            result::ctx::synchronize()?;
            sys::cuIpcGetMemHandle(&mut handle, address).result()?;
        }
        Ok(handle)
    })?;
    let handle = IpcHandle(handle.reserved.map(|byte| byte as u8));
    Ok(ExportedMemory { handle, _memory: Box::new(memory) })
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.context.release("cuMemFree", || {
            // SAFETY: taken in `share` and freed once.
            unsafe { result::free_sync(self.address) }
        });
    }
}

/// A pool's arena that is registered with CUDA, for all devices, so that copies of it are asynchronous and fast.
pub struct PinnedMemory {
    context: Arc<Context>,
    /// Keeps the arena where it is.
    pool: BufferPool,
}

impl PinnedMemory {
    pub(super) fn register(context: &Arc<Context>, pool: &BufferPool) -> Result<Self, DeviceError> {
        let (first, len) = (pool.arena_address().as_ptr().cast(), pool.arena_bytes());
        context.call("cuMemHostRegister", || {
            // SAFETY: the arena is mapped as long as this lives, which unregisters it before.
            unsafe { sys::cuMemHostRegister_v2(first, len, sys::CU_MEMHOSTREGISTER_PORTABLE) }
                .result()
        })?;
        Ok(Self { context: context.clone(), pool: pool.clone() })
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let first = self.pool.arena_address().as_ptr().cast();
        // SAFETY: registered in `register`; the memory is still there.
        self.context
            .release("cuMemHostUnregister", || unsafe { sys::cuMemHostUnregister(first) }.result());
    }
}
