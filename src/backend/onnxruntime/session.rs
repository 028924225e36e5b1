//! Sessions: a model file opened with its settings, on one device, and what the file says of its
//! tensors.

use std::{ffi::CStr, os::unix::ffi::OsStrExt as _, path::Path};

use ort_sys::{
    ONNXTensorElementDataType as Element, ONNXType, OrtRunOptions, OrtSession, OrtTypeInfo,
};

use super::{
    handle::{Handle, OrtError},
    library::Runtime,
    options::{Options, c_string, run_options},
    settings::SessionSettings,
};
use crate::inference::{DataType, Shape};

/// What ONNX Runtime calls the settings of a run.
const SHRINKAGE: &CStr = c"memory.enable_memory_arena_shrinkage";
const DO_NOT_WAIT: &CStr = c"disable_synchronize_execution_providers";
const GRAPH: &CStr = c"gpu_graph_id";

/// A model opened on one device. `Run` may be called on it from many threads at once.
pub(super) struct Session {
    pub runtime: &'static Runtime,
    session: Handle<OrtSession>,
    run_options: Option<Handle<OrtRunOptions>>,
    /// The devices whose unused arena memory is given back after a run.
    shrunk: Option<String>,
    on_stream: Option<OnStream>,
    /// The inputs that the file declares, in its order.
    pub inputs: Vec<Port>,
    /// The outputs that the file declares, in its order.
    pub outputs: Vec<Port>,
}

/// An input or output of a model file.
pub(super) struct Port {
    pub name: String,
    /// Its tensor, or why it is none that this server can carry.
    pub tensor: Result<PortTensor, String>,
}

/// The tensor of a [`Port`].
#[derive(Clone, Debug)]
pub(super) struct PortTensor {
    pub datatype: DataType,
    /// `None` when the file does not even say how many dimensions there are.
    pub extents: Option<Vec<Extent>>,
}

/// One dimension of a [`PortTensor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Fixed(i64),
    /// A variable size; wherever the file uses the same name the size is the same.
    Named(String),
    Any,
}

impl PortTensor {
    /// The dimensions with `-1` for all that is not fixed.
    pub fn shape(&self) -> Shape {
        let extents = self.extents.iter().flatten();
        extents
            .map(|extent| match extent {
                Extent::Fixed(size) => *size,
                Extent::Named(_) | Extent::Any => -1,
            })
            .collect()
    }
}

/// The stream that a session on a GPU puts its work on.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnStream {
    /// Its CUDA handle.
    pub handle: u64,
    /// Whether runs are captured in graphs.
    pub graphs: bool,
}

/// Where a session runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Device {
    Host,
    Gpu(i32),
}

impl Session {
    /// Opens `path`. The name is that of the model, for log messages. A session without a stream waits for
    /// its work.
    pub fn open(
        runtime: &'static Runtime,
        name: &str,
        path: &Path,
        settings: &SessionSettings,
        device: Device,
        on_stream: Option<OnStream>,
    ) -> Result<Self, OrtError> {
        let api = runtime.api;
        let options = Options::new(runtime, name, settings, device, on_stream)?;
        let path = c_string(path.as_os_str().as_bytes())?;
        // SAFETY: creating function and release belong together; the path lives through the call.
        let session = unsafe {
            Handle::create(api, api.ReleaseSession, |out| {
                (api.CreateSession)(
                    runtime.env.as_ptr(),
                    path.as_ptr(),
                    options.handle.as_ptr(),
                    out,
                )
            })
        }?;
        let shrunk = settings.arena_shrinkage.clone();
        let options =
            shrunk.as_deref().map(|devices| run_options(runtime, &[(SHRINKAGE, devices)]));
        let inputs = ports(runtime, &session, Side::Input)?;
        let outputs = ports(runtime, &session, Side::Output)?;
        let run_options = options.transpose()?;
        Ok(Self { runtime, session, run_options, shrunk, on_stream, inputs, outputs })
    }

    /// The session for a call of `Run`.
    pub fn as_ptr(&self) -> *mut OrtSession {
        self.session.as_ptr()
    }

    /// The options for a run that leaves its work on the session's stream, by the graph of a number if
    /// one is given; none where the session has no stream.
    pub fn options_on_device(
        &self,
        graph: Option<usize>,
    ) -> Result<Option<Handle<OrtRunOptions>>, OrtError> {
        let Some(OnStream { graphs, .. }) = self.on_stream else { return Ok(None) };
        // ONNX Runtime captures nothing under the number -1.
        let graph = graph.map_or_else(|| "-1".to_owned(), |number| (number + 1).to_string());
        let mut entries = vec![(DO_NOT_WAIT, "1")];
        entries.extend(graphs.then_some((GRAPH, &*graph)));
        entries.extend(self.shrunk.as_deref().map(|devices| (SHRINKAGE, devices)));
        run_options(self.runtime, &entries).map(Some)
    }

    /// The options for a call of `Run`; null for none.
    pub fn run_options(&self) -> *const OrtRunOptions {
        self.run_options.as_ref().map_or(std::ptr::null(), |options| options.as_ptr())
    }
}

#[derive(Clone, Copy)]
enum Side {
    Input,
    Output,
}

