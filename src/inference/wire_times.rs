use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Timestamp;

/// The protocol that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Wire {
    Grpc,
    Http,
}

/// When a request was received and its answer sent, for whoever notes that of some requests. An ingress
/// and the request share one, and the last to let go of it has it told.
#[derive(Clone)]
pub struct WireTimes(Arc<Shared>);

/// What is told in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireRecord {
    /// The protocol.
    pub wire: Wire,
    /// When the server began to wait for the request or to read it, and when it had it.
    pub received: (Timestamp, Timestamp),
    /// When the first answer began to be sent, and when the last was handed over; `None` when there was
    /// nobody to answer.
    pub sent: Option<(Timestamp, Timestamp)>,
}

type Listener = Box<dyn FnOnce(WireRecord) + Send>;

struct Shared {
    wire: Wire,
    began: Timestamp,
    rest: Mutex<Rest>,
}

#[derive(Default)]
struct Rest {
    received: Option<Timestamp>,
    sent: Option<(Timestamp, Timestamp)>,
    listener: Option<Listener>,
}

impl WireTimes {
    /// A request is waited for since `began`.
    pub fn waiting(wire: Wire, began: Timestamp) -> Self {
        Self(Arc::new(Shared { wire, began, rest: Mutex::default() }))
    }

    /// A request that was waited for since `began` has been received.
    pub fn received(wire: Wire, began: Timestamp) -> Self {
        let times = Self::waiting(wire, began);
        times.arrived();
        times
    }

    /// The request has been received.
    pub fn arrived(&self) {
        self.0.rest().received = Some(Timestamp::now());
    }

    /// An answer begins to be sent, and is until what this returns is dropped.
    pub fn sending(self) -> Sending {
        let now = Timestamp::now();
        self.0.rest().sent.get_or_insert((now, now));
        Sending(self)
    }

    /// Has `listener` told when all is over.
    pub fn afterwards(self, listener: impl FnOnce(WireRecord) + Send + 'static) {
        self.0.rest().listener = Some(Box::new(listener));
    }
}

impl Shared {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Rest { received, sent, listener } = std::mem::take(&mut *self.rest());
        if let Some(listener) = listener {
            let received = (self.began, received.unwrap_or(self.began));
            listener(WireRecord { wire: self.wire, received, sent });
        }
    }
}

impl fmt::Debug for WireTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WireTimes").field(&self.0.wire).field(&self.0.began).finish()
    }
}

/// An answer on its way to the wire.
#[derive(Debug)]
pub struct Sending(WireTimes);

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some((_, ended)) = &mut self.0.0.rest().sent {
            *ended = Timestamp::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_last_to_let_go_has_it_told() {
        let (report, told) = mpsc::channel();
        let ingress = WireTimes::received(Wire::Grpc, Timestamp::from_nanos(0));
        let model = ingress.clone();
        model.afterwards(move |record| report.send(record).unwrap());
        drop(ingress.clone().sending());
        assert!(told.try_recv().is_err());
        drop(ingress.sending());
        let record = told.recv().unwrap();
        let ((began, received), (first, last)) = (record.received, record.sent.unwrap());
        assert_eq!((record.wire, began), (Wire::Grpc, Timestamp::from_nanos(0)));
        assert!(received <= first && first < last, "{record:?}");
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_not_sent() {
        let (report, told) = mpsc::channel();
        let ingress = WireTimes::received(Wire::Http, Timestamp::from_nanos(0));
        let model = ingress.clone();
        drop(ingress);
        model.afterwards(move |record| report.send(record).unwrap());
        assert_eq!(told.recv().unwrap().sent, None);
    }
}
