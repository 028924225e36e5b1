//! The native half of a Python model's process, the module `nereid_stub.native`: what runs for each request.
//!
//! Built with Python's limited API, so one library serves every CPython from 3.9 on. `python/embedded` builds it
//! and has it carried inside the server.

use pyo3::pymodule;

/// The Python module.
#[pymodule]
mod native {
    use pyo3::{
        Bound, PyResult,
        types::{PyModule, PyModuleMethods as _},
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
