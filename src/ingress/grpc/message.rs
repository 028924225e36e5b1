//! Messages in an HTTP/2 stream: five bytes of header, then the message, over any number of frames.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::RecvStream;

use super::{
    connection::{Connection, GrpcSettings},
    encode::FRAME_HEADER,
};
use crate::{
    inference::{Error, Rope},
    memory::{BufferPool, Reservation},
    runtime::{Sleep, sleep},
};

/// Takes a stream's frames apart into messages without copying them, unless they are tiny.
pub struct MessageReader {
    body: RecvStream,
    /// What has arrived and belongs to no message yet.
    arrived: Rope,
    /// The next message's length, and whether it is packed.
    next: Option<(usize, bool)>,
    settings: Arc<GrpcSettings>,
    /// Whether a message is to come, though nothing of it has.
    is_due: bool,
    /// Bytes of tensors that have come by the connection, also of frames that are not whole.
    came: Arc<AtomicU64>,
    /// Set while a message is awaited that is due or has come in parts.
    pause: Option<Box<Pause>>,
    memory: BufferPool,
    /// What has arrived, charged against the server's memory.
    reservation: Reservation,
    ended: bool,
}

/// How long nothing has come while there was a message to come. Whatever comes by the connection counts: its
/// client may be busy with another message.
struct Pause {
    timer: Pin<Box<Sleep>>,
    /// What had come when the timer was set.
    came: u64,
}

/// A message, and the charge for its memory, to be kept as long as it is.
pub struct Message {
    pub bytes: Rope,
    /// Whether it must be unpacked first.
    pub packed: bool,
    pub reservation: Reservation,
}

impl MessageReader {
    /// The messages of a stream. There may be any time before each.
    pub fn of_stream(body: RecvStream, connection: &Connection) -> Self {
        let memory = connection.server.pool();
        Self {
            body,
            arrived: Rope::default(),
            next: None,
            settings: connection.settings.clone(),
            is_due: false,
            came: connection.tensor_bytes.clone(),
            pause: None,
            memory: memory.clone(),
            reservation: memory.reservation(),
            ended: false,
        }
    }

    /// The message of a call that begins with one.
    pub fn of_call(body: RecvStream, connection: &Connection) -> Self {
        Self { is_due: true, ..Self::of_stream(body, connection) }
    }

    /// The next message, or `None` at the end of the stream.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.ended {
                return Poll::Ready(match self.arrived.len() {
                    0 if self.next.is_none() => Ok(None),
                    got => Err(Error::malformed(format!(
                        "the stream ended inside a message: expected {} bytes, got {got}",
                        self.next.map_or(FRAME_HEADER, |(len, _)| len)
                    ))),
                });
            }
            match self.poll_frame(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending => return self.poll_pause(cx).map(Err),
            }
        }
    }

    /// Ready with an error once a message that is due or has begun does not go on for too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if !self.is_due && self.arrived.is_empty() && self.next.is_none() {
            self.pause = None;
            return Poll::Pending;
        }
        let pause_max = self.settings.pause_max;
        let came = self.came.load(Ordering::Relaxed);
        let pause = self
            .pause
            .get_or_insert_with(|| Box::new(Pause { timer: Box::pin(sleep(pause_max)), came }));
        loop {
            ready!(pause.timer.as_mut().poll(cx));
            if pause.came == came {
                return Poll::Ready(Error::malformed(format!(
                    "the request's message paused for over {pause_max:?}"
                )));
            }
            // Once for many frames: a timer for each would cost as much as they do.
            pause.came = came;
            pause.timer.set(sleep(pause_max));
        }
    }

    /// Ready with an error once anything follows the only message of a unary call; never ready when
    /// nothing does. Its client need not say that it has ended before it is answered.
    pub fn poll_surplus(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        while self.arrived.is_empty() {
            // Nearly always the end came with the message: nothing to wait for, hence no waker.
            self.ended = self.ended || self.body.is_end_stream();
            if self.ended {
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_frame(cx)) {
                return Poll::Ready(error);
            }
        }
        // gRPC names this code for a call with another number of messages than its method takes.
        Poll::Ready(Error::Unsupported {
            detail: "the call has more than one request message, expected one".to_owned(),
        })
    }

    /// Takes in what arrives next, the stream's end included.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(match ready!(self.body.poll_data(cx)) {
            Some(Ok(frame)) => self.arrived(frame),
            Some(Err(error)) if error.is_reset() || error.is_io() || error.is_go_away() => {
                Err(Error::Cancelled)
            }
            Some(Err(error)) => {
                Err(Error::malformed(format!("the request's stream failed: {error}")))
            }
            None => {
                self.ended = true;
                Ok(())
            }
        })
    }

    /// The next message, or `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn arrived(&mut self, frame: Bytes) -> Result<(), Error> {
        let len = frame.len();
        self.reservation.grow(len)?;
        self.arrived.arrive(frame);
        // The window bounds what a client can send ahead; the message limit what we keep.
        self.body.flow_control().release_capacity(len).map_err(|_| Error::Cancelled)
    }

    fn take_message(&mut self) -> Result<Option<Message>, Error> {
        let (len, packed) = match self.next {
            Some(next) => next,
            None if self.arrived.len() < FRAME_HEADER => return Ok(None),
            None => {
                let next = self.read_header()?;
                *self.next.insert(next)
            }
        };
        if self.arrived.len() < len {
            return Ok(None);
        }
        (self.next, self.is_due) = (None, false);
        let bytes = self.arrived.split_to(len);
        let mut rest = self.memory.reservation();
        rest.grow(self.arrived.len())?;
        let reservation = std::mem::replace(&mut self.reservation, rest);
        Ok(Some(Message { bytes, packed, reservation }))
    }

    fn read_header(&mut self) -> Result<(usize, bool), Error> {
        let mut header = [0; FRAME_HEADER];
        self.arrived.split_to(FRAME_HEADER).copy_to(&mut header);
        let mut header = &header[..];
        let packed = match header.get_u8() {
            0 => false,
            1 => true,
            flag => {
                return Err(Error::malformed(format!(
                    "a message must begin with its compression flag, 0 or 1, got {flag}"
                )));
            }
        };
        let len = header.get_u32() as usize;
        if len > self.settings.message_max {
            return Err(Error::RequestTooLarge {
                limit: self.settings.message_max,
                got: len as u64,
            });
        }
        Ok((len, packed))
    }
}
