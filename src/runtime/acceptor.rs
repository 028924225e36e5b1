use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    reactor::{Message, ReactorHandle},
    tcp::{Load, TcpStream},
};

const BACKLOG: i32 = 1024;
/// How long the acceptor rests when the process has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of a new connection, on the reactor that got it.
pub type Serve = Arc<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

/// A bound port and what serves its connections.
pub struct Listener {
    socket: TcpListener,
    serve: Serve,
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(address: SocketAddr, reuse_port: bool, serve: Serve) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self { socket: socket.into(), serve })
    }

    /// The address that was bound: with the port that the system chose, when it was to choose.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Accepts connections on a thread of its own and hands each to the reactor with the fewest,
/// passing over stalled ones. Clients open few connections, so the system's own hashing would leave
/// cores idle.
pub struct Acceptor {
    thread: JoinHandle<()>,
    /// Closing it ends the thread.
    stop: OwnedFd,
}

impl Acceptor {
    /// Starts to accept.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(listeners: Vec<Listener>, reactors: Vec<ReactorHandle>) -> io::Result<Self> {
        let (stopped, stop) = pipe()?;
        let thread = thread::Builder::new()
            .name("acceptor".into())
            .spawn(move || accept(&listeners, &reactors, &stopped))?;
        Ok(Self { thread, stop })
    }

    /// Closes the ports; connections that were accepted go on.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            log::error!("the acceptor panicked");
        }
    }
}

fn accept(listeners: &[Listener], reactors: &[ReactorHandle], stopped: &OwnedFd) {
    loop {
        let mut descriptors: Vec<_> = listeners
            .iter()
            .map(|listener| listener.socket.as_fd())
            .chain([stopped.as_fd()])
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                log::error!("the acceptor cannot wait for connections and ends: {error}");
                return;
            }
        }
        let ready: Vec<_> =
            descriptors.iter().map(|descriptor| descriptor.any().unwrap_or(false)).collect();
        if ready[listeners.len()] {
            return;
        }
        for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            accept_waiting(listener, reactors);
        }
    }
}

fn accept_waiting(listener: &Listener, reactors: &[ReactorHandle]) {
    loop {
        let (socket, peer) = match listener.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                thread::sleep(EXHAUSTED_PAUSE);
                return;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            log::debug!("cannot turn off Nagle's algorithm for {peer}: {error}");
        }
        let Some(reactor) = least_loaded(reactors) else { return };
        let serve = listener.serve.clone();
        let load = Load::on(reactor);
        let message: Message = Box::new(move || match TcpStream::adopt_counted(socket, load) {
            Ok(stream) => serve(stream, peer),
            Err(error) => log::warn!("cannot take over the connection from {peer}: {error}"),
        });
        if reactor.try_send(message).is_err() {
            log::warn!("refused a connection from {peer}: reactor {} is full", reactor.index());
        }
    }
}

fn least_loaded(reactors: &[ReactorHandle]) -> Option<&ReactorHandle> {
    reactors.iter().min_by_key(|reactor| (reactor.is_stalled(), reactor.connections()))
}
