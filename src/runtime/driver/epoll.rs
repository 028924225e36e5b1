use std::{future::Future, io, net, os::unix, pin::Pin, time::Duration};

use tokio::{runtime, task::LocalSet};

pub type EpollStream = tokio::net::TcpStream;
pub type EpollUnixStream = tokio::net::UnixStream;
pub type EpollSleep = Pin<Box<tokio::time::Sleep>>;

pub fn run(main: impl Future<Output = ()>) -> Result<(), String> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, main);
    Ok(())
}

pub fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

pub fn sleep(duration: Duration) -> EpollSleep {
    Box::pin(tokio::time::sleep(duration))
}

pub fn stream(socket: net::TcpStream) -> io::Result<EpollStream> {
    socket.set_nonblocking(true)?;
    EpollStream::from_std(socket)
}

pub fn unix_stream(socket: unix::net::UnixStream) -> io::Result<EpollUnixStream> {
    socket.set_nonblocking(true)?;
    EpollUnixStream::from_std(socket)
}
