use std::{
    io,
    sync::{LazyLock, mpsc},
    thread,
};

use super::reply::reply_channel;

type Work = Box<dyn FnOnce() + Send>;

/// The thread for work that would stall a reactor; one is enough, for it is rare.
static THREAD: LazyLock<io::Result<mpsc::Sender<Work>>> = LazyLock::new(|| {
    let (send, receive) = mpsc::channel::<Work>();
    thread::Builder::new().name("offload".into()).spawn(move || {
        for work in receive {
            work();
        }
    })?;
    Ok(send)
});

/// Does long work, such as packing megabytes, away from the reactor. `None` when it panicked or no
/// thread can be had.
///
/// # Panics
/// On a thread that is not a reactor.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (reply, mut answer) = reply_channel();
    let guarded = move || {
        // Without a value the reply's sender is dropped, which the receiver sees.
        if let Ok(value) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            reply.finish(value);
        }
    };
    THREAD.as_ref().ok()?.send(Box::new(guarded)).ok()?;
    answer.receive().await
}
