//! What copies between host and device reach by themselves.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    args::{GpuArgs, Kind},
    bare::{end, repeats, timed},
    rig::{GpuBenchError, Opened},
};
use crate::{
    cli::table,
    device::{DeviceSlice, Landing, Stream, Urgency},
    memory::{Buffer, BufferPool, Exhausted},
};

/// The ways that bytes go.
const WAYS: [&str; 3] = ["in", "out", "both"];

/// Measures copies of each size, of memory that is pinned and of memory that is not, prints a table and gives
/// its lines.
///
/// # Errors
/// When the device cannot be had, a copy fails, or the bytes are not what they were.
pub(super) fn run(args: &GpuArgs, kind: Kind) -> Result<Vec<Value>, GpuBenchError> {
    let (mut lines, mut rows) = (Vec::new(), Vec::new());
    for &bytes in &args.bytes {
        for memory in ["pinned", "pageable"] {
            let measured = measure(args, kind, bytes, memory == "pinned")?;
            let rates = measured.map(|(moved, took)| moved as f64 / took.as_secs_f64());
            let gigabytes = rates.map(|rate| format!("{:.2}", rate / 1e9));
            let [inwards, outwards, both] = gigabytes;
            let (device, size) = (kind.name().to_owned(), bytes.to_string());
            rows.push([device, memory.to_owned(), size, inwards, outwards, both]);
            lines.extend(WAYS.iter().zip(rates).map(|(way, rate)| {
                json!({
                    "measure": "copies",
                    "device": kind.name(),
                    "memory": memory,
                    "way": way,
                    "bytes": bytes,
                    "bytes_per_second": rate,
                })
            }));
        }
    }
    let head = ["Device", "Memory", "Bytes", "In GB/s", "Out GB/s", "Both at once GB/s"];
    println!("{}", table::frame(head, &rows));
    Ok(lines)
}

/// The bytes that went each way, and how long that took.
fn measure(
    args: &GpuArgs,
    kind: Kind,
    bytes: usize,
    pinned: bool,
) -> Result<[(usize, Duration); 3], GpuBenchError> {
    let times = repeats(bytes);
    // Every copy from the device has bytes of its own to write.
    let arena = (times + 4) * bytes.next_power_of_two().max(4096);
    let pool = BufferPool::new(arena, usize::MAX)?;
    let other = BufferPool::new(0, 0)?;
    let opened = Opened::open(args, kind, 1, if pinned { &pool } else { &other })?;
    let device = opened.first()?;
    let mut input = pool.allocate(bytes)?;
    input.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
    let input = input.freeze();
    // The system gives a page when it is first written, which is no part of a copy.
    let touched: Vec<Buffer> = (0..times + 2)
        .map(|_| {
            let mut buffer = pool.allocate(bytes)?;
            buffer.fill(0);
            Ok(buffer)
        })
        .collect::<Result<_, Exhausted>>()?;
    drop(touched);
    let [there, back] = [device.allocate(bytes)?.whole(), device.allocate(bytes)?.whole()];
    let mut streams = [device.stream(Urgency::Normal)?, device.stream(Urgency::Normal)?];
    for (stream, place) in streams.chunks_mut(1).zip([&there, &back]) {
        there_and_back(stream, &input, place, &pool)?;
    }
    let out = |stream: &mut Box<dyn Stream>| {
        let (_, target) = Landing::new(pool.allocate(bytes)?);
        Ok(stream.copy_out(&back, target)?)
    };
    let inwards = |stream: &mut Box<dyn Stream>| Ok(stream.copy_in(input.clone(), &there)?);
    let [first, second] = &mut streams;
    let took = [
        timed(std::slice::from_mut(first), times, |it| it.iter_mut().try_for_each(inwards))?,
        timed(std::slice::from_mut(second), times, |it| it.iter_mut().try_for_each(out))?,
        timed(&mut streams, times, |it| match it {
            [first, second] => inwards(first).and_then(|()| out(second)),
            _ => Ok(()),
        })?,
    ];
    let moved = times * bytes;
    Ok([(moved, took[0]), (moved, took[1]), (2 * moved, took[2])])
}

/// Copies bytes to a device and back, and looks at them.
fn there_and_back(
    streams: &mut [Box<dyn Stream>],
    bytes: &Bytes,
    place: &DeviceSlice,
    pool: &BufferPool,
) -> Result<(), GpuBenchError> {
    let (landing, target) = Landing::new(pool.allocate(bytes.len())?);
    if let Some(stream) = streams.first_mut() {
        stream.copy_in(bytes.clone(), place)?;
        stream.copy_out(place, target)?;
    }
    end(streams)?;
    match landing.finish() {
        Some(got) if got == *bytes => Ok(()),
        _ => Err(GpuBenchError::WrongCopy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_device_of_the_host_are_as_fast_as_its_link() {
        let args = GpuArgs::of(&["--bytes=4000000", "--link-bytes-per-second=2e9"]);
        let measured = measure(&args, Kind::Host, 4_000_000, true).unwrap();
        let rates = measured.map(|(moved, took)| moved as f64 / took.as_secs_f64());
        // A machine that is busy with other things is slower, never faster.
        assert!(rates[0] <= 2.02e9 && rates[1] <= 2.02e9 && rates[2] <= 4.04e9, "{rates:?}");
    }
}
