//! Requests as C tells them.

use std::ffi::{c_char, c_void};

use nereid_ring_client::{DataType, Error, Parameter, Request, SequenceId, Tensor, Value, Wanted};

use super::{CRing, elements, text};

const SEQUENCE_START: u32 = 1;
const SEQUENCE_END: u32 = 2;

/// `nrd_tensor`.
#[repr(C)]
pub struct CTensor {
    pub name: *const c_char,
    pub datatype: u32,
    pub rank: u32,
    pub dims: *const i64,
    pub data: *const c_void,
    pub bytes: usize,
}

/// `nrd_wanted`.
#[repr(C)]
pub struct CWanted {
    name: *const c_char,
    classes: u32,
    place: *mut c_void,
    bytes: usize,
}

/// `nrd_parameter`.
#[repr(C)]
pub struct CParameter {
    name: *const c_char,
    kind: u32,
    integer: i64,
    number: f64,
    text: *const c_char,
}

/// `nrd_request`.
#[repr(C)]
pub struct CRequest {
    model: *const c_char,
    version: *const c_char,
    id: *const c_char,
    sequence_name: *const c_char,
    sequence: u64,
    flags: u32,
    priority: u64,
    timeout_us: u64,
    deadline_us: u64,
    area: *mut c_void,
    area_bytes: usize,
    inputs: *const CTensor,
    input_count: usize,
    outputs: *const CWanted,
    output_count: usize,
    parameters: *const CParameter,
    parameter_count: usize,
}

impl CRequest {
    /// The request that is told.
    ///
    /// # Safety
    /// All that it leads to is valid for as long as it is.
    pub unsafe fn read<'a>(&'a self, ring: &CRing) -> Result<Request<'a>, Error> {
        // SAFETY: the caller says so of all pointers in here.
        unsafe {
            let inputs = elements(self.inputs, self.input_count);
            let outputs = elements(self.outputs, self.output_count);
            let parameters = elements(self.parameters, self.parameter_count);
            let sequence = match (text(self.sequence_name)?, self.sequence) {
                ("", 0) => SequenceId::None,
                ("", number) => SequenceId::Number(number),
                (name, _) => SequenceId::Text(name),
            };
            Ok(Request {
                model: text(self.model)?,
                version: text(self.version)?,
                id: text(self.id)?,
                sequence,
                sequence_start: self.flags & SEQUENCE_START != 0,
                sequence_end: self.flags & SEQUENCE_END != 0,
                priority: self.priority,
                timeout_us: self.timeout_us,
                deadline_us: self.deadline_us,
                area: ring.span("the area for answers", self.area, self.area_bytes)?,
                inputs: inputs.iter().map(|input| input.read(ring)).collect::<Result<_, _>>()?,
                outputs: outputs
                    .iter()
                    .map(|output| output.read(ring))
                    .collect::<Result<_, _>>()?,
                parameters: parameters
                    .iter()
                    .map(|parameter| parameter.read())
                    .collect::<Result<_, _>>()?,
            })
        }
    }
}

impl CTensor {
    unsafe fn read<'a>(&'a self, ring: &CRing) -> Result<Tensor<'a>, Error> {
        // SAFETY: whoever reads the request says so.
        let (name, dims) = unsafe { (text(self.name)?, elements(self.dims, self.rank as usize)) };
        let numbered = u8::try_from(self.datatype).ok().and_then(DataType::from_number);
        let datatype = numbered.ok_or_else(|| Error::NotAValue {
            what: format!("the type of input '{name}'"),
            got: self.datatype.to_string(),
        })?;
        let data = ring.span(&format!("input '{name}'"), self.data, self.bytes)?;
        Ok(Tensor { name, datatype, dims: dims.iter().copied().collect(), data })
    }
}

impl CWanted {
    unsafe fn read<'a>(&'a self, ring: &CRing) -> Result<Wanted<'a>, Error> {
        // SAFETY: whoever reads the request says so.
        let name = unsafe { text(self.name)? };
        let place = match self.place.is_null() {
            true => None,
            false => {
                Some(ring.span(&format!("the place of output '{name}'"), self.place, self.bytes)?)
            }
        };
        Ok(Wanted { name, classes: self.classes, place })
    }
}

impl CParameter {
    unsafe fn read<'a>(&'a self) -> Result<Parameter<'a>, Error> {
        // SAFETY: whoever reads the request says so.
        let (name, text) = unsafe { (text(self.name)?, text(self.text)?) };
        let value = match self.kind {
            1 => Value::Bool(self.integer != 0),
            2 => Value::Int(self.integer),
            3 => Value::Uint(self.integer.cast_unsigned()),
            4 => Value::Double(self.number),
            5 => Value::Text(text),
            other => {
                let what = format!("the kind of parameter '{name}'");
                return Err(Error::NotAValue { what, got: other.to_string() });
            }
        };
        Ok(Parameter { name, value })
    }
}
