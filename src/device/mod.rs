//! Where models' batches are copied to and run: small traits over a GPU's memory, streams and events,
//! and the devices behind them.
//!
//! Work goes onto a [`Stream`], whose operations run one behind the other while those of other
//! streams run beside them; [`Event`]s order streams among each other, and [`Stream::call`] tells the
//! host how far one has come. An operation keeps alive what it reads and writes, so no caller can
//! free memory under it. [`host`] is a twin of a GPU on the host's processors, with engines as threads
//! or in virtual time; [`cuda`] is the real thing. [`kernels`] are ours, each with a twin for the host.
//! [`streams`] decides what runs next.
//!
//! This room knows bytes, places and times. It must not know models, tensors, requests, or who waits.

pub mod cuda;
mod devices;
mod error;
pub mod host;
pub mod kernels;
mod launch;
mod memory;
mod shared;
pub mod streams;
mod visit;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::inference::Timestamp;

pub use self::{
    devices::Devices,
    error::DeviceError,
    launch::{Argument, HostArgument, Kernel, KernelSource, Launch, Scalar, TABLE_LEN, Twin},
    memory::{Allocation, DeviceMemory, DeviceSlice, HostTarget, Landing},
    shared::{ExportedMemory, IpcHandle, OpenedMemory},
    visit::{Destination, LibraryMemory, Visit, VisitError, VisitWork, Visited},
};

/// A GPU, or its twin on the host. Handles that it gives keep it alive.
pub trait Device: Send + Sync {
    /// What it is.
    fn properties(&self) -> &DeviceProperties;

    /// Takes memory, aligned to at least 256 bytes. What it holds is not defined.
    ///
    /// # Errors
    /// When there is not enough, or the device is lost.
    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError>;

    /// Opens memory that another process shares. Should that process end, using it may lose the device.
    ///
    /// # Errors
    /// When the device refuses the handle, or is lost.
    fn open_shared(&self, handle: IpcHandle) -> Result<DeviceMemory, DeviceError>;

    /// Takes memory that holds `content` and that other processes may open.
    ///
    /// # Errors
    /// When there is not enough, or the device cannot share it.
    fn share(&self, content: &[u8]) -> Result<ExportedMemory, DeviceError>;

    /// Bytes that are free now, as far as is known.
    fn free_bytes(&self) -> usize;

    /// Makes a stream. When several streams could run an operation, the more urgent one does.
    ///
    /// # Errors
    /// When the device refuses or is lost.
    fn stream(&self, urgency: Urgency) -> Result<Box<dyn Stream>, DeviceError>;

    /// Makes an event, which has not been recorded.
    ///
    /// # Errors
    /// When the device refuses or is lost.
    fn event(&self) -> Result<Event, DeviceError>;

    /// Makes a kernel ready to be launched on this device.
    ///
    /// # Errors
    /// When the device has no code for it, or refuses what it has.
    fn kernel(&self, source: &KernelSource) -> Result<Kernel, DeviceError>;

    /// Why the device is lost, if it is. All work then fails, and only a restart brings it back.
    fn lost(&self) -> Option<DeviceError>;
}

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceProperties {
    /// Its number; memory, streams and events belong to the device of this number.
    pub index: usize,
    /// Its maker's name for it.
    pub name: String,
    /// All its memory.
    pub memory_bytes: usize,
    /// Its CUDA compute capability, major and minor; none on the host.
    pub compute_capability: Option<(u32, u32)>,
    /// Whether a copy holds up its caller unless the host's memory is pinned.
    pub wants_pinned: bool,
}

/// The urgency of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Goes after urgent ones.
    #[default]
    Normal,
    /// Goes first.
    Urgent,
}

/// Operations that run one behind the other. An error that only shows while they run comes with the
/// next [`call`](Stream::call).
pub trait Stream: Send {
    /// Copies bytes of the host to the device; both must be of one length. It is asynchronous when
    /// the bytes lie in pinned memory.
    ///
    /// # Errors
    /// When the lengths differ, the memory is another device's, or the device refuses.
    fn copy_in(&mut self, from: Bytes, to: &DeviceSlice) -> Result<(), DeviceError>;

    /// Copies bytes of the device to the host; both must be of one length.
    ///
    /// # Errors
    /// As [`copy_in`](Stream::copy_in).
    fn copy_out(&mut self, from: &DeviceSlice, to: HostTarget) -> Result<(), DeviceError>;

    /// Copies bytes on the device; both must be of one length.
    ///
    /// # Errors
    /// As [`copy_in`](Stream::copy_in).
    fn copy_within(&mut self, from: &DeviceSlice, to: &DeviceSlice) -> Result<(), DeviceError>;

    /// Sets every byte to `value`.
    ///
    /// # Errors
    /// When the memory is another device's or the device refuses.
    fn fill(&mut self, to: &DeviceSlice, value: u8) -> Result<(), DeviceError>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// When an argument is another device's, the shape is not possible, or the device refuses.
    fn launch(&mut self, launch: Launch) -> Result<(), DeviceError>;

    /// Has a library do work of its own on the stream. It cannot be captured.
    ///
    /// # Errors
    /// When memory is another device's, the device refuses, or, on a GPU, the library fails.
    fn visit(&mut self, visit: Visit) -> Result<(), DeviceError>;

    /// What CUDA's libraries know the stream by; none on the host.
    fn handle(&self) -> Option<u64>;

    /// Records an event: it happens when all before it has run.
    ///
    /// # Errors
    /// When the event is another device's or the device refuses.
    fn record(&mut self, event: &Event) -> Result<(), DeviceError>;

    /// Lets what comes later wait until the event, as it was last recorded before this call, has
    /// happened. One that was never recorded is not waited for.
    ///
    /// # Errors
    /// When the event is another device's or the device refuses.
    fn wait(&mut self, event: &Event) -> Result<(), DeviceError>;

    /// Calls the host once all before it has run, on a thread of the device, which must not be held
    /// up: send a message. It is called whatever happens, also when the device is lost.
    ///
    /// # Errors
    /// When the device refuses; then `call` is dropped without being called.
    fn call(&mut self, call: Box<dyn FnOnce(Report) + Send>) -> Result<(), DeviceError>;

    /// Notes launches, fills and copies on the device from here on instead of running them.
    ///
    /// # Errors
    /// When a capture is under way, or the device refuses.
    fn begin_capture(&mut self) -> Result<(), DeviceError>;

    /// Ends the capture and gives what was noted.
    ///
    /// # Errors
    /// When none is under way, or something in between cannot be captured.
    fn end_capture(&mut self) -> Result<Graph, DeviceError>;

    /// Runs what a graph holds, at the cost of one launch.
    ///
    /// # Errors
    /// When the graph is another device's or the device refuses.
    fn replay(&mut self, graph: &Graph) -> Result<(), DeviceError>;
}

/// How a stream's operations went since its call before.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The first error among them.
    pub outcome: Result<(), DeviceError>,
    /// When the first of them began, as near as the device can tell.
    pub began: Timestamp,
    /// When the last of them ended.
    pub ended: Timestamp,
    /// How long they kept an engine busy, without what others did in between where the device can tell
    /// that apart.
    pub busy: Duration,
}

/// A point in the work of a stream.
#[derive(Clone)]
pub struct Event(pub(in crate::device) Arc<dyn Part>);

/// Work that was captured, to be run again and again.
#[derive(Clone)]
pub struct Graph(pub(in crate::device) Arc<dyn Part>);

/// What a device has made; it finds its own in it again.
pub(in crate::device) trait Part: std::any::Any + Send + Sync {}
