use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustc_hash::FxHashMap;

use crate::{
    device::{Device, DeviceError, DeviceSlice, HostTarget, Landing, Stream, Urgency},
    memory::Buffer,
    runtime::{ReplySender, reply_channel},
};

/// The porters of all devices, one of each, who begins work when something is first to be carried there.
#[derive(Default)]
pub(super) struct Porters(Mutex<FxHashMap<usize, Arc<Porter>>>);

impl Porters {
    /// The porter of a device. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When the device refuses, or there is no thread to be had.
    pub fn of(&self, device: &dyn Device) -> Result<Arc<Porter>, DeviceError> {
        let mut porters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = device.properties().index;
        if let Some(porter) = porters.get(&number) {
            return Ok(porter.clone());
        }
        let porter = Arc::new(Porter::start(device)?);
        porters.insert(number, porter.clone());
        Ok(porter)
    }
}

/// What copies bytes between a device and the host for whoever is no batch.
pub(super) struct Porter {
    device: usize,
    errands: Sender<Errand>,
}

type Reply = ReplySender<Result<(), DeviceError>>;

/// A copy between a device and the host.
enum Errand {
    Fetch { from: DeviceSlice, to: HostTarget, reply: Reply },
    Store { from: Bytes, to: DeviceSlice, reply: Reply },
}

impl Porter {
    /// With streams and a thread of its own.
    fn start(device: &dyn Device) -> Result<Self, DeviceError> {
        let number = device.properties().index;
        let (copies_in, copies_out) =
            (device.stream(Urgency::Urgent)?, device.stream(Urgency::Urgent)?);
        let (errands, taken) = unbounded();
        thread::Builder::new()
            .name(format!("device{number}-copies"))
            .spawn(move || carry(copies_in, copies_out, &taken))
            .map_err(|error| DeviceError::Driver {
                device: number,
                call: "starting a thread for its copies",
                reason: error.to_string(),
            })?;
        Ok(Self { device: number, errands })
    }

    /// A copy of bytes on the device in memory of the host, of the same length. To be called on a reactor.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn fetch(&self, from: &DeviceSlice, to: Buffer) -> Result<Bytes, DeviceError> {
        let (landing, to) = Landing::new(to);
        self.ask(|reply| Errand::Fetch { from: from.clone(), to, reply }).await?;
        let held = || self.failed("the device still holds a copy's memory");
        landing.finish().ok_or_else(held)
    }

    /// Copies bytes of the host to a place of the same length on the device. To be called on a reactor.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn store(&self, from: Bytes, to: DeviceSlice) -> Result<(), DeviceError> {
        self.ask(|reply| Errand::Store { from, to, reply }).await
    }

    async fn ask(&self, errand: impl FnOnce(Reply) -> Errand) -> Result<(), DeviceError> {
        let (reply, mut done) = reply_channel();
        // Should the thread have ended, the errand is dropped, and the reply with it.
        let _ = self.errands.send(errand(reply));
        done.receive().await.unwrap_or_else(|| Err(self.failed("it was not answered")))
    }

    fn failed(&self, reason: &str) -> DeviceError {
        let (device, reason) = (self.device, reason.to_owned());
        DeviceError::Driver { device, call: "a copy beside the batches", reason }
    }
}

/// Gives copies to the device's engines. To give one can take as long as the copy itself, where memory is
/// not pinned, so no reactor does.
fn carry(
    mut copies_in: Box<dyn Stream>,
    mut copies_out: Box<dyn Stream>,
    errands: &Receiver<Errand>,
) {
    for errand in errands {
        let (given, stream, reply) = match errand {
            Errand::Fetch { from, to, reply } => {
                (copies_out.copy_out(&from, to), &mut copies_out, reply)
            }
            Errand::Store { from, to, reply } => {
                (copies_in.copy_in(from, &to), &mut copies_in, reply)
            }
        };
        let error = given.err();
        // Also after an error, for a call before it may have failed later.
        let called = stream.call(Box::new(move |report| {
            reply.finish(error.map_or(report.outcome, Err));
        }));
        if let Err(error) = called {
            log::debug!("a copy beside the batches is not answered: {error}");
        }
    }
}
