use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
};

use super::{
    driver::{self, Driver},
    mailbox::Mailbox,
    reactor::{Message, ReactorHandle},
};

/// How another thread wakes a reactor that has mail.
///
/// tokio's wakers do it. glommio's do not reliably: a wake from another thread was lost now and then,
/// after which the reactor heard of no mail any more. There a byte is sent over a socket instead, on
/// which the reactor waits like on any other.
pub enum Doorbell {
    Waker,
    Socket(UnixStream),
}

/// The reactor's end of a [`Doorbell`].
pub struct DoorbellListener(Option<UnixStream>);

impl Doorbell {
    pub fn new(driver: Driver) -> io::Result<(Self, DoorbellListener)> {
        match driver {
            Driver::Epoll => Ok((Self::Waker, DoorbellListener(None))),
            Driver::IoUring => {
                let (ring, listen) = UnixStream::pair()?;
                ring.set_nonblocking(true)?;
                Ok((Self::Socket(ring), DoorbellListener(Some(listen))))
            }
        }
    }

    /// Wakes the reactor, from any other thread.
    pub fn ring(&self, mailbox: &Mailbox<Message>) {
        match self {
            Self::Waker => mailbox.wake(),
            Self::Socket(socket) => {
                // A full socket holds rings that have not been heard yet: one more changes nothing.
                // A closed one has no reactor behind it.
                let _ = (&*socket).write(&[0]);
            }
        }
    }
}

impl DoorbellListener {
    /// Has the mailbox looked into whenever the bell rings.
    pub async fn listen(self, reactor: ReactorHandle) {
        let Some(socket) = self.0 else { return };
        let outcome = driver::listen(socket, || reactor.look_into_mailbox()).await;
        if let Err(error) = outcome {
            log::error!("reactor {} cannot hear other threads any more: {error}", reactor.index());
        }
    }
}
