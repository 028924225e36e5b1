use std::{any::Any, sync::Arc, time::Duration};

use bytes::Bytes;
use smallvec::SmallVec;

use super::DeviceSlice;

/// The pointers of a table argument: a kernel takes it by value as an array of this many.
pub const TABLE_LEN: usize = 128;

/// A kernel before a device has loaded it: its code for GPUs, and its twin for the host.
#[derive(Clone)]
pub struct KernelSource {
    /// The name of the function in the image.
    pub name: Arc<str>,
    /// A fatbin, cubin or PTX (the latter with a zero at its end); none where only hosts run it.
    pub image: Option<Bytes>,
    /// What a host device runs in its place; none where only GPUs can run it.
    pub twin: Option<Twin>,
}

/// A kernel in Rust: it gets the launch's grid and its arguments in order, and does the work of all
/// blocks. An error fails the launch.
pub type Twin = Arc<dyn Fn([u32; 3], &mut [HostArgument<'_>]) -> Result<(), String> + Send + Sync>;

/// An argument as a [`Twin`] sees it.
pub enum HostArgument<'a> {
    /// Bytes that it reads.
    Read(&'a [u8]),
    /// Bytes that it may read and writes.
    Write(&'a mut [u8]),
    /// Bytes at several places that it reads.
    ReadTable(Vec<&'a [u8]>),
    /// Bytes at several places that it may read and writes.
    WriteTable(Vec<&'a mut [u8]>),
    /// A number.
    Scalar(Scalar),
}

/// A kernel that a device has loaded.
#[derive(Clone)]
pub struct Kernel {
    pub(super) name: Arc<str>,
    pub(super) device: usize,
    /// The function as the device knows it.
    pub(super) code: Arc<dyn Any + Send + Sync>,
}

impl Kernel {
    /// The name of the function.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the device that has loaded it.
    pub fn device(&self) -> usize {
        self.device
    }

    /// A launch on a grid of blocks of threads, without arguments yet.
    pub fn launch(&self, grid: [u32; 3], block: [u32; 3]) -> Launch {
        Launch {
            kernel: self.clone(),
            grid,
            block,
            shared_bytes: 0,
            arguments: SmallVec::new(),
            cost: Duration::ZERO,
        }
    }
}

/// One run of a kernel.
#[derive(Clone)]
pub struct Launch {
    /// What runs.
    pub kernel: Kernel,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Dynamic shared memory of each block.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: SmallVec<[Argument; 8]>,
    /// What it takes at least on a host device, and just this in virtual time. GPUs pay no heed.
    pub cost: Duration,
}

impl Launch {
    /// Adds an argument.
    #[must_use]
    pub fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }
}

/// One argument of a launch. The launch keeps alive the memory that it names.
#[derive(Clone)]
pub enum Argument {
    /// A pointer to bytes that the kernel reads.
    Read(DeviceSlice),
    /// A pointer to bytes that the kernel may read and writes.
    Write(DeviceSlice),
    /// At most [`TABLE_LEN`] pointers that the kernel reads from.
    ReadTable(Vec<DeviceSlice>),
    /// At most [`TABLE_LEN`] pointers that the kernel may read from and writes to.
    WriteTable(Vec<DeviceSlice>),
    /// A number, by value.
    Scalar(Scalar),
}

/// A number as a kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// `int`
    I32(i32),
    /// `unsigned int`
    U32(u32),
    /// `long long`
    I64(i64),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
    /// `double`
    F64(f64),
}

impl Scalar {
    /// Its bytes, the low ones first, so that a narrower parameter finds its own in front.
    pub fn bits(self) -> u64 {
        match self {
            Self::I32(value) => u64::from(value.cast_unsigned()),
            Self::U32(value) => u64::from(value),
            Self::I64(value) => value.cast_unsigned(),
            Self::U64(value) => value,
            Self::F32(value) => u64::from(value.to_bits()),
            Self::F64(value) => value.to_bits(),
        }
    }
}
