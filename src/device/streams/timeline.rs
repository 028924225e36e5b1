use std::{collections::VecDeque, sync::Arc};

use serde_json::{Value, json};

use super::work::{BatchId, Stage};
use crate::inference::Timestamp;

/// What the engines did lately: the last so many operations.
#[derive(Clone, Debug)]
pub struct Timeline {
    entries: VecDeque<TimelineEntry>,
    entries_max: usize,
}

/// One operation of an engine.
#[derive(Clone, Debug)]
pub struct TimelineEntry {
    /// The device.
    pub device: usize,
    /// The engine.
    pub stage: Stage,
    /// The model.
    pub model: Arc<str>,
    /// The batch.
    pub batch: BatchId,
    /// Its rows.
    pub rows: u32,
    /// Bytes copied.
    pub bytes: usize,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Whether it failed.
    pub failed: bool,
}

impl Timeline {
    /// A timeline that keeps `entries_max` operations.
    pub fn new(entries_max: usize) -> Self {
        Self { entries: VecDeque::new(), entries_max }
    }

    /// Notes an operation.
    pub fn note(&mut self, entry: impl FnOnce() -> TimelineEntry) {
        if self.entries_max == 0 {
            return;
        }
        if self.entries.len() == self.entries_max {
            self.entries.pop_front();
        }
        self.entries.push_back(entry());
    }

    /// What was noted, in the order in which it ended.
    pub fn entries(&self) -> impl Iterator<Item = &TimelineEntry> {
        self.entries.iter()
    }

    /// The timeline in Chrome's trace format, which Perfetto opens: a process for each device, a
    /// thread for each engine.
    pub fn chrome_trace(&self) -> Value {
        let mut devices: Vec<usize> = self.entries.iter().map(|entry| entry.device).collect();
        devices.sort_unstable();
        devices.dedup();
        let named = |name, device: usize, thread: Option<Stage>, label: String| {
            let thread = thread.map_or(0, track);
            json!({"name": name, "ph": "M", "pid": device, "tid": thread, "args": {"name": label}})
        };
        let mut events = Vec::new();
        for device in devices {
            events.push(named("process_name", device, None, format!("device {device}")));
            for stage in [Stage::CopyIn, Stage::Execute, Stage::CopyOut] {
                let label = engine(stage).to_owned();
                events.push(named("thread_name", device, Some(stage), label));
            }
        }
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        events.extend(self.entries.iter().map(|entry| {
            json!({
                "name": &*entry.model,
                "cat": engine(entry.stage),
                "ph": "X",
                "ts": micros(entry.began.as_nanos()),
                "dur": micros((entry.ended - entry.began).as_nanos() as u64),
                "pid": entry.device,
                "tid": track(entry.stage),
                "args": {
                    "batch": entry.batch.0,
                    "rows": entry.rows,
                    "bytes": entry.bytes,
                    "failed": entry.failed,
                },
            })
        }));
        json!({"traceEvents": events, "displayTimeUnit": "ns"})
    }
}

fn engine(stage: Stage) -> &'static str {
    match stage {
        Stage::CopyIn => "copy in",
        Stage::Execute => "compute",
        Stage::CopyOut => "copy out",
    }
}

fn track(stage: Stage) -> usize {
    stage as usize + 1
}
