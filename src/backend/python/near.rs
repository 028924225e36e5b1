//! A process that the home reactor of its instance hears, and where it begins batches itself.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Outline, inbox::Broken, session::Session, supervisor::Seat};
use crate::{
    backend::{ModelRequest, NearBatch, NearInstance},
    runtime::{ReactorHandle, TURN, UnixStream, sleep, spawn, yield_now},
};

/// How long the reactor waits for a thread that still hears the process.
const RETRY_EVERY: Duration = Duration::from_millis(1);

/// An instance, for its home reactor.
pub struct Near {
    outline: Arc<Outline>,
    seat: Arc<Seat>,
    home: ReactorHandle,
}

impl Near {
    /// The instance of `seat`, whose home is `home`.
    pub fn new(outline: Arc<Outline>, seat: Arc<Seat>, home: ReactorHandle) -> Self {
        Self { outline, seat, home }
    }
}

impl NearInstance for Near {
    fn takes(&self, inputs: &mut dyn Iterator<Item = usize>) -> bool {
        self.seat.session().is_some_and(|session| session.takes(inputs))
    }

    fn running(&self) -> usize {
        self.seat.session().map_or(0, |session| session.running())
    }

    fn begin(&self, requests: Vec<ModelRequest>, batch: Box<dyn NearBatch>) {
        let begun = match self.seat.session() {
            Some(session) => session.begin(&self.outline, requests, batch),
            None => {
                self.outline.refuse(requests);
                Err(batch)
            }
        };
        // Whoever begins it is not told before it has.
        if let Err(batch) = begun
            && self.home.send(Box::new(move || batch.ended())).is_err()
        {
            log::debug!("a batch was begun after its reactor had ended");
        }
    }

    fn flush(&self) {
        if let Some(session) = self.seat.session() {
            session.line.send_kept();
        }
    }
}

/// Has the reactor `home` hear a process, unless it is to already.
pub fn attach(seat: &Arc<Seat>, session: &Arc<Session>, home: &ReactorHandle) {
    if !session.claim() {
        return;
    }
    let (seat, session) = (seat.clone(), session.clone());
    let hear = move || spawn(&"the process of a Python model", hear(seat, session));
    if home.send(Box::new(hear)).is_err() {
        log::debug!("a process was started after its reactor had ended");
    }
}

/// Hears a process until it ends, or says what it must not.
async fn hear(seat: Arc<Seat>, session: Arc<Session>) {
    while !session.attach() {
        sleep(RETRY_EVERY).await;
    }
    let attached = Attached(session);
    if let Err(error) = attached.hear(&seat).await {
        // Then the supervisor hears it.
        log::debug!("a reactor cannot hear a process: {error}");
    }
}

/// A process that a reactor hears; dropping it leaves that to the supervisor.
struct Attached(Arc<Session>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.detach();
    }
}

impl Attached {
    async fn hear(&self, seat: &Arc<Seat>) -> io::Result<()> {
        let Self(session) = self;
        let mut socket = UnixStream::adopt_own(session.line.inbound()?)?;
        let mut since = Instant::now();
        while self.hear_kept(seat) {
            if since.elapsed() > TURN {
                yield_now().await;
                since = Instant::now();
            }
            let read = poll_fn(|cx| session.inbox().fill(|buffer| socket.poll_read(cx, buffer)));
            if read.await? == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Hears what has come; false when the process cannot be trusted any more.
    fn hear_kept(&self, seat: &Arc<Seat>) -> bool {
        let Self(session) = self;
        let mut inbox = session.inbox();
        loop {
            let misdeed = match inbox.kept() {
                Ok(None) => return true,
                Ok(Some(said)) => match seat.hear(session, said) {
                    Ok(()) => continue,
                    Err(misdeed) => misdeed,
                },
                Err(Broken::Closed) => return false,
                Err(Broken::Malformed(error)) => error.to_string(),
            };
            session.distrust(misdeed);
            return false;
        }
    }
}
