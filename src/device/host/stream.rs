use std::{any::Any, sync::Arc};

use bytes::Bytes;

use super::{
    allocation::own,
    device::Owner,
    operation::{Captured, DeviceOperation, Operation},
};
use crate::device::{
    Argument, DeviceError, DeviceSlice, Event, Graph, HostTarget, Launch, Part, Report, Stream,
    TABLE_LEN, Urgency, Visit,
};

/// A stream of a host device.
pub(super) struct HostStream {
    owner: Arc<Owner>,
    number: usize,
    capture: Option<Vec<DeviceOperation>>,
}

/// An event of a host device.
pub(super) struct HostEvent {
    owner: Arc<Owner>,
    number: u64,
}

impl Part for HostEvent {}

impl HostEvent {
    pub fn open(owner: Arc<Owner>) -> Self {
        let number = owner.0.engines().open_event();
        Self { owner, number }
    }
}

impl Drop for HostEvent {
    fn drop(&mut self) {
        self.owner.0.engines().close_event(self.number);
    }
}

impl HostStream {
    pub fn open(owner: Arc<Owner>, urgency: Urgency) -> Self {
        let number = owner.0.engines().open_stream(urgency);
        Self { owner, number, capture: None }
    }

    fn device(&self) -> usize {
        self.owner.0.settings.index
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.owner.0.lost().map_or(Ok(()), |lost| Err(lost.clone()))
    }

    fn check_lengths(&self, from: usize, to: usize) -> Result<(), DeviceError> {
        match from == to {
            true => Ok(()),
            false => Err(DeviceError::Lengths { device: self.device(), from, to }),
        }
    }

    fn check_no_capture(&self) -> Result<(), DeviceError> {
        match &self.capture {
            None => Ok(()),
            Some(_) => Err(DeviceError::Capture {
                device: self.device(),
                reason: "only launches, fills and copies on the device can be captured",
            }),
        }
    }

    fn submit(&self, operation: Operation) -> Result<(), DeviceError> {
        self.check()?;
        self.owner.0.change(|engines, now| engines.submit(self.number, operation, now));
        Ok(())
    }

    fn add(&mut self, operation: DeviceOperation) -> Result<(), DeviceError> {
        match &mut self.capture {
            Some(captured) => {
                captured.push(operation);
                Ok(())
            }
            None => self.submit(Operation::Device(operation)),
        }
    }

    fn check_launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let device = self.device();
        if launch.kernel.device != device {
            return Err(DeviceError::Foreign { device, what: "a kernel" });
        }
        let refused = |reason: String| DeviceError::Launch {
            device,
            kernel: launch.kernel.name().to_owned(),
            reason,
        };
        if launch.grid.contains(&0) || launch.block.contains(&0) {
            let (grid, block) = (launch.grid, launch.block);
            return Err(refused(format!(
                "a grid of {grid:?} blocks of {block:?} threads is empty"
            )));
        }
        for argument in &launch.arguments {
            match argument {
                Argument::Read(slice) | Argument::Write(slice) => drop(own(slice, device)?),
                Argument::ReadTable(slices) | Argument::WriteTable(slices) => {
                    if slices.len() > TABLE_LEN {
                        let len = slices.len();
                        return Err(refused(format!(
                            "a table of {len} pointers, at most {TABLE_LEN} are possible"
                        )));
                    }
                    slices.iter().try_for_each(|slice| own(slice, device).map(drop))?;
                }
                Argument::Scalar(_) => {}
            }
        }
        Ok(())
    }
}

impl Stream for HostStream {
    fn copy_in(&mut self, from: Bytes, to: &DeviceSlice) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check_lengths(from.len(), to.len())?;
        own(to, self.device())?;
        self.submit(Operation::CopyIn { from, to: to.clone() })
    }

    fn copy_out(&mut self, from: &DeviceSlice, to: HostTarget) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check_lengths(from.len(), to.len())?;
        own(from, self.device())?;
        self.submit(Operation::CopyOut { from: from.clone(), to })
    }

    fn copy_within(&mut self, from: &DeviceSlice, to: &DeviceSlice) -> Result<(), DeviceError> {
        self.check_lengths(from.len(), to.len())?;
        own(from, self.device())?;
        own(to, self.device())?;
        self.add(DeviceOperation::Copy { from: from.clone(), to: to.clone() })
    }

    fn fill(&mut self, to: &DeviceSlice, value: u8) -> Result<(), DeviceError> {
        own(to, self.device())?;
        self.add(DeviceOperation::Fill { to: to.clone(), value })
    }

    fn launch(&mut self, launch: Launch) -> Result<(), DeviceError> {
        self.check_launch(&launch)?;
        self.add(DeviceOperation::Launch(Box::new(launch)))
    }

    fn visit(&mut self, visit: Visit) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let mut slices = visit.reads.iter().chain(&visit.writes);
        slices.try_for_each(|slice| own(slice, self.device()).map(drop))?;
        self.submit(Operation::Visit(Some(visit)))
    }

    fn handle(&self) -> Option<u64> {
        None
    }

    fn record(&mut self, event: &Event) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check()?;
        let event = self.own_event(event)?;
        self.owner.0.change(|engines, now| engines.record(self.number, event, now));
        Ok(())
    }

    fn wait(&mut self, event: &Event) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check()?;
        let event = self.own_event(event)?;
        self.owner.0.change(|engines, now| engines.wait(self.number, event, now));
        Ok(())
    }

    fn call(&mut self, call: Box<dyn FnOnce(Report) + Send>) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        // Also on a lost device: who waits has to hear of it.
        self.owner.0.change(|engines, now| {
            engines.submit(self.number, Operation::Call(call), now);
        });
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check()?;
        self.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        let device = self.device();
        let reason = "no capture is under way";
        let captured = self.capture.take();
        let operations = captured.ok_or(DeviceError::Capture { device, reason })?;
        Ok(Graph(Arc::new(Captured { device, operations })))
    }

    fn replay(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let device = self.device();
        let graph: Arc<dyn Any + Send + Sync> = graph.0.clone();
        let captured = graph.downcast::<Captured>().ok().filter(|it| it.device == device);
        let captured = captured.ok_or(DeviceError::Foreign { device, what: "a graph" })?;
        self.submit(Operation::Replay(captured))
    }
}

impl HostStream {
    fn own_event(&self, event: &Event) -> Result<u64, DeviceError> {
        let device = self.device();
        let part: &dyn Any = &*event.0;
        part.downcast_ref::<HostEvent>()
            .filter(|event| Arc::ptr_eq(&event.owner, &self.owner))
            .map(|event| event.number)
            .ok_or(DeviceError::Foreign { device, what: "an event" })
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.owner.0.change(|engines, _| engines.close_stream(self.number));
    }
}
