//! The native half of a process that runs a Python model: the module `nereid_stub.native`.
//!
//! The way of each request goes through here: frames of the server become requests with their tensors
//! (`request.rs`, `tensor.rs`), the model runs on them (`turns.rs`), what it answers becomes frames
//! (`response.rs`), and what nothing
//! refers to any more is noted (`memory.rs`). Arrays are made by NumPy's own functions (`numpy.rs`). What is
//! done now and then, such as a model's start, its calls of others and its log, is in the Python half, the
//! package `python/nereid_stub`, which this is a part of.
//!
//! It is built for the stable interface of CPython 3.9 and later, carried along by the server, and loaded
//! out of a file without a name.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

mod datatype;
mod frame;
mod inbox;
mod memory;
mod numpy;
mod python;
mod request;
mod response;
mod room;
mod tensor;
mod turns;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose holders leave nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `nereid_stub.native`
#[pyo3::pymodule]
mod native {
    #[pymodule_export]
    use crate::{
        frame::{Frame, Malformed},
        inbox::Inbox,
        memory::{Gone, Memory},
        request::{
            InferenceRequest, get_input_tensor_by_name, get_output_tensor_by_name, responses_frame,
        },
        response::{InferenceResponse, read_response, response_bytes},
        tensor::Tensor,
        turns::Turns,
    };
}
