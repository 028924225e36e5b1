use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    HostSettings,
    allocation::{read, write},
    engines::Engine,
    faults::FaultKind,
};
use crate::device::{
    Argument, Destination, DeviceError, DeviceSlice, HostArgument, HostTarget, Launch,
    LibraryMemory, Part, Report, Twin, Visit, VisitError, Visited, visit,
};

pub(super) type Call = Box<dyn FnOnce(Report) + Send>;

/// What a stream holds.
pub(super) enum Operation {
    CopyIn {
        from: Bytes,
        to: DeviceSlice,
    },
    CopyOut {
        from: DeviceSlice,
        to: HostTarget,
    },
    Device(DeviceOperation),
    Replay(Arc<Captured>),
    /// None once it has been done.
    Visit(Option<Visit>),
    Call(Call),
    Record {
        event: u64,
        generation: u64,
    },
    Wait {
        event: u64,
        generation: u64,
    },
}

/// What touches the device's memory only, and can be captured.
#[derive(Clone)]
pub(super) enum DeviceOperation {
    Copy { from: DeviceSlice, to: DeviceSlice },
    Fill { to: DeviceSlice, value: u8 },
    Launch(Box<Launch>),
}

/// A graph of a host device.
pub(super) struct Captured {
    pub device: usize,
    pub operations: Vec<DeviceOperation>,
}

impl Part for Captured {}

/// What an operation costs a modelled engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// Time that depends on nothing else.
    pub fixed: Duration,
    /// Bytes that go over the host's memory and a link of `bytes_per_second`.
    pub bytes: usize,
    pub bytes_per_second: Option<f64>,
}

impl Cost {
    /// How long it takes when nothing else uses the link.
    pub fn alone(&self) -> Duration {
        let link = self.bytes_per_second.map(|rate| self.bytes as f64 / rate);
        self.fixed + Duration::from_secs_f64(link.unwrap_or_default())
    }
}

impl Operation {
    /// The engine that runs it; none for what only orders streams.
    pub fn engine(&self) -> Option<Engine> {
        match self {
            Self::CopyIn { .. } => Some(Engine::CopyIn),
            Self::CopyOut { .. } => Some(Engine::CopyOut),
            Self::Device(_) | Self::Replay(_) | Self::Visit(_) => Some(Engine::Compute),
            Self::Call(_) => Some(Engine::Host),
            Self::Record { .. } | Self::Wait { .. } => None,
        }
    }

    pub fn cost(&self, settings: &HostSettings) -> Cost {
        let over = |link: Option<super::Link>, bytes| match link {
            Some(link) => {
                Cost { fixed: link.latency, bytes, bytes_per_second: Some(link.bytes_per_second) }
            }
            None => Cost::default(),
        };
        match self {
            Self::CopyIn { from, .. } => over(settings.copy_in, from.len()),
            Self::CopyOut { from, .. } => over(settings.copy_out, from.len()),
            Self::Device(operation) => {
                let fixed = settings.launch_latency + operation.cost();
                Cost { fixed, ..Cost::default() }
            }
            // A graph is launched once, whatever it holds.
            Self::Replay(graph) => {
                let own: Duration = graph.operations.iter().map(DeviceOperation::cost).sum();
                Cost { fixed: settings.launch_latency + own, ..Cost::default() }
            }
            Self::Visit(_) => Cost { fixed: settings.launch_latency, ..Cost::default() },
            Self::Call(_) | Self::Record { .. } | Self::Wait { .. } => Cost::default(),
        }
    }

    /// What kind of fault can strike it.
    pub fn fault_kind(&self) -> Option<FaultKind> {
        match self {
            Self::CopyIn { .. } | Self::CopyOut { .. } => Some(FaultKind::Copy),
            Self::Device(DeviceOperation::Launch(_)) | Self::Replay(_) | Self::Visit(_) => {
                Some(FaultKind::Launch)
            }
            Self::Device(_) => Some(FaultKind::Copy),
            Self::Call(_) | Self::Record { .. } | Self::Wait { .. } => None,
        }
    }

    /// How it fails when a fault strikes it.
    pub fn struck(&self, device: usize) -> DeviceError {
        let reason = "an injected fault".to_owned();
        match self {
            Self::CopyIn { from, .. } => DeviceError::Copy { device, bytes: from.len(), reason },
            Self::CopyOut { from, .. } => DeviceError::Copy { device, bytes: from.len(), reason },
            Self::Device(DeviceOperation::Launch(launch)) => {
                DeviceError::Launch { device, kernel: launch.kernel.name().to_owned(), reason }
            }
            Self::Device(DeviceOperation::Copy { to, .. } | DeviceOperation::Fill { to, .. }) => {
                DeviceError::Copy { device, bytes: to.len(), reason }
            }
            Self::Visit(Some(visit)) => VisitError::Failed(reason).on(device, &visit.who),
            _ => DeviceError::Launch { device, kernel: "a graph".to_owned(), reason },
        }
    }

