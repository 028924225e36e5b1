use std::{ffi::CString, os::raw::c_void, sync::Arc};

use bytes::Bytes;
use cudarc::driver::{result, sys};

use super::{
    CudaSettings,
    calls::Calls,
    driver::Context,
    memory::{self, IpcAllocation, PinnedMemory, Shop},
    stream::{CudaEvent, CudaStream},
    too_old,
};
use crate::device::{
    Device, DeviceError, DeviceMemory, DeviceProperties, Event, ExportedMemory, IpcHandle, Kernel,
    KernelSource, Stream, Urgency,
};
use crate::memory::BufferPool;

/// A GPU.
pub struct CudaDevice {
    properties: DeviceProperties,
    shop: Arc<Shop>,
    calls: Arc<Calls>,
    /// For kernels of ours that came without code.
    kernels: Option<Bytes>,
}

/// A function of a module that is loaded.
pub(super) struct Function {
    context: Arc<Context>,
    module: sys::CUmodule,
    pub raw: sys::CUfunction,
}

// SAFETY: modules and functions may be used from any thread; the handles are names.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Drop for Function {
    fn drop(&mut self) {
        // SAFETY: loaded once for this function; launches of it hold this.
        self.context.release("cuModuleUnload", || unsafe { result::module::unload(self.module) });
    }
}

impl CudaDevice {
    pub(super) fn open(index: usize, settings: &CudaSettings) -> Result<Self, DeviceError> {
        let context = Arc::new(Context::retain(index)?);
        let handle = context.handle;
        let (name, capability) = context.call("cuDeviceGetAttribute", || {
            use sys::CUdevice_attribute as Attribute;
            // SAFETY: the device exists.
            let attribute = |which| unsafe { result::device::get_attribute(handle, which) };
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            Ok((result::device::get_name(handle)?, (major.unsigned_abs(), minor.unsigned_abs())))
        })?;
        if capability < settings.compute_capability_min {
            return Err(too_old(index, capability, settings.compute_capability_min));
        }
        let shop = Arc::new(Shop::open(context.clone(), settings.pool_bytes_of(index))?);
        let calls = Calls::start(&context).map_err(|error| DeviceError::Driver {
            device: index,
            call: "starting its thread",
            reason: error.to_string(),
        })?;
        let properties = DeviceProperties {
            index,
            name,
            memory_bytes: shop.total(),
            compute_capability: Some(capability),
            wants_pinned: true,
        };
        Ok(Self { properties, shop, calls, kernels: settings.kernels.clone() })
    }

    fn context(&self) -> &Arc<Context> {
        &self.shop.context
    }

    /// Registers a pool's arena, so that copies of what lies in it are asynchronous and fast, on all
    /// devices.
    ///
    /// # Errors
    /// When the driver refuses, as it does when a limit on locked memory is passed.
    pub fn pin(&self, pool: &BufferPool) -> Result<PinnedMemory, DeviceError> {
        PinnedMemory::register(self.context(), pool)
    }

    /// Lets this device read and write a peer's memory.
    pub(super) fn reach(&self, peer: &CudaDevice) -> Result<(), DeviceError> {
        let (own, other) = (self.context().handle, peer.context().handle);
        let raw = peer.context().raw;
        self.context().call("cuCtxEnablePeerAccess", || {
            let mut possible = 0;
            // SAFETY: both devices exist; the call writes one integer.
            unsafe { sys::cuDeviceCanAccessPeer(&mut possible, own, other) }.result()?;
            if possible == 0 {
                return Err(result::DriverError(sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
            }
            // SAFETY: the peer's context is retained; there are no flags.
            match unsafe { sys::cuCtxEnablePeerAccess(raw, 0) } {
                sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
                other => other.result(),
            }?;
            // What lies in the peer's pool is made reachable by the pool itself.
            let access = sys::CUmemAccessDesc {
                location: sys::CUmemLocation {
                    type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                    id: own,
                },
                flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            };
            // SAFETY: the peer exists, and the description is one entry, which the call reads.
            unsafe {
                let pool = result::device::get_default_mem_pool(other)?;
                sys::cuMemPoolSetAccess(pool, &access, 1).result()
            }
        })
    }
}

impl Device for CudaDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        self.shop.allocate(bytes)
    }

    fn open_shared(&self, handle: IpcHandle) -> Result<DeviceMemory, DeviceError> {
        IpcAllocation::open(self.context(), handle)
    }

    fn share(&self, content: &[u8]) -> Result<ExportedMemory, DeviceError> {
        memory::share(self.context(), content)
    }

    fn free_bytes(&self) -> usize {
        self.shop.free_bytes()
    }

    fn stream(&self, urgency: Urgency) -> Result<Box<dyn Stream>, DeviceError> {
        let stream = CudaStream::open(self.context(), &self.calls, urgency)?;
        Ok(Box::new(stream))
    }

    fn event(&self) -> Result<Event, DeviceError> {
        Ok(Event(Arc::new(CudaEvent::open(self.context())?)))
    }

    fn kernel(&self, source: &KernelSource) -> Result<Kernel, DeviceError> {
        let device = self.properties.index;
        let refused = |reason: String| DeviceError::Kernel {
            device,
            kernel: source.name.to_string(),
            reason,
        };
        let image = source.image.as_ref().or(self.kernels.as_ref());
        let image = image.ok_or_else(|| refused("it has no code for GPUs".to_owned()))?;
        let name = CString::new(&*source.name)
            .map_err(|_| refused("its name holds a zero byte".to_owned()))?;
        let loaded = self.context().call("cuModuleLoadData", || {
            // SAFETY: the image is a whole fatbin or cubin, whose header gives its length, or PTX with
            // a zero at its end, as `KernelSource` asks for.
            let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) }?;
            // SAFETY: the module was just loaded.
            match unsafe { result::module::get_function(module, name) } {
                Ok(raw) => Ok((module, raw)),
                Err(error) => {
                    // SAFETY: nobody else has it.
                    unsafe { result::module::unload(module) }?;
                    Err(error)
                }
            }
        });
        let (module, raw) = loaded.map_err(|error| match error {
            DeviceError::Driver { reason, .. } => refused(reason),
            other => other,
        })?;
        let function = Function { context: self.context().clone(), module, raw };
        Ok(Kernel { name: source.name.clone(), device, code: Arc::new(function) })
    }

    fn lost(&self) -> Option<DeviceError> {
        self.context().lost().cloned()
    }
}
