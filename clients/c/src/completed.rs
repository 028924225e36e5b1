//! Completions as C reads them.

use std::{
    ffi::{CString, c_char, c_void},
    ptr,
};

use nereid_ring_client::{Completion, Error, Span};

use super::told::CTensor;

/// `nrd_completion`.
#[repr(C)]
pub struct CCompletion {
    token: u64,
    status: u32,
    is_final: u32,
    message: *const c_char,
    model: *const c_char,
    version: i64,
    id: *const c_char,
    outputs: *const CTensor,
    output_count: usize,
    has_answer: u32,
}

/// What a completion that the caller looks at leads to.
#[derive(Default)]
pub struct Held {
    message: CString,
    model: CString,
    id: CString,
    version: i64,
    has_answer: bool,
    outputs: Vec<CTensor>,
    /// What the outputs lead to.
    _names: Vec<CString>,
    _dims: Vec<Vec<i64>>,
}

impl Held {
    /// Holds what a completion says; `address` finds where its outputs lie in this process.
    pub fn new(completion: &Completion, address: impl Fn(Span) -> Option<*const c_void>) -> Self {
        let answer = match completion.answer() {
            Ok(answer) => answer,
            Err(Error::Failed { message, .. }) => {
                return Self { message: c_string(&message), has_answer: true, ..Self::default() };
            }
            Err(error) => {
                let message = c_string(&error.to_string());
                return Self { message, has_answer: true, ..Self::default() };
            }
        };
        let names: Vec<CString> =
            answer.outputs.iter().map(|output| c_string(output.name)).collect();
        let dims: Vec<Vec<i64>> =
            answer.outputs.iter().map(|output| output.dims.to_vec()).collect();
        let tensors =
            answer.outputs.iter().zip(&names).zip(&dims).map(|((output, name), dims)| CTensor {
                name: name.as_ptr(),
                datatype: output.datatype as u32,
                rank: u32::try_from(dims.len()).unwrap_or(u32::MAX),
                dims: dims.as_ptr(),
                data: address(output.data).unwrap_or(ptr::null()),
                bytes: usize::try_from(output.data.length).unwrap_or(usize::MAX),
            });
        Self {
            message: CString::default(),
            model: c_string(answer.model),
            id: c_string(answer.id),
            version: answer.version,
            has_answer: !answer.model.is_empty(),
            outputs: tensors.collect(),
            _names: names,
            _dims: dims,
        }
    }

    /// The completion as the caller reads it, as long as this is held where it is.
    pub fn told(&self, completion: &Completion) -> CCompletion {
        CCompletion {
            token: completion.token,
            status: completion.status as u32,
            is_final: completion.is_final.into(),
            message: self.message.as_ptr(),
            model: self.model.as_ptr(),
            version: self.version,
            id: self.id.as_ptr(),
            outputs: self.outputs.as_ptr(),
            output_count: self.outputs.len(),
            has_answer: self.has_answer.into(),
        }
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}
