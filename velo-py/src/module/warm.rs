//! What a process does once, done before workers are forked from it.

use pyo3::prelude::*;

use crate::codec::codec;
use crate::ffi;

/// Does what the first stream of a worker would wait for otherwise: workers that are forked later
/// have it done.
#[pyfunction]
pub fn warm_up(py: Python<'_>) -> PyResult<()> {
    codec(py)?;
    ffi::asyncgen::warm_up(py);
    ffi::turn::warm_up(py)
}
