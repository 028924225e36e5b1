use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    reactor::{Message, ReactorHandle},
    socket_file::SocketFile,
    tcp::{self, Load},
    unix,
};

const BACKLOG: i32 = 1024;
/// What the system may hold of what is sent to a client on the same host, in bytes; it takes twice the number
/// (socket(7)). By itself it lets large responses pile up to some megabytes, which makes them take up to 1.4
/// times the CPU time (docs/src/benchmarks.md). A bound that is set does not grow with a long link, so it is
/// for this host alone.
const SAME_HOST_SEND_BUFFER: usize = 300_000;
/// How long the acceptor rests when the process has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How often it is logged that connections are turned away.
const REFUSAL_LOG_PERIOD: Duration = Duration::from_secs(10);

/// What becomes of a new connection, on the reactor that got it.
pub type Serve = Arc<dyn Fn(tcp::TcpStream, SocketAddr) + Send + Sync>;

/// What becomes of a new connection over a Unix socket, on the reactor that got it.
pub type ServeUnix = Arc<dyn Fn(unix::UnixStream) + Send + Sync>;

/// A bound port or Unix socket, and what serves its connections.
pub struct Listener {
    port: Port,
    /// The reactor that all its connections go to, if that is settled.
    reactor: Option<ReactorHandle>,
}

enum Port {
    Tcp { socket: TcpListener, serve: Serve },
    Unix { file: SocketFile, serve: ServeUnix },
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
        Ok(Self { port: Port::Tcp { socket: socket.into(), serve }, reactor: None })
    }

    /// Has all its connections go to one reactor, instead of that with the fewest.
    pub fn on(self, reactor: ReactorHandle) -> Self {
        Self { reactor: Some(reactor), ..self }
    }

    /// Listens at `path`, whose file gets the permissions `mode` and goes when the listener does.
    ///
    /// # Errors
    /// When another server listens there, something else lies there, or the system refuses.
    pub fn at_path(path: &Path, mode: u32, serve: ServeUnix) -> io::Result<Self> {
        let file = SocketFile::bind(path, mode, BACKLOG)?;
        Ok(Self { port: Port::Unix { file, serve }, reactor: None })
    }

    /// The address that was bound, with the port that the system chose when it was to choose, or the
    /// path.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<String> {
        match &self.port {
            Port::Tcp { socket, .. } => socket.local_addr().map(|address| address.to_string()),
            Port::Unix { file, .. } => Ok(file.path.display().to_string()),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.port {
            Port::Tcp { socket, .. } => socket.as_fd(),
            Port::Unix { file, .. } => file.socket.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Arrival> {
        match &self.port {
            Port::Tcp { socket, serve } => {
                let (socket, peer) = accept_tcp(socket)?;
                let serve = serve.clone();
                let serve = move |load| match tcp::TcpStream::adopt_counted(socket, load) {
                    Ok(stream) => serve(stream, peer),
                    Err(error) => {
                        log::warn!("cannot take over the connection from {peer}: {error}");
                    }
                };
                let peer = peer.to_string();
                Ok(Arrival { peer, serve: Box::new(serve) })
            }
            Port::Unix { file, serve } => {
                let (socket, _) = file.socket.accept()?;
                let serve = serve.clone();
                let serve = move |load| match unix::UnixStream::adopt_counted(socket, load) {
                    Ok(stream) => serve(stream),
                    Err(error) => {
                        log::warn!("cannot take over a local connection: {error}");
                    }
                };
                let peer = file.path.display().to_string();
                Ok(Arrival { peer, serve: Box::new(serve) })
            }
        }
    }
}

/// The next connection, as it is to be served.
fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = listener.accept()?;
    if let Err(error) = socket.set_nodelay(true) {
        log::debug!("cannot turn off Nagle's algorithm for {peer}: {error}");
    }
    if socket.local_addr().is_ok_and(|local| is_same_host(peer, local))
        && let Err(error) = SockRef::from(&socket).set_send_buffer_size(SAME_HOST_SEND_BUFFER)
    {
        log::debug!("cannot bound the send buffer for {peer}: {error}");
    }
    Ok((socket, peer))
}

/// Whether nothing but this host lies between two ends of a connection.
fn is_same_host(peer: SocketAddr, local: SocketAddr) -> bool {
    let [peer, local] = [peer, local].map(|end| end.ip().to_canonical());
    peer.is_loopback() || peer == local
}

