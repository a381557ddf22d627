//! Python calls of destructors.

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

/// Runs the Python calls of a destructor, unless the interpreter is at its end.
///
/// An exception that unwinds the stack may destroy an object. Python code that ran then would take that
/// exception for its own, or lose it, and the interpreter would continue without it. So the exception is
/// put aside.
pub fn destroy(f: impl FnOnce(Python<'_>)) {
    Python::try_attach(|py| {
        let _aside = Aside::put(py);
        f(py);
    });
}

/// The exception on its way, if there is one. It goes on when this is dropped.
struct Aside<'py> {
    _py: Python<'py>,
    kind: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    traceback: *mut ffi::PyObject,
}

// `PyErr_Fetch` is deprecated from Python 3.12 on; its replacement is missing in 3.11.
#[allow(deprecated)]
impl<'py> Aside<'py> {
    fn put(py: Python<'py>) -> Self {
        let mut aside = Aside {
            _py: py,
            kind: ptr::null_mut(),
            value: ptr::null_mut(),
            traceback: ptr::null_mut(),
        };
        // SAFETY: the interpreter is attached, and three places are there for three references.
        unsafe { ffi::PyErr_Fetch(&mut aside.kind, &mut aside.value, &mut aside.traceback) };
        aside
    }
}

#[allow(deprecated)]
impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // SAFETY: the interpreter is attached, as the token says, and the references, which may be
        // null, are those that `put` was given; they are given back once.
        unsafe { ffi::PyErr_Restore(self.kind, self.value, self.traceback) };
    }
}
