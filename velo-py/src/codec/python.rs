//! The one codec of the process, and the functions that offer it to Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use super::{
    Codec, CopyMemory, DecodeError, EncodeError, SliceOut, VecOut, fingerprint, pickle_in,
};
use crate::errors::{self, Thrown};

/// The codec of this process.
#[inline]
pub fn codec(py: Python<'_>) -> PyResult<&'static Codec> {
    static CODEC: PyOnceLock<Codec> = PyOnceLock::new();
    CODEC.get_or_try_init(py, || Codec::new(py))
}

impl From<EncodeError> for PyErr {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Python(error) => error,
            full @ EncodeError::Overflow { .. } => errors::too_large(full.to_string()),
        }
    }
}

impl From<DecodeError> for PyErr {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Python(error) => error,
            bad @ DecodeError::Malformed { .. } => errors::corrupted(bad.to_string()),
        }
    }
}

impl From<DecodeError> for Thrown {
    #[cold]
    fn from(error: DecodeError) -> Self {
        PyErr::from(error).into()
    }
}

/// Encodes `obj` into at most `limit` bytes.
#[pyfunction]
#[pyo3(signature = (obj, limit=None))]
pub fn dumps<'py>(
    py: Python<'py>,
    obj: &Bound<'py, PyAny>,
    limit: Option<usize>,
) -> PyResult<Bound<'py, PyBytes>> {
    let codec = codec(py)?;
    let Some(limit) = limit else {
        let mut out = VecOut::with_capacity(codec.size_hint(obj));
        codec.encode(py, obj, &mut out)?;
        return Ok(PyBytes::new(py, out.as_slice()));
    };
    let mut room = vec![0; limit];
    let mut out = SliceOut::new(&mut room);
    codec.encode(py, obj, &mut out)?;
    let len = out.len();
    Ok(PyBytes::new(py, &room[..len]))
}

/// Decodes the object in `payload`, with copies of its buffers. Unless its writer is `trusted`, a pickle
/// in it is an error.
#[pyfunction]
#[pyo3(signature = (payload, trusted=true))]
pub fn loads<'py>(
    py: Python<'py>,
    payload: &Bound<'py, PyBytes>,
    trusted: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let codec = codec(py)?;
    let payload = payload.as_bytes();
    Ok(if trusted {
        codec.decode(py, payload, &mut CopyMemory)?
    } else {
        codec.decode_untrusted(py, payload)?
    })
}

/// A hash that tells encoded values apart; None if equal values may have different bytes.
#[pyfunction]
#[pyo3(name = "fingerprint")]
pub fn fingerprint_of(payload: &Bound<'_, PyBytes>) -> Option<u64> {
    fingerprint(payload.as_bytes())
}

/// The first pickle in an encoded value, which `loads` would run; None if the value holds none.
#[pyfunction]
#[pyo3(name = "pickle_in")]
pub fn pickle_in_payload<'py>(
    py: Python<'py>,
    payload: &Bound<'py, PyBytes>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    match pickle_in(payload.as_bytes()) {
        Ok(found) => Ok(found.map(|pickle| PyBytes::new(py, &pickle))),
        Err(_) => Err(PyValueError::new_err("not an encoded value")),
    }
}
