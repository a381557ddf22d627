//! Answering requests for a buffer: memory that Python code reads or writes in place.

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

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
