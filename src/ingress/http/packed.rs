//! Packs and unpacks bodies without holding up the reactor: what may take long is done away from it.

use bytes::Bytes;

use super::{
    encoding::{self, Encoding, Unpacking},
    infer_response::EncodedResponse,
};
use crate::{
    inference::{Error, Rope},
    ingress::away::{HERE_MAX, away, here_or_away},
};

/// What may come out of a body that is unpacked on the reactor. The rest of one that becomes more, a
/// thousand times its size maybe, is unpacked elsewhere.
const UNPACKED_HERE_MAX: usize = 256 << 10;

/// Unpacks a body that may become `limit` bytes.
///
/// # Errors
/// When the body is damaged, is followed by something else or becomes larger.
pub async fn unpack(encoding: Encoding, body: Rope, limit: usize) -> Result<Rope, Error> {
    if body.len() > HERE_MAX {
        return away(move || encoding::decompress(encoding, body, limit)).await;
    }
    let mut unpacking = Unpacking::new(encoding, body, limit);
    match unpacking.advance(UNPACKED_HERE_MAX)? {
        Some(unpacked) => Ok(unpacked),
        None => away(move || unpacking.finish()).await,
    }
}

/// Packs an answer.
///
/// # Errors
/// When the packer fails.
pub async fn pack(encoding: Encoding, answer: EncodedResponse) -> Result<Bytes, Error> {
    let length = answer.content_length();
    here_or_away(length, move || encoding::compress(encoding, answer.parts())).await
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc::channel,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use super::*;
    use crate::runtime::{DriverChoice, ReactorSettings, Reactors, Topology, spawn};

    const LIMIT: usize = 8 << 20;

    /// Whether `size` zeros are unpacked at once, and how many bytes come out in the end.
    fn unpacked(
        reactors: &Reactors,
        encoding: Encoding,
        size: usize,
    ) -> (bool, Result<usize, Error>) {
        let zeros = Bytes::from(vec![0; size]);
        let packed = encoding::compress(encoding, [&zeros[..]].into_iter()).unwrap();
        assert!(packed.len() <= HERE_MAX, "{} bytes", packed.len());
        let (report, reported) = channel();
        let asking = Box::new(move || {
            spawn(&"test", async move {
                let mut unpacking = pin!(unpack(encoding, packed.into(), LIMIT));
                let at_once = unpacking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                let outcome = match at_once {
                    Poll::Ready(unpacked) => (true, unpacked),
                    Poll::Pending => (false, unpacking.await),
                };
                report.send((outcome.0, outcome.1.map(|rope| rope.len()))).unwrap();
            });
        });
        reactors.handles()[0].send(asking).unwrap();
        reported.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn only_little_is_unpacked_on_the_reactor() {
        let settings = ReactorSettings {
            count: 1,
            driver: "epoll".parse::<DriverChoice>().unwrap(),
            idle_spin: Duration::ZERO,
            mailbox_capacity: 64,
        };
        let reactors = Reactors::start(&settings, &Topology::read().unwrap()).unwrap();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            for (size, expected_at_once) in [
                (100, true),
                (UNPACKED_HERE_MAX - 1, true),
                (UNPACKED_HERE_MAX + 1, false),
                (LIMIT, false),
            ] {
                let (at_once, length) = unpacked(&reactors, encoding, size);
                assert_eq!((at_once, length.unwrap()), (expected_at_once, size), "{size} bytes");
            }
            let (at_once, refused) = unpacked(&reactors, encoding, LIMIT + 1);
            assert!(!at_once && refused.unwrap_err().to_string().contains("more than the limit"));
        }
        reactors.stop();
    }
}