fn ports(
    runtime: &Runtime,
    session: &Handle<OrtSession>,
    side: Side,
) -> Result<Vec<Port>, OrtError> {
    let api = runtime.api;
    let (count_of, name_of, type_of) = match side {
        Side::Input => {
            (api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo)
        }
        Side::Output => {
            (api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo)
        }
    };
    let mut count = 0;
    // SAFETY: the session is alive; the status is that of the call.
    unsafe { runtime.check(count_of(session.as_ptr(), &mut count)) }?;
    let mut ports = Vec::with_capacity(count);
    for index in 0..count {
        let mut name = std::ptr::null_mut();
        // SAFETY: the index is below the count; the name is freed below.
        unsafe {
            runtime.check(name_of(session.as_ptr(), index, runtime.allocator.as_ptr(), &mut name))
        }?;
        // SAFETY: the call has written a string.
        let owned = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: the string comes from this allocator and is not used again.
        unsafe { runtime.check((api.AllocatorFree)(runtime.allocator.as_ptr(), name.cast())) }?;
        // SAFETY: creating function and release belong together; the index is below the count.
        let info = unsafe {
            Handle::create(api, api.ReleaseTypeInfo, |out| type_of(session.as_ptr(), index, out))
        }?;
        ports.push(Port { tensor: port_tensor(runtime, &owned, &info)?, name: owned });
    }
    Ok(ports)
}

fn port_tensor(
    runtime: &Runtime,
    name: &str,
    info: &Handle<OrtTypeInfo>,
) -> Result<Result<PortTensor, String>, OrtError> {
    let api = runtime.api;
    // Enumerations are read as integers: a later library may know values that `ort-sys` does not.
    let mut kind = 0_i32;
    // SAFETY: the information is alive, and the enumeration is as wide as an `i32`.
    unsafe { runtime.check((api.GetOnnxTypeFromTypeInfo)(info.as_ptr(), (&raw mut kind).cast())) }?;
    if kind != ONNXType::ONNX_TYPE_TENSOR as i32 {
        return Ok(Err(format!(
            "unsupported ONNX type {kind} ({}) for '{name}', expected a tensor",
            type_name(kind)
        )));
    }
    let mut tensor = std::ptr::null();
    // SAFETY: the information is alive; what is written lives as long as it does.
    unsafe { runtime.check((api.CastTypeInfoToTensorInfo)(info.as_ptr(), &mut tensor)) }?;
    let mut element = 0_i32;
    // SAFETY: `tensor` is alive, as below, and the enumeration is as wide as an `i32`.
    unsafe { runtime.check((api.GetTensorElementType)(tensor, (&raw mut element).cast())) }?;
    let Some(datatype) = datatype_of(element) else {
        return Ok(Err(format!("unsupported ONNX element type {element} for '{name}'")));
    };
    // SAFETY: as above.
    if !unsafe { (api.TensorTypeAndShape_HasShape)(tensor) } {
        return Ok(Ok(PortTensor { datatype, extents: None }));
    }
    let mut rank = 0;
    // SAFETY: as above.
    unsafe { runtime.check((api.GetDimensionsCount)(tensor, &mut rank)) }?;
    let mut dims = vec![0_i64; rank];
    let mut names = vec![std::ptr::null(); rank];
    // SAFETY: both arrays have `rank` places; the names live as long as `info`.
    unsafe {
        runtime.check((api.GetDimensions)(tensor, dims.as_mut_ptr(), rank))?;
        runtime.check((api.GetSymbolicDimensions)(tensor, names.as_mut_ptr(), rank))?;
    }
    let extents = dims.iter().zip(names).map(|(&dim, name)| {
        if dim >= 0 {
            return Extent::Fixed(dim);
        }
        // SAFETY: each place holds a string, empty where the file gives no name.
        match unsafe { CStr::from_ptr(name) }.to_string_lossy() {
            name if name.is_empty() => Extent::Any,
            name => Extent::Named(name.into_owned()),
        }
    });
    Ok(Ok(PortTensor { datatype, extents: Some(extents.collect()) }))
}

fn type_name(kind: i32) -> &'static str {
    match kind {
        2 => "sequence",
        3 => "map",
        4 => "opaque",
        5 => "sparse tensor",
        6 => "optional",
        _ => "unknown",
    }
}

const ELEMENTS: [(DataType, Element); 14] = [
    (DataType::Bool, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
    (DataType::Uint8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
    (DataType::Uint16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16),
    (DataType::Uint32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32),
    (DataType::Uint64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64),
    (DataType::Int8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8),
    (DataType::Int16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16),
    (DataType::Int32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
    (DataType::Int64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    (DataType::Fp16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
    (DataType::Fp32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    (DataType::Fp64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
    (DataType::Bytes, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING),
    (DataType::Bf16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
];

/// The type that ONNX Runtime's number stands for; `None` for those that the protocol lacks.
pub(super) fn datatype_of(element: i32) -> Option<DataType> {
    ELEMENTS.iter().find(|(_, number)| *number as i32 == element).map(|&(datatype, _)| datatype)
}

/// ONNX Runtime's number for a type.
pub(super) fn element_of(datatype: DataType) -> Element {
    ELEMENTS
        .iter()
        .find(|(known, _)| *known == datatype)
        .map_or(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, |&(_, element)| element)
}
