//! Rows that lie all over a device, brought together by one launch, beside a copy for each.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    args::{GpuArgs, Kind},
    bare::{end, repeats, timed},
    rig::{GpuBenchError, Opened},
};
use crate::{
    cli::table,
    device::{
        Argument, DeviceError, DeviceSlice, Landing, Scalar, Stream, Urgency,
        kernels::{
            self,
            gather::{STRETCH, grid},
        },
    },
    memory::BufferPool,
};

/// How many rows there are, and how large each is.
const SHAPES: [(usize, usize); 6] =
    [(8, 4 << 10), (64, 4 << 10), (128, 4 << 10), (8, 600_000), (64, 600_000), (128, 64)];
/// What is given to a stream before it is waited for.
const GIVEN_MAX: usize = 4000;
/// What lies between two rows.
const GAP: usize = 256;

/// Measures every shape, prints a table and gives its lines.
///
/// # Errors
/// When the device cannot be had, it has no code for the kernel, or what it gathers is not what was there.
pub(super) fn run(args: &GpuArgs, kind: Kind) -> Result<Vec<Value>, GpuBenchError> {
    let (mut lines, mut rows) = (Vec::new(), Vec::new());
    for (count, bytes) in SHAPES {
        let [launch, copies] = measure(args, kind, count, bytes)?;
        let micros = |seconds: f64| format!("{:.2}", seconds * 1e6);
        let faster = format!("{:.1}", copies / launch);
        let device = kind.name().to_owned();
        rows.push([
            device,
            count.to_string(),
            bytes.to_string(),
            micros(launch),
            micros(copies),
            faster,
        ]);
        lines.push(json!({
            "measure": "gather",
            "device": kind.name(),
            "rows": count,
            "bytes": bytes,
            "launch_s": launch,
            "copies_s": copies,
        }));
    }
    let head = ["Device", "Rows", "Bytes of a row", "One launch µs", "Copies µs", "Times faster"];
    println!("{}", table::frame(head, &rows));
    Ok(lines)
}

/// The seconds that `count` rows of `bytes` take by one launch, and by a copy each.
fn measure(
    args: &GpuArgs,
    kind: Kind,
    count: usize,
    bytes: usize,
) -> Result<[f64; 2], GpuBenchError> {
    let total = count * bytes;
    let pool = BufferPool::new(1 << 20, usize::MAX)?;
    let opened = Opened::open(args, kind, 1, &pool)?;
    let device = opened.first()?;
    let from = device.allocate(count * (bytes + GAP))?;
    // The last row first, so that nobody can take them for one piece.
    let places: Vec<DeviceSlice> = (0..count)
        .rev()
        .map(|row| from.slice(row * (bytes + GAP)..row * (bytes + GAP) + bytes))
        .collect::<Result<_, DeviceError>>()?;
    let batch = device.allocate(total)?.whole();
    let offsets: Vec<u64> = (0..=count).map(|row| (row * bytes) as u64).collect();
    let offsets = Bytes::copy_from_slice(bytemuck::cast_slice(&offsets));
    let table = device.allocate(offsets.len())?.whole();
    let device_number = device.properties().index;
    let unknown = || DeviceError::Kernel {
        device: device_number,
        kernel: "gather".to_owned(),
        reason: "there is none of this name".to_owned(),
    };
    let kernel = device.kernel(&kernels::source("gather").ok_or_else(unknown)?)?;
    let grid = grid(total as u64);
    let count_u32 = u32::try_from(count).unwrap_or(u32::MAX);
    let launch = kernel
        .launch(grid.blocks, grid.threads)
        .with(Argument::ReadTable(places.clone()))
        .with(Argument::Read(table.clone()))
        .with(Argument::Scalar(Scalar::U32(count_u32)))
        .with(Argument::Write(batch.clone()))
        .with(Argument::Scalar(Scalar::U64(STRETCH)));
    let part = |row: usize| batch.slice(row * bytes..(row + 1) * bytes);

    let mut streams = [device.stream(Urgency::Normal)?];
    let content: Bytes = (0..total).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into();
    let times = repeats(total).min(GIVEN_MAX / count);
    let mut took = [0.0; 2];
    for (one_launch, took) in [true, false].into_iter().zip(&mut took) {
        for stream in &mut streams {
            stream.copy_in(offsets.clone(), &table)?;
            for (row, place) in places.iter().enumerate() {
                stream.copy_in(content.slice(row * bytes..(row + 1) * bytes), place)?;
            }
            stream.fill(&batch, 0)?;
        }
        let give = |stream: &mut Box<dyn Stream>| -> Result<(), GpuBenchError> {
            if one_launch {
                return Ok(stream.launch(launch.clone())?);
            }
            for (row, place) in places.iter().enumerate() {
                stream.copy_within(place, &part(row)?)?;
            }
            Ok(())
        };
        let elapsed = timed(&mut streams, times, |streams| streams.iter_mut().try_for_each(give))?;
        *took = elapsed.as_secs_f64() / times as f64;
        let (landing, target) = Landing::new(pool.allocate(total)?);
        for (stream, target) in streams.iter_mut().zip([target]) {
            stream.copy_out(&batch, target)?;
        }
        end(&mut streams)?;
        if landing.finish().as_ref() != Some(&content) {
            return Err(GpuBenchError::WrongCopy);
        }
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_bring_the_rows_together() {
        let args = GpuArgs::of(&["--link-bytes-per-second=1e12"]);
        assert!(measure(&args, Kind::Host, 8, 1000).unwrap().iter().all(|took| *took > 0.0));
    }
}
