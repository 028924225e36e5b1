//! What the program waits for while it serves: the end of its start, and what tells it to stop.

use std::{io, sync::mpsc, thread, time::Duration};

use nix::sys::signal::{SigSet, Signal};

use super::ServeError;
use crate::device::DeviceError;

/// Something that happened.
pub enum Event {
    /// The models that are wanted at the start have been loaded, or cannot be.
    Started(Result<(), ServeError>),
    /// A signal tells the program to stop.
    Signal(Signal),
    /// A device was lost, and the server is not to go on without it.
    DeviceLost(DeviceError),
}

/// Where events come in, one after the other.
pub struct Events {
    tell: mpsc::Sender<Event>,
    told: mpsc::Receiver<Event>,
}

impl Events {
    /// Hears of `signals`, which have to be blocked in all threads.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn hearing(signals: SigSet) -> io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let events = Self { tell, told };
        events.expect("signals", move |tell| {
            while let Ok(signal) = signals.wait() {
                if tell.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        Ok(events)
    }

    /// Where somebody tells of events.
    pub fn teller(&self) -> mpsc::Sender<Event> {
        self.tell.clone()
    }

    /// Starts the thread `name`, which tells of events.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn expect(
        &self,
        name: &str,
        work: impl FnOnce(mpsc::Sender<Event>) + Send + 'static,
    ) -> io::Result<()> {
        let tell = self.teller();
        thread::Builder::new().name(name.into()).spawn(move || work(tell)).map(drop)
    }

    /// Waits for what happens next.
    pub fn next(&self) -> Event {
        self.told.recv().expect("this holds a sender itself")
    }

    /// Waits until something happens, for `limit` at most.
    pub fn rest(&self, limit: Duration) {
        // Whichever of the two it was.
        let _ = self.told.recv_timeout(limit);
    }
}
