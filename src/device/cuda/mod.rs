//! GPUs through CUDA's driver API, which is found at run time: without a driver there are no devices,
//! and one line says why.
//!
//! Only this folder names the driver's calls. Each goes through [`Context::call`](driver::Context),
//! which makes the device's primary context current (the one that other libraries in the process use
//! too) and tells errors that lose it from others. What an operation touches is kept alive until the
//! stream has passed it (`calls.rs`), for CUDA's copies and launches know nothing of owners.

mod calls;
mod device;
mod driver;
mod memory;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use cudarc::driver::{result, sys};

pub use self::{device::CudaDevice, memory::PinnedMemory};
use crate::device::{Device as _, DeviceError};

/// How GPUs are to be used.
#[derive(Clone, Debug)]
pub struct CudaSettings {
    /// GPUs of a lower compute capability are not used.
    pub compute_capability_min: (u32, u32),
    /// Freed memory of each device that is kept for later allocations, by device; 64 MiB unless
    /// named.
    pub pool_bytes: Vec<(usize, u64)>,
    /// Whether GPUs may read and write each other's memory.
    pub peer_access: bool,
    /// The image of [`kernels`](crate::device::kernels), where the program has none of its own.
    pub kernels: Option<Bytes>,
}

/// What each device keeps of freed memory unless told otherwise, as Triton's pools have it.
const POOL_BYTES: u64 = 64 << 20;
/// The driver API that this is built for.
const DRIVER_MIN: i32 = 13000;

impl Default for CudaSettings {
    fn default() -> Self {
        Self {
            compute_capability_min: (6, 0),
            pool_bytes: Vec::new(),
            peer_access: true,
            kernels: None,
        }
    }
}

impl CudaSettings {
    fn pool_bytes_of(&self, device: usize) -> u64 {
        let named = self.pool_bytes.iter().rev().find(|(index, _)| *index == device);
        named.map_or(POOL_BYTES, |(_, bytes)| *bytes)
    }
}

/// Why there are no GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnavailable {
    /// There is no driver.
    #[error("no CUDA driver was found (libcuda.so)")]
    NoDriver,
    /// The driver is too old.
    #[error(
        "the CUDA driver speaks version {}.{}, at least {}.{} is needed",
        found / 1000, found % 1000 / 10, DRIVER_MIN / 1000, DRIVER_MIN % 1000 / 10
    )]
    OldDriver {
        /// Its version, as the driver says it.
        found: i32,
    },
    /// The driver finds no GPU, or cannot be started.
    #[error("the CUDA driver cannot be used: {reason}")]
    Driver {
        /// The driver's words.
        reason: String,
    },
}

/// Opens all GPUs that can be used. One that cannot be is left out with a line in the log.
///
/// # Errors
/// When there is no driver, or it cannot be used.
pub fn open(settings: &CudaSettings) -> Result<Vec<Arc<CudaDevice>>, CudaUnavailable> {
    let unusable =
        |error: result::DriverError| CudaUnavailable::Driver { reason: driver::words(error) };
    // SAFETY: only looks for the library; its initialisers are NVIDIA's, who allow this.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaUnavailable::NoDriver);
    }
    let mut found = 0;
    // SAFETY: the call writes one integer; it is in every version of the driver.
    unsafe { sys::cuDriverGetVersion(&mut found) }.result().map_err(unusable)?;
    if found < DRIVER_MIN {
        return Err(CudaUnavailable::OldDriver { found });
    }
    result::init().map_err(unusable)?;
    let count = result::device::get_count().map_err(unusable)?;
    let opened =
        (0..usize::try_from(count).unwrap_or_default()).filter_map(|index| match CudaDevice::open(
            index, settings,
        ) {
            Ok(device) => Some(Arc::new(device)),
            Err(error) => {
                log::warn!("GPU {index} is not used: {error}");
                None
            }
        });
    let devices: Vec<_> = opened.collect();
    if settings.peer_access {
        connect(&devices);
    }
    Ok(devices)
}

/// Lets every device reach the memory of those that its hardware can reach.
fn connect(devices: &[Arc<CudaDevice>]) {
    for device in devices {
        for peer in devices.iter().filter(|peer| !Arc::ptr_eq(peer, device)) {
            if let Err(error) = device.reach(peer) {
                let (from, to) = (device.properties().index, peer.properties().index);
                log::info!("GPU {from} does not reach the memory of GPU {to}: {error}");
            }
        }
    }
}

/// The error for a GPU that this build cannot use.
fn too_old(device: usize, found: (u32, u32), min: (u32, u32)) -> DeviceError {
    DeviceError::Driver {
        device,
        call: "cuDeviceGetAttribute",
        reason: format!(
            "its compute capability is {}.{}, at least {}.{} is asked for",
            found.0, found.1, min.0, min.1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_one_line_says_so() {
        match open(&CudaSettings::default()) {
            Err(error) => assert!(error.to_string().contains("driver"), "{error}"),
            Ok(devices) => assert!(devices.iter().all(|device| device.lost().is_none())),
        }
        let old = CudaUnavailable::OldDriver { found: 12080 }.to_string();
        assert_eq!(old, "the CUDA driver speaks version 12.8, at least 13.0 is needed");
    }

    #[test]
    fn the_last_size_named_for_a_pool_counts() {
        let pool_bytes = vec![(0, 1), (1, 2), (0, 3)];
        let settings = CudaSettings { pool_bytes, ..CudaSettings::default() };
        let sizes = [0, 1, 2].map(|device| settings.pool_bytes_of(device));
        assert_eq!(sizes, [3, 2, POOL_BYTES]);
    }
}
