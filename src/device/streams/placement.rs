use std::{collections::VecDeque, time::Duration};

use super::{
    course::{Course, through},
    prediction::Prediction,
    work::{Place, Stage, Times, Work},
};
use crate::device::DeviceError;

/// What the scheduler knows of a device.
#[derive(Default)]
pub(super) struct DeviceState {
    pub lost: Option<DeviceError>,
    /// How long the operations will take that its engines have been given, by stage.
    pub given: [VecDeque<Duration>; 3],
    /// Batches on their way through it.
    pub courses: usize,
    pub copies_in: Prediction,
    pub copies_out: Prediction,
}

impl DeviceState {
    /// Whether an engine can be given something: at once, if it would run dry.
    pub fn has_room(&self, stage: Stage, depth: usize, ahead: Duration) -> bool {
        let given = &self.given[stage as usize];
        given.is_empty() || given.len() < depth && given.iter().sum::<Duration>() < ahead
    }
}

/// What the scheduler knows of a model at one of its places.
pub(super) struct PlaceState {
    pub place: Place,
    pub state: PlaceOpen,
    /// Which lanes are taken.
    pub taken: Vec<bool>,
    pub executions: Prediction,
    /// How often each lane has run each number of rows, for graphs.
    pub runs: Vec<Vec<(u32, u32)>>,
}

/// Whether batches can go to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceOpen {
    Open,
    /// Those that are there come to their end.
    Closing,
    /// There is nothing any more; another place can have its number.
    Closed,
}

/// Numbers of rows for which a lane keeps graphs.
const GRAPHS_MAX: usize = 16;

impl PlaceState {
    pub fn new(place: Place) -> Self {
        let lanes = place.lanes.max(1);
        Self {
            place,
            state: PlaceOpen::Open,
            taken: vec![false; lanes],
            executions: Prediction::default(),
            runs: vec![Vec::new(); lanes],
        }
    }

    pub fn is_open(&self) -> bool {
        self.state == PlaceOpen::Open
    }

    /// A lane for a batch, if the place is open.
    pub fn free_lane(&self) -> Option<usize> {
        self.taken.iter().position(|taken| !taken).filter(|_| self.is_open())
    }

    /// How often a lane has run a number of rows before; none when it keeps no count of that many.
    pub fn runs_before(&mut self, lane: usize, rows: u32) -> Option<u32> {
        let runs = self.runs.get_mut(lane)?;
        if let Some((_, count)) = runs.iter_mut().find(|(known, _)| *known == rows) {
            *count += 1;
            return Some(*count - 1);
        }
        if runs.len() == GRAPHS_MAX {
            return None;
        }
        runs.push((rows, 1));
        Some(0)
    }
}

/// What a batch will take at a place.
pub(super) fn expected(
    work: &Work,
    place: &PlaceState,
    device: &DeviceState,
    chunk_bytes: usize,
) -> Times {
    let copy = |prediction: &Prediction, bytes: usize| {
        let (chunks, rest) = (bytes / chunk_bytes, bytes % chunk_bytes);
        let whole = match chunks {
            0 => Default::default(),
            _ => prediction.of(chunk_bytes as u64) * chunks as u32,
        };
        if rest == 0 { whole } else { whole + prediction.of(rest as u64) }
    };
    Times {
        copy_in: copy(&device.copies_in, work.bytes_in),
        execute: place.executions.of(u64::from(work.rows)),
        copy_out: copy(&device.copies_out, work.bytes_out),
    }
}

/// What is before the engines of each device.
pub(super) fn backlogs<'a>(
    devices: usize,
    courses: impl Iterator<Item = &'a Course>,
) -> Vec<Times> {
    let mut backlogs = vec![Times::default(); devices];
    for course in courses {
        let left = course.left();
        if let Some(backlog) = backlogs.get_mut(course.device) {
            backlog.copy_in += left.copy_in;
            backlog.execute += left.execute;
            backlog.copy_out += left.copy_out;
        }
    }
    backlogs
}

/// The place where a batch will be through first, of those that are open and whose devices work; it may
/// have no free lane yet.
pub(super) fn best(
    work: &Work,
    places: &[PlaceState],
    devices: &[DeviceState],
    backlogs: &[Times],
    chunk_bytes: usize,
) -> Option<usize> {
    places
        .iter()
        .enumerate()
        .filter_map(|(index, place)| {
            let device = devices.get(place.place.device)?;
            if device.lost.is_some() || !place.is_open() {
                return None;
            }
            let before = backlogs.get(place.place.device).copied().unwrap_or_default();
            let through = through(before, expected(work, place, device, chunk_bytes));
            let full = place.free_lane().is_none();
            // Of equals the one with a lane, then the one with less to do.
            Some(((through, full, device.courses), index))
        })
        .min()
        .map(|(_, index)| index)
}