    /// Does it, on the calling thread. A call is no work of the device and is not for here.
    pub fn perform(&mut self, device: usize) -> Result<(), DeviceError> {
        match self {
            Self::CopyIn { from, to } => {
                write(to, device)?.copy_from_slice(from);
                Ok(())
            }
            Self::CopyOut { from, to } => {
                to.write(&read(from, device)?);
                Ok(())
            }
            Self::Device(operation) => operation.perform(device),
            Self::Replay(graph) => graph.operations.iter().try_for_each(|it| it.perform(device)),
            Self::Visit(visit) => visit.take().map_or(Ok(()), |visit| receive(visit, device)),
            Self::Call(_) | Self::Record { .. } | Self::Wait { .. } => Ok(()),
        }
    }
}

impl DeviceOperation {
    fn cost(&self) -> Duration {
        match self {
            Self::Launch(launch) => launch.cost,
            Self::Copy { .. } | Self::Fill { .. } => Duration::ZERO,
        }
    }

    fn perform(&self, device: usize) -> Result<(), DeviceError> {
        match self {
            Self::Copy { from, to } => {
                write(to, device)?.copy_from_slice(&read(from, device)?);
                Ok(())
            }
            Self::Fill { to, value } => {
                write(to, device)?.fill(*value);
                Ok(())
            }
            Self::Launch(launch) => run_twin(launch, device),
        }
    }
}

/// The host as a library sees it that works here.
struct Here;

impl Visited for Here {
    fn bring(&mut self, from: LibraryMemory, to: Destination<'_>) -> Result<(), VisitError> {
        let (len, room) = (from.len, to.len());
        if len != room {
            return Err(VisitError::Failed(format!("{len} bytes do not fit {room} bytes")));
        }
        if len == 0 {
            return Ok(());
        }
        let first = std::ptr::with_exposed_provenance::<u8>(from.address as usize);
        // SAFETY: the memory is there, of the host, and its maker is through with it.
        let bytes = unsafe { std::slice::from_raw_parts(first, len) };
        match to {
            Destination::Host(mut target) => target.write(bytes),
            Destination::Device(slice) => {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(slice.address() as usize);
                // SAFETY: the slice is as long, and claimed for this visit alone.
                unsafe { std::ptr::copy(bytes.as_ptr(), to, len) };
            }
        }
        drop(from.keeper);
        Ok(())
    }
}

/// Lets a library do its work, with claims on all bytes that it is to touch.
fn receive(given: Visit, device: usize) -> Result<(), DeviceError> {
    let Visit { who, reads, writes, work } = given;
    let read = reads.iter().map(|slice| read(slice, device)).collect::<Result<Vec<_>, _>>()?;
    let written = writes.iter().map(|slice| write(slice, device)).collect::<Result<Vec<_>, _>>()?;
    let done = visit::work(work, &mut Here);
    drop((read, written));
    done.map_err(|error| error.on(device, &who))
}

/// An argument with the claim on its bytes.
enum Claimed<'a> {
    Read(super::allocation::Touched<'a>),
    Write(super::allocation::TouchedMut<'a>),
    ReadTable(Vec<super::allocation::Touched<'a>>),
    WriteTable(Vec<super::allocation::TouchedMut<'a>>),
    Scalar(crate::device::Scalar),
}

fn run_twin(launch: &Launch, device: usize) -> Result<(), DeviceError> {
    let failed = |reason: String| DeviceError::Launch {
        device,
        kernel: launch.kernel.name().to_owned(),
        reason,
    };
    let Some(twin) = launch.kernel.code.downcast_ref::<Twin>() else {
        return Err(failed("it has no twin for the host".to_owned()));
    };
    let claim = |argument| -> Result<Claimed<'_>, DeviceError> {
        Ok(match argument {
            &Argument::Scalar(scalar) => Claimed::Scalar(scalar),
            Argument::Read(slice) => Claimed::Read(read(slice, device)?),
            Argument::Write(slice) => Claimed::Write(write(slice, device)?),
            Argument::ReadTable(slices) => Claimed::ReadTable(
                slices.iter().map(|slice| read(slice, device)).collect::<Result<_, _>>()?,
            ),
            Argument::WriteTable(slices) => Claimed::WriteTable(
                slices.iter().map(|slice| write(slice, device)).collect::<Result<_, _>>()?,
            ),
        })
    };
    let mut claimed: Vec<_> = launch.arguments.iter().map(claim).collect::<Result<_, _>>()?;
    let mut arguments: Vec<HostArgument<'_>> = claimed
        .iter_mut()
        .map(|claimed| match claimed {
            Claimed::Read(bytes) => HostArgument::Read(bytes),
            Claimed::Write(bytes) => HostArgument::Write(bytes),
            Claimed::ReadTable(table) => {
                HostArgument::ReadTable(table.iter().map(|bytes| &**bytes).collect())
            }
            Claimed::WriteTable(table) => {
                HostArgument::WriteTable(table.iter_mut().map(|bytes| &mut **bytes).collect())
            }
            Claimed::Scalar(scalar) => HostArgument::Scalar(*scalar),
        })
        .collect();
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        twin(launch.grid, &mut arguments)
    }));
    ran.unwrap_or_else(|_| Err("its twin panicked".to_owned())).map_err(failed)
}
