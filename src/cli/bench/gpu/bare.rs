//! Streams with work that no scheduler decides about.

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use super::rig::{GpuBenchError, PATIENCE};
use crate::device::{DeviceError, Report, Stream};

/// What is put on streams is repeated until it has moved about this much, so that what it takes to begin and
/// to end does not count.
const BYTES: usize = 256 << 20;

/// How often something that moves so many bytes is done.
pub(super) fn repeats(bytes: usize) -> usize {
    (BYTES / bytes.max(1)).clamp(3, 500)
}

/// How long streams take for what `give` puts on them, done `repeats` times, after once to warm up; they go on
/// at the same time.
pub(super) fn timed(
    streams: &mut [Box<dyn Stream>],
    repeats: usize,
    mut give: impl FnMut(&mut [Box<dyn Stream>]) -> Result<(), GpuBenchError>,
) -> Result<Duration, GpuBenchError> {
    give(streams)?;
    end(streams)?;
    let began = Instant::now();
    for _ in 0..repeats {
        give(streams)?;
    }
    end(streams)?;
    Ok(began.elapsed())
}

/// Waits until the streams have done all that they were given.
pub(super) fn end(streams: &mut [Box<dyn Stream>]) -> Result<(), GpuBenchError> {
    let called: Vec<Receiver<Report>> = streams
        .iter_mut()
        .map(|stream| {
            let (tell, told) = channel();
            // Nobody listens any more when another stream has failed.
            let call = Box::new(move |report| tell.send(report).unwrap_or_default());
            stream.call(call).map(|()| told)
        })
        .collect::<Result<_, DeviceError>>()?;
    for told in called {
        told.recv_timeout(PATIENCE).map_err(|_| GpuBenchError::Stuck)?.outcome?;
    }
    Ok(())
}
