use std::{
    future::{Future, pending},
    io,
    sync::{LazyLock, mpsc},
    thread,
};

use tokio::runtime::{Builder, Handle};

/// The thread on which crates that bring their own network code wait for it.
static THREAD: LazyLock<io::Result<Handle>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let wait = move || runtime.block_on(pending::<()>());
    thread::Builder::new().name("network".into()).spawn(wait)?;
    Ok(handle)
});

/// Runs a future of a crate that needs tokio's own runtime, on a thread of its own, and waits for it.
/// Blocks, so not for reactors.
///
/// # Errors
/// When the thread cannot be had, or the future panicked.
pub fn wait_for_network<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let no_thread = |error: &io::Error| {
        io::Error::new(error.kind(), format!("cannot start the thread that waits for it: {error}"))
    };
    let (report, outcome) = mpsc::channel();
    THREAD.as_ref().map_err(no_thread)?.spawn(async move {
        // Nobody waits for what comes after a panic of theirs.
        let _ = report.send(future.await);
    });
    outcome.recv().map_err(|mpsc::RecvError| io::Error::other("a panic ended the wait for it"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn futures_that_need_tokio_run_beside_each_other() {
        let waits = [1, 2].map(|value| {
            thread::spawn(move || {
                wait_for_network(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    value
                })
            })
        });
        assert_eq!(waits.map(|wait| wait.join().unwrap().unwrap()), [1, 2]);
        let panics = wait_for_network(async { panic!("as it should") });
        let _: io::Error = panics.map(|(): ()| ()).unwrap_err();
        assert_eq!(wait_for_network(async { 3 }).unwrap(), 3);
    }
}
