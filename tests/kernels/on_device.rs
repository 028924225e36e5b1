//! Launches through the device room: on the host device, which runs twins, and on every GPU, which run
//! the embedded image.

use std::{
    cell::RefCell,
    sync::{Arc, mpsc::sync_channel},
};

use bytes::Bytes;
use nereid::{
    device::{
        Argument as Given, Device, DeviceSlice, Landing, Stream, Urgency,
        cuda::{self, CudaSettings},
        host::{HostDevice, HostSettings},
        kernels::{self, Grid},
    },
    memory::BufferPool,
};

use super::machine::{Argument, Machine};

pub struct OnDevice {
    device: Arc<dyn Device>,
    stream: RefCell<Box<dyn Stream>>,
    pool: BufferPool,
}

impl OnDevice {
    pub fn all() -> impl Iterator<Item = Self> {
        let host = HostDevice::start(HostSettings::default()).expect("threads can be had");
        let gpus = match cuda::open(&CudaSettings::default()) {
            Ok(gpus) => gpus,
            Err(reason) => {
                eprintln!("no GPU runs kernels here: {reason}");
                Vec::new()
            }
        };
        let gpus = gpus.into_iter().map(|gpu| gpu as Arc<dyn Device>);
        let all: Vec<Arc<dyn Device>> = gpus.chain([Arc::new(host) as Arc<dyn Device>]).collect();
        all.into_iter().map(Self::new)
    }

    fn new(device: Arc<dyn Device>) -> Self {
        let stream = RefCell::new(device.stream(Urgency::Normal).expect("a stream can be had"));
        let pool = BufferPool::new(1 << 20, 1 << 30).expect("memory can be had");
        Self { device, stream, pool }
    }

    /// A copy on the device, as far from a multiple of 16 as the original.
    fn place(&self, original: &[u8]) -> DeviceSlice {
        let start = original.as_ptr().addr() % 16;
        let memory =
            self.device.allocate(start + original.len().max(1)).expect("memory on a device");
        let slice = memory.slice(start..start + original.len()).expect("it is inside");
        let copied = self.stream.borrow_mut().copy_in(Bytes::copy_from_slice(original), &slice);
        copied.expect("a copy to the device");
        slice
    }

    fn fetch(&self, slice: &DeviceSlice) -> Landing {
        let (landing, target) = Landing::new(self.pool.allocate(slice.len()).expect("memory"));
        self.stream.borrow_mut().copy_out(slice, target).expect("a copy from the device");
        landing
    }
}

impl Machine for OnDevice {
    fn launch(&self, kernel: &str, grid: &Grid, arguments: Vec<Argument<'_>>) {
        let source = kernels::source(kernel).expect("a kernel of this name");
        let loaded =
            self.device.kernel(&source).unwrap_or_else(|error| panic!("{kernel}: {error}"));
        let mut launch = loaded.launch(grid.blocks, grid.threads);
        launch.shared_bytes = grid.shared_bytes;
        let mut written: Vec<(DeviceSlice, &mut [u8])> = Vec::new();
        for argument in arguments {
            launch = launch.with(match argument {
                Argument::Read(bytes) => Given::Read(self.place(bytes)),
                Argument::ReadTable(places) => {
                    Given::ReadTable(places.into_iter().map(|place| self.place(place)).collect())
                }
                Argument::Write(bytes) => {
                    let slice = self.place(bytes);
                    written.push((slice.clone(), bytes));
                    Given::Write(slice)
                }
                Argument::WriteTable(places) => {
                    let slices: Vec<_> = places.iter().map(|place| self.place(place)).collect();
                    written.extend(slices.iter().cloned().zip(places));
                    Given::WriteTable(slices)
                }
                Argument::Value(number) => Given::Scalar(number),
            });
        }
        self.stream.borrow_mut().launch(launch).unwrap_or_else(|error| panic!("{kernel}: {error}"));
        let fetched: Vec<_> =
            written.into_iter().map(|(slice, place)| (self.fetch(&slice), place)).collect();
        let (report, reported) = sync_channel(1);
        let call = Box::new(move |done| report.send(done).expect("the test waits"));
        self.stream.borrow_mut().call(call).expect("a call can be made");
        let done = reported.recv().expect("the call is made");
        done.outcome.unwrap_or_else(|error| panic!("{kernel}: {error}"));
        for (landing, place) in fetched {
            place.copy_from_slice(&landing.finish().expect("the copy is done"));
        }
    }
}
