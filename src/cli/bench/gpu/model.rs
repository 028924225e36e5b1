use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::device::{
    Argument, Device, DeviceError, Kernel, KernelSource, Scalar, Stream,
    streams::{Compute, PlacedBatch, Runner},
};

/// Waits until a GPU's clock has gone on by a number of nanoseconds.
const SPIN: &str = "\
.version 7.0
.target sm_75
.address_size 64
.visible .entry spin(.param .u64 nanos)
{
    .reg .u64 %rd<5>;
    .reg .pred %p;
    ld.param.u64 %rd1, [nanos];
    mov.u64 %rd2, %globaltimer;
again:
    mov.u64 %rd3, %globaltimer;
    sub.u64 %rd4, %rd3, %rd2;
    setp.lt.u64 %p, %rd4, %rd1;
    @%p bra again;
    ret;
}
\0";

/// A kernel that waits for the number of nanoseconds that it is given.
pub(super) fn spin(device: &dyn Device) -> Result<Kernel, DeviceError> {
    device.kernel(&KernelSource {
        name: "spin".into(),
        image: Some(Bytes::from_static(SPIN.as_bytes())),
        // A host device waits by itself for what a launch costs.
        twin: Some(Arc::new(|_, _| Ok(()))),
    })
}

/// A model that keeps a device busy for a time and writes its first output.
pub(super) struct Synthetic {
    spin: Kernel,
    execute: Duration,
}

impl Synthetic {
    pub fn load(device: &dyn Device, execute: Duration) -> Result<Runner, DeviceError> {
        Runner::open(device, Box::new(Self { spin: spin(device)?, execute }))
    }
}

impl Compute for Synthetic {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let nanos = u64::try_from(self.execute.as_nanos()).unwrap_or(u64::MAX);
        let mut launch = self.spin.launch([1; 3], [1; 3]);
        launch.cost = self.execute;
        stream.launch(launch.with(Argument::Scalar(Scalar::U64(nanos))))?;
        match (batch.inputs, batch.outputs) {
            ([input, ..], [output, ..]) => stream.copy_within(input, output),
            _ => Ok(()),
        }
    }
}
