use std::{borrow::BorrowMut, ops::Range, sync::Arc};

use bytes::Bytes;
use crossbeam_channel::{Sender, unbounded};

use super::{
    job::BatchParts,
    lane::{Cargo, Lane},
    worker::Runner,
};
use crate::device::{Device, DeviceError, Report, Stream};

/// A model with a lane of its own, which no scheduler knows: for those who run one batch and wait for
/// it, as trials before a model serves do.
pub struct Alone<R> {
    device: Arc<dyn Device>,
    lane: Lane,
    runner: R,
}

impl<R: BorrowMut<Runner>> Alone<R> {
    /// Opens the lane's streams on `device`, which the runner is for.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn open(device: Arc<dyn Device>, runner: R) -> Result<Self, DeviceError> {
        let lane = Lane::open(&*device)?;
        Ok(Self { device, lane, runner })
    }

    /// Where it runs.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Runs a batch and gives the outputs that came.
    ///
    /// # Errors
    /// The first that an operation met with.
    pub fn run(&mut self, parts: BatchParts) -> Result<Vec<Option<Bytes>>, DeviceError> {
        let mut cargo = Cargo::new(parts);
        self.lane.prepare(&*self.device, &mut cargo)?;
        let given = self.give(&mut cargo);
        // Also after an error: what was given before it has to end before the lane is used again.
        let (tell, told) = unbounded();
        let streams = [self.lane.copies_in(), &mut *self.runner.borrow_mut().stream];
        let mut called = streams.into_iter().try_for_each(|stream| report(stream, &tell));
        called = called.and(report(self.lane.copies_out(), &tell));
        drop(tell);
        let ran = told.into_iter().map(|report: Report| report.outcome).fold(Ok(()), Result::and);
        given.and(called).and(ran)?;
        cargo.finish().ok_or_else(|| DeviceError::Driver {
            device: self.device.properties().index,
            call: "copying outputs",
            reason: "the device still holds their memory".to_owned(),
        })
    }

    fn give(&mut self, cargo: &mut Cargo) -> Result<(), DeviceError> {
        let all = |bytes: usize| -> Range<usize> { 0..bytes };
        let (bytes_in, bytes_out) = cargo.bytes();
        self.lane.copy_in(cargo, &all(bytes_in))?;
        self.lane.execute(self.runner.borrow_mut(), cargo, false)?;
        self.lane.copy_out(cargo, &all(bytes_out))
    }
}

fn report(stream: &mut dyn Stream, tell: &Sender<Report>) -> Result<(), DeviceError> {
    let tell = tell.clone();
    // Nobody listens any more when the caller has gone.
    stream.call(Box::new(move |report| tell.send(report).unwrap_or_default()))
}
