//! Ring memory as a read-only Python buffer.

use std::ffi::c_int;
use std::sync::{Arc, Weak};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::ffi::buffer::fill_buffer;
use crate::ffi::destroy::destroy;
use crate::process::hold::{Hold, Sweep};

/// A part of a received frame. Its space in the ring stays taken until the last reference to this
/// object is gone.
#[pyclass(frozen, module = "velo._core")]
pub struct View {
    start: *const u8,
    len: usize,
    hold: Option<Arc<Hold>>,
    sweep: Weak<dyn Sweep>,
}

// SAFETY: the memory behind `start` is shared memory that `hold` keeps mapped and unchanged by
// well-behaved peers, whichever thread reads it.
unsafe impl Send for View {}
// SAFETY: as above; the view is only read.
unsafe impl Sync for View {}

impl View {
    /// A view of `bytes`, which lie in the frame that `hold` stands for.
    pub fn new(bytes: &[u8], hold: Arc<Hold>, sweep: Weak<dyn Sweep>) -> Self {
        View {
            start: bytes.as_ptr(),
            len: bytes.len(),
            hold: Some(hold),
            sweep,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let last = Arc::strong_count(&hold) == 1;
        drop(hold);
        if let Some(end) = self.sweep.upgrade().filter(|_| last) {
            destroy(|py| end.sweep(py));
        }
    }
}

#[pymethods]
impl View {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err(
                "this value is a read-only view of shared memory; copy it to change it",
            ));
        }
        let this = slf.get();
        // SAFETY: CPython passes a valid `view`; the memory stays as long as `slf`.
        unsafe { fill_buffer(&slf, view, flags, this.start.cast_mut(), this.len, true) }
    }

    fn __len__(&self) -> usize {
        self.len
    }
}
