//! Ring memory as a read-only Python buffer.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Weak};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::ffi::destroy::destroy;
use crate::process::ring_pair::{Hold, Sweep};

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

/// Answers a request for the buffer of `owner`: `len` bytes from `start`.
///
/// # Safety
///
/// `view` is one that CPython passed, and the bytes stay there as long as `owner`.
pub unsafe fn fill_buffer<T>(
    owner: &Bound<'_, T>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    start: *mut u8,
    len: usize,
    read_only: bool,
) -> PyResult<()> {
    let len = len as ffi::Py_ssize_t;
    let read_only = c_int::from(read_only);
    let start = start.cast::<c_void>();
    // SAFETY: the caller's promise; PyBuffer_FillInfo takes a reference to the owner.
    let filled =
        unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start, len, read_only, flags) };
    if filled != 0 {
        return Err(PyErr::fetch(owner.py()));
    }
    // SAFETY: as above.
    unsafe { (*view).internal = ptr::null_mut() };
    Ok(())
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
