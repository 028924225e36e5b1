//! Where a kernel can be launched: on the shim, or on a device.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nereid::device::{Scalar, kernels::Grid};

use super::on_device::OnDevice;

/// An argument of a launch.
pub enum Argument<'a> {
    /// Bytes that the kernel reads.
    Read(&'a [u8]),
    /// Bytes that it may read and writes.
    Write(&'a mut [u8]),
    /// A table of places that it reads.
    ReadTable(Vec<&'a [u8]>),
    /// A table of places that it writes.
    WriteTable(Vec<&'a mut [u8]>),
    /// A number.
    Value(Scalar),
}

pub fn read<T: bytemuck::Pod>(values: &[T]) -> Argument<'_> {
    Argument::Read(bytemuck::cast_slice(values))
}

pub fn write<T: bytemuck::Pod>(values: &mut [T]) -> Argument<'_> {
    Argument::Write(bytemuck::cast_slice_mut(values))
}

pub fn value(number: impl Into<Number>) -> Argument<'static> {
    Argument::Value(number.into().0)
}

/// A value as its bits, for kernels that do not ask what they mean.
pub fn bits<T: bytemuck::Pod>(value: T) -> Argument<'static> {
    let mut bytes = [0; 8];
    let given = bytemuck::bytes_of(&value);
    bytes[..given.len()].copy_from_slice(given);
    let all = u64::from_le_bytes(bytes);
    Argument::Value(u32::try_from(all).map_or(Scalar::U64(all), |low| match given.len() {
        8 => Scalar::U64(all),
        _ => Scalar::U32(low),
    }))
}

/// A number that kernels take.
pub struct Number(Scalar);

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self(Scalar::U32(number))
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self(Scalar::U64(number))
    }
}

impl From<f32> for Number {
    fn from(number: f32) -> Self {
        Self(Scalar::F32(number))
    }
}

pub trait Machine {
    fn launch(&self, kernel: &str, grid: &Grid, arguments: Vec<Argument<'_>>);
}

/// All machines of this computer.
pub fn machines() -> Vec<Box<dyn Machine>> {
    let mut machines: Vec<Box<dyn Machine>> = vec![Box::new(Shim::open())];
    machines.extend(OnDevice::all().map(|device| Box::new(device) as Box<dyn Machine>));
    machines
}

/// The places of a table as a kernel takes it, by value.
#[repr(C)]
struct PlaceTable([*mut u8; 128]);

struct Shim(&'static libloading::Library);

impl Shim {
    /// Compiles the kernels for this processor, once.
    fn open() -> Self {
        static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
        Self(LIBRARY.get_or_init(|| {
            let path = compile();
            // SAFETY: the library is our own and has no initialisers.
            unsafe { libloading::Library::new(&path) }.expect("the compiled kernels can be opened")
        }))
    }
}

fn compile() -> PathBuf {
    // Cargo runs tests in the package's folder; `tests/gpu/run.sh` runs this one where it was not built.
    let kernels = Path::new("kernels");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let library = folder.keep().join("kernels.so");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let done = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-x", "c++"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args([kernels.join("all.cu"), kernels.join("shim/fibers.cpp")])
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap_or_else(|error| panic!("{compiler:?} compiles the kernels for this test: {error}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    library
}

/// Bytes between guards, which a kernel that writes beyond its place changes. The copy is as far from
/// a multiple of 16 as the original, because kernels look at that.
struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;

impl Guarded {
    fn copy(original: &[u8]) -> Self {
        let mut bytes = vec![GUARD_BYTE; original.len() + 2 * GUARD + 32];
        let wanted = original.as_ptr().addr() % 16;
        let start = (0..16)
            .map(|shift| GUARD + shift)
            .find(|start| bytes[*start..].as_ptr().addr() % 16 == wanted)
            .expect("one of sixteen fits");
        bytes[start..][..original.len()].copy_from_slice(original);
        Self { bytes, start, len: original.len() }
    }

    fn pointer(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn contents(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    fn assert_whole(&self, kernel: &str) {
        let (before, rest) = self.bytes.split_at(self.start);
        let outside = before.iter().chain(&rest[self.len..]);
        assert!(
            outside.copied().all(|byte| byte == GUARD_BYTE),
            "{kernel} wrote beyond its memory"
        );
    }
}

/// A number as it lies in memory.
fn bytes_of(number: Scalar) -> [u8; 8] {
    match number {
        Scalar::I32(number) => i64::from(number).to_le_bytes(),
        Scalar::U32(number) => u64::from(number).to_le_bytes(),
        Scalar::I64(number) => number.to_le_bytes(),
        Scalar::U64(number) => number.to_le_bytes(),
        Scalar::F32(number) => u64::from(number.to_bits()).to_le_bytes(),
        Scalar::F64(number) => number.to_le_bytes(),
    }
}

impl Machine for Shim {
    fn launch(&self, kernel: &str, grid: &Grid, mut arguments: Vec<Argument<'_>>) {
        type Entry = unsafe extern "C" fn(*const Grid, *mut *mut u8) -> i32;
        let mut memory: Vec<Vec<Guarded>> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Read(bytes) => vec![Guarded::copy(bytes)],
                Argument::Write(bytes) => vec![Guarded::copy(bytes)],
                Argument::ReadTable(places) => {
                    places.iter().map(|place| Guarded::copy(place)).collect()
                }
                Argument::WriteTable(places) => {
                    places.iter().map(|place| Guarded::copy(place)).collect()
                }
                Argument::Value(_) => Vec::new(),
            })
            .collect();
        let mut tables: Vec<PlaceTable> = memory
            .iter_mut()
            .map(|places| {
                let mut table = [std::ptr::null_mut(); 128];
                for (entry, place) in table.iter_mut().zip(places) {
                    *entry = place.pointer();
                }
                PlaceTable(table)
            })
            .collect();
        let mut numbers: Vec<[u8; 8]> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Value(number) => bytes_of(*number),
                _ => [0; 8],
            })
            .collect();
        // A pointer is a table of one, as far as the kernel reads it.
        let mut pointers: Vec<*mut u8> = arguments
            .iter()
            .zip(tables.iter_mut().zip(&mut numbers))
            .map(|(argument, (table, number))| match argument {
                Argument::Value(_) => number.as_mut_ptr(),
                _ => (&raw mut table.0).cast(),
            })
            .collect();
        let name = format!("shim_{kernel}");
        // SAFETY: the library has this signature for every entry.
        let entry = unsafe { self.0.get::<Entry>(name.as_bytes()) };
        let entry = entry.unwrap_or_else(|error| panic!("{kernel}: {error}"));
        // SAFETY: the pointers lead to arguments that live until the call returns; each test gives
        // them in the kernel's order and types.
        let outcome = unsafe { entry(grid, pointers.as_mut_ptr()) };
        assert_eq!(outcome, 0, "threads of {kernel} wait for each other for ever");

        for (argument, places) in arguments.iter_mut().zip(&memory) {
            places.iter().for_each(|place| place.assert_whole(kernel));
            match argument {
                Argument::Write(bytes) => bytes.copy_from_slice(places[0].contents()),
                Argument::WriteTable(originals) => {
                    for (original, place) in originals.iter_mut().zip(places) {
                        original.copy_from_slice(place.contents());
                    }
                }
                Argument::Read(_) | Argument::ReadTable(_) | Argument::Value(_) => {}
            }
        }
    }
}