/// A connection that was accepted.
struct Arrival {
    /// Where it came from, for the log.
    peer: String,
    /// Serves it, on the reactor that counts it.
    serve: Box<dyn FnOnce(Load) + Send>,
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
    /// Starts to accept. While `connections_max` are open, a new one is closed at once.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(
        listeners: Vec<Listener>,
        reactors: Vec<ReactorHandle>,
        connections_max: usize,
    ) -> io::Result<Self> {
        // A process that a back end starts must not keep it open.
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC)?;
        let mut counted = reactors.clone();
        for reactor in listeners.iter().filter_map(|listener| listener.reactor.as_ref()) {
            if counted.iter().all(|other| other.index() != reactor.index()) {
                counted.push(reactor.clone());
            }
        }
        let mut door = Door { reactors, counted, connections_max, refusal_logged: None };
        let thread = thread::Builder::new()
            .name("acceptor".into())
            .spawn(move || accept(&listeners, &mut door, &stopped))?;
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

fn accept(listeners: &[Listener], door: &mut Door, stopped: &OwnedFd) {
    loop {
        let mut descriptors: Vec<_> = listeners
            .iter()
            .map(Listener::descriptor)
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
            door.accept_waiting(listener);
        }
    }
}

/// Who gets a new connection, and whether anybody does.
struct Door {
    reactors: Vec<ReactorHandle>,
    /// All that have connections.
    counted: Vec<ReactorHandle>,
    connections_max: usize,
    refusal_logged: Option<Instant>,
}

impl Door {
    fn accept_waiting(&mut self, listener: &Listener) {
        loop {
            let arrival = match listener.accept() {
                Ok(arrival) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    thread::sleep(EXHAUSTED_PAUSE);
                    return;
                }
            };
            if self.is_full() {
                self.log_refusal(&arrival.peer);
                continue;
            }
            let Some(reactor) = listener.reactor.as_ref().or_else(|| self.least_loaded()) else {
                return;
            };
            let (load, serve) = (Load::on(reactor), arrival.serve);
            let message: Message = Box::new(move || serve(load));
            if reactor.try_send(message).is_err() {
                log::warn!(
                    "refused a connection from {}: reactor {} is full",
                    arrival.peer,
                    reactor.index()
                );
            }
        }
    }

    fn is_full(&self) -> bool {
        let open: usize = self.counted.iter().map(ReactorHandle::connections).sum();
        open >= self.connections_max
    }

    fn log_refusal(&mut self, peer: &str) {
        if self.refusal_logged.is_none_or(|last| last.elapsed() > REFUSAL_LOG_PERIOD) {
            self.refusal_logged = Some(Instant::now());
            log::warn!(
                "closed the connection from {peer}: {} are open, as many as the limit of open \
                 descriptors (ulimit -n) leaves room for",
                self.connections_max
            );
        }
    }

    fn least_loaded(&self) -> Option<&ReactorHandle> {
        self.reactors.iter().min_by_key(|reactor| (reactor.is_stalled(), reactor.connections()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_client_on_this_host_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = accept_tcp(&listener).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(socket.nodelay().unwrap());
        let most = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap();
        let most: usize = most.trim().parse().unwrap();
        let bound = SockRef::from(&socket).send_buffer_size().unwrap();
        assert_eq!(bound, 2 * SAME_HOST_SEND_BUFFER.min(most));
    }

    #[test]
    fn who_comes_by_a_link_is_on_another_host() {
        let are_one = |peer: &str, local: &str| {
            is_same_host(
                format!("{peer}:1").parse().unwrap(),
                format!("{local}:2").parse().unwrap(),
            )
        };
        for (peer, local) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.2", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"),
            ("10.0.0.5", "10.0.0.5"),
            ("[::ffff:10.0.0.5]", "10.0.0.5"),
            ("[2001:db8::5]", "[2001:db8::5]"),
        ] {
            assert!(are_one(peer, local), "{peer} {local}");
        }
        for (peer, local) in [
            ("10.0.0.6", "10.0.0.5"),
            ("[::ffff:10.0.0.6]", "[::ffff:10.0.0.5]"),
            ("[2001:db8::6]", "[2001:db8::5]"),
            ("10.0.0.6", "127.0.0.1"),
        ] {
            assert!(!are_one(peer, local), "{peer} {local}");
        }
    }
}
