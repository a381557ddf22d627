//! The shape and dtype of an array to come, checked.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::Codec;
use super::dtype::Known;

/// An array to come.
pub struct ArraySpec {
    shape: Py<PyTuple>,
    dtype: Py<PyAny>,
    ndarray: Py<PyAny>,
    len: usize,
}

impl ArraySpec {
    /// Takes the arguments of `numpy.empty`, and refuses a dtype whose items are not plain bytes.
    pub fn new(
        codec: &Codec,
        shape: &Bound<'_, PyAny>,
        dtype: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = shape.py();
        let numpy = codec.lookups().numpy.import(py)?;
        let dtype = numpy.dtype(dtype)?;
        let form = numpy.form(&codec.lookups().pickle, &dtype)?;
        if matches!(form.known, Known::No) {
            return Err(PyTypeError::new_err(format!(
                "cannot lend an array of dtype `{}`: its items are not plain bytes; send such an \
                 array as it is",
                dtype.str()?
            )));
        }
        let lengths = match shape.extract::<isize>() {
            Ok(len) => vec![len],
            Err(_) => shape.extract::<Vec<isize>>()?,
        };
        if lengths.iter().any(|&len| len < 0) {
            return Err(PyValueError::new_err("an array has no negative dimensions"));
        }
        let len = lengths
            .iter()
            .try_fold(form.item, |len, &n| len.checked_mul(n as usize))
            .filter(|&len| isize::try_from(len).is_ok())
            .ok_or_else(|| PyValueError::new_err("an array of this shape fits no memory"))?;
        Ok(ArraySpec {
            shape: PyTuple::new(py, lengths)?.unbind(),
            dtype: dtype.unbind(),
            ndarray: numpy.ndarray.clone_ref(py),
            len,
        })
    }

    /// The size of its items, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// An array in memory of its own.
    pub fn alone(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.ndarray.call1(py, (&self.shape, &self.dtype))
    }

    /// An array in the memory that `buffer` exports.
    pub fn over(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.ndarray.call1(py, (&self.shape, &self.dtype, buffer))
    }
}
