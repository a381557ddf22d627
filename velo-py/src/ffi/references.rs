//! Who refers to an object.

use pyo3::ffi;
use pyo3::prelude::*;

/// How many references an object has.
#[inline]
pub fn count(object: &Py<PyAny>) -> isize {
    // SAFETY: a live object.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) as isize }
}

/// Where the first weak reference to an object lies; 0: there is none. A new one with a callback, such as
/// those of `weakref.WeakKeyDictionary`, is the first, and so is the only one without.
#[inline]
pub fn first_weak(object: &Py<PyAny>) -> usize {
    // SAFETY: a live object, whose type says where the list of its weak references begins: as CPython's
    // macro `PyObject_GET_WEAKREFS_LISTPTR` finds it, also where the offset is negative.
    unsafe {
        let offset = (*ffi::Py_TYPE(object.as_ptr())).tp_weaklistoffset;
        match offset {
            0 => 0,
            offset => *object.as_ptr().byte_offset(offset).cast::<usize>(),
        }
    }
}
