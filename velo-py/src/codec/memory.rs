//! The memory of large buffers in a payload: views or copies.

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// Decides how large buffers are decoded: as copies, or as read-only views of the payload's memory.
pub trait Memory {
    /// An object that exports `bytes`, a part of the payload, as a read-only buffer and keeps the
    /// memory in place as long as it lives; `None` to have the bytes copied. It is asked for every
    /// array and every out-of-band buffer that is not empty, however small.
    fn view<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>>;

    /// The memory that the writer has [lent](super::out::Out::lend) under this number: an object that
    /// exports it, as `view` would, and its length.
    fn lent<'py>(
        &mut self,
        _py: Python<'py>,
        _number: u32,
    ) -> PyResult<Option<(Bound<'py, PyAny>, usize)>> {
        Ok(None)
    }

    /// Whether the receiver may write to decoded buffers. Then `view` gives objects that export
    /// writable buffers.
    fn is_private(&self) -> bool {
        false
    }
}

/// Memory that does not outlive the call: every buffer is copied.
pub struct CopyMemory;

impl Memory for CopyMemory {
    fn view<'py>(
        &mut self,
        _py: Python<'py>,
        _bytes: &[u8],
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(None)
    }
}

/// Everything is copied, to be written to.
pub struct OwnMemory;

impl Memory for OwnMemory {
    fn view<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(Some(PyByteArray::new(py, bytes).into_any()))
    }

    fn is_private(&self) -> bool {
        true
    }
}
