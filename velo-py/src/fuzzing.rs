//! Ways in for the fuzz targets (`fuzz/`), to what reads the other side's bytes. Not part of a
//! build that anyone uses.

use pyo3::prelude::*;

pub use crate::codec::{Codec, CopyMemory, Memory, VecOut, codec};

/// The module itself, for a process that is no Python to begin with.
pub fn module(py: Python<'_>) -> Py<PyModule> {
    pyo3::wrap_pymodule!(crate::core)(py)
}

/// `value` as bytes.
pub fn encode(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let py = value.py();
    let mut out = VecOut::default();
    codec(py)?.encode(py, value, &mut out)?;
    Ok(out.into_vec())
}
