//! Tensors in memory that the server maps: made and registered before the load, gone after it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    BenchError,
    args::{BenchArgs, SharedDevice, SharedMemory},
    control::{Control, Registration},
};
use crate::{
    device::{
        Device, ExportedMemory,
        cuda::{self, CudaSettings},
        host::{HostDevice, HostSettings},
    },
    memory::OwnObject,
};

/// Where tensors begin is a multiple of this: a cache line.
const ALIGNMENT: usize = 64;

/// A tensor's place in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset: usize,
    pub byte_size: usize,
}

/// Which tensors lie where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The region's name.
    pub region: String,
    /// In the order of the request's.
    pub inputs: Vec<Place>,
    /// In the order of the model's.
    pub outputs: Vec<Place>,
}

impl Layout {
    /// Inputs of these sizes and so many outputs, each with room for `output_size` bytes, one behind the
    /// other; and the bytes that all take.
    fn of(region: String, inputs: &[usize], outputs: usize, output_size: usize) -> (Self, usize) {
        let mut end = 0_usize;
        let mut place = |byte_size: usize| {
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + byte_size;
            Place { offset, byte_size }
        };
        let inputs = inputs.iter().map(|&size| place(size)).collect();
        let outputs = (0..outputs).map(|_| place(output_size)).collect();
        (Self { region, inputs, outputs }, end)
    }
}

/// The region of a run; registered until it is dropped.
pub struct Region<'a> {
    pub layout: Layout,
    control: &'a Control,
    registration: Registration,
    /// There as long as it is held.
    _memory: Memory,
}

enum Memory {
    System { _object: OwnObject },
    Cuda { _memory: ExportedMemory },
}

impl<'a> Region<'a> {
    /// Puts the inputs where the server can read them, and makes room for outputs.
    ///
    /// # Errors
    /// When there is no such memory, or the server refuses it.
    pub fn share(
        control: &'a Control,
        args: &BenchArgs,
        inputs: &[Bytes],
        outputs: usize,
    ) -> Result<Option<Self>, BenchError> {
        let (kind, output_size) = (args.shared_memory()?, args.output_shared_memory_size);
        // What a killed load generator has left may bear any process's number.
        let name = format!("nereid-bench-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let sizes: Vec<usize> = inputs.iter().map(Bytes::len).collect();
        let (layout, byte_size) = Layout::of(name.clone(), &sizes, outputs, output_size);
        let byte_size = byte_size.max(1);
        let mut content = vec![0; byte_size];
        for (place, input) in layout.inputs.iter().zip(inputs) {
            if let Some(bytes) = content.get_mut(place.offset..place.offset + place.byte_size) {
                bytes.copy_from_slice(input);
            }
        }
        let failed = |detail: String| BenchError::SharedMemory { detail };
        let (memory, registration) = match kind {
            SharedMemory::None => return Ok(None),
            SharedMemory::System => {
                let key = format!("/{name}");
                let object = OwnObject::create(&key, &content)
                    .map_err(|error| failed(format!("cannot make the object '{key}': {error}")))?;
                (Memory::System { _object: object }, Registration::System { key })
            }
            SharedMemory::Cuda => {
                let device = device(args.shared_memory_device).map_err(failed)?;
                let memory = device.share(&content).map_err(|error| failed(error.to_string()))?;
                let registration = Registration::Cuda { handle: memory.handle.0, device: 0 };
                (Memory::Cuda { _memory: memory }, registration)
            }
        };
        control.register(&name, &registration, byte_size)?;
        Ok(Some(Self { layout, control, registration, _memory: memory }))
    }
}

/// The device whose memory is shared.
fn device(kind: SharedDevice) -> Result<Arc<dyn Device>, String> {
    match kind {
        SharedDevice::Gpu => {
            let devices =
                cuda::open(&CudaSettings::default()).map_err(|error| error.to_string())?;
            let first = devices.into_iter().next().ok_or("there is no usable GPU")?;
            Ok(first)
        }
        SharedDevice::Host => {
            let device = HostDevice::start(HostSettings::default());
            Ok(Arc::new(device.map_err(|error| error.to_string())?))
        }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.control.unregister(&self.layout.region, &self.registration) {
            log::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_lie_one_behind_the_other() {
        let (layout, byte_size) = Layout::of("r".into(), &[10, 64, 0], 2, 100);
        let place = |offset, byte_size| Place { offset, byte_size };
        assert_eq!(layout.inputs, [place(0, 10), place(64, 64), place(128, 0)]);
        assert_eq!(layout.outputs, [place(128, 100), place(256, 100)]);
        assert_eq!(byte_size, 356);
    }
}
