//! How large buffers come out of a payload.

use pyo3::prelude::*;

/// How large buffers come out of a payload: copied, or as a read-only view of the memory they lie
/// in.
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

    /// Whether what comes out is its receiver's alone, to be written to. `view` gives objects that
    /// export writable buffers then.
    fn is_private(&self) -> bool {
        false
    }
}

/// Memory that is about to go: everything is copied.
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
