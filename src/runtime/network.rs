use std::{
    future::{Future, pending},
    io,
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
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

/// Sends `body` to `url` by POST and waits for the answer, for `patience` at most. Blocks, so not for
/// reactors.
///
/// # Errors
/// Why it did not arrive, or was not accepted.
pub fn post(
    url: &str,
    content_type: &'static str,
    body: Vec<u8>,
    patience: Duration,
) -> Result<(), String> {
    static CLIENT: LazyLock<Result<reqwest::Client, String>> = LazyLock::new(|| {
        choose_cryptography();
        reqwest::Client::builder().build().map_err(|error| describe(&error))
    });
    let client = CLIENT.as_ref().map_err(Clone::clone)?;
    let request = client.post(url).header("content-type", content_type).timeout(patience);
    // To send already takes tokio's timer.
    let answer = wait_for_network(async move { request.body(body).send().await });
    let answer = answer.map_err(|error| error.to_string())?.map_err(|error| describe(&error))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("'{url}' answers {status}")),
    }
}

/// An error with all its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Says whose cryptography TLS is to use, for crates that do not say it themselves.
pub fn choose_cryptography() {
    // An earlier call has said the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

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
