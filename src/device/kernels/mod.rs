//! The kernels of `kernels/*.cu` as the rest of the program sees them: the compiled image, how each is
//! launched, and a twin of each in Rust that does the same on the host.
//!
//! One module a source file. A twin is plain code over slices that the compiler turns into vector
//! instructions; it gives what the kernel gives, to the rounding of float32. This room knows slices
//! and numbers. It must not know tensors, models or who asked.

pub mod cast;
pub mod gather;
pub mod image;
pub mod nms;
pub mod pad;
pub mod softmax;
mod sources;
pub mod take;
pub mod top_k;

pub use self::sources::source;

/// What `build.rs` has made of `kernels/all.cu`.
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// All kernels in one image for GPUs, with machine code for compute capabilities 8.0, 9.0 and 10.0 and
/// PTX for later ones; `None` when the program was built without `nvcc`.
pub const IMAGE: Option<&[u8]> = compiled::IMAGE;

/// What compiled [`IMAGE`], such as `nvcc 13.0.88`; why there is none otherwise.
pub const COMPILED_BY: &str = compiled::COMPILED_BY;

/// The most places that one launch takes in a table.
pub const PLACES_MAX: usize = 128;

/// How many blocks of how many threads a kernel is launched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Grid {
    /// Blocks in each dimension.
    pub blocks: [u32; 3],
    /// Threads of a block in each dimension.
    pub threads: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

const THREADS: u32 = 256;
const WARP: u32 = 32;
/// Blocks of a kernel whose threads take several elements each: enough to fill the largest GPU.
const BLOCKS_MAX: u32 = 4096;

impl Grid {
    /// As many threads as there are elements, up to a number that keeps any GPU busy.
    fn over(elements: u64) -> Self {
        let blocks = u32::try_from(elements.div_ceil(THREADS.into())).unwrap_or(u32::MAX);
        Self {
            blocks: [blocks.clamp(1, BLOCKS_MAX), 1, 1],
            threads: [THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// A block a row, of no more threads than columns but whole warps.
    fn a_block_a_row(rows: u32, columns: u32) -> Self {
        let threads = columns.clamp(1, THREADS).next_multiple_of(WARP);
        Self { blocks: [rows, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    fn warps(&self) -> u32 {
        self.threads[0] / WARP
    }
}
