//! Detects whether a variable was set in a context, without looking at the variables.
//!
//! A context holds its variables as one immutable map, and every change gives it another map. CPython
//! has no function that returns the map, but the garbage collector can visit all references of an
//! object.

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::turn;

/// The identity of a context's variables at one moment. Equal identities mean equal variables, as long
/// as both contexts live; `None` if this interpreter has no identity to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variables(*mut ffi::PyObject);

// SAFETY: a pointer that is only compared with.
unsafe impl Send for Variables {}
// SAFETY: as above.
unsafe impl Sync for Variables {}

/// The variables of a context that is not entered, or is the current one.
#[inline]
pub fn variables(py: Python<'_>, context: &Py<PyAny>) -> Option<Variables> {
    if !tells(py) {
        return None;
    }
    Some(last_reference(context))
}

/// The last object that a context refers to. The first is the context that was current before it, the
/// last its variables.
#[inline]
fn last_reference(context: &Py<PyAny>) -> Variables {
    let mut last: *mut ffi::PyObject = ptr::null_mut();
    // SAFETY: a context is a garbage-collected object, whose traverse function visits what it refers to
    // and runs no Python code.
    unsafe {
        let kind = ffi::Py_TYPE(context.as_ptr());
        if let Some(traverse) = (*kind).tp_traverse {
            traverse(context.as_ptr(), note, (&raw mut last).cast::<c_void>());
        }
    }
    Variables(last)
}

extern "C" fn note(object: *mut ffi::PyObject, place: *mut c_void) -> c_int {
    // SAFETY: `last_reference` passes a valid place for one pointer.
    unsafe { *place.cast::<*mut ffi::PyObject>() = object };
    0
}

/// Probes this interpreter once: a copy of a context has the same variables, and a context in which a
/// variable was set has others, entered or not.
fn tells(py: Python<'_>) -> bool {
    static TELLS: PyOnceLock<bool> = PyOnceLock::new();
    *TELLS.get_or_init(py, || probe(py).unwrap_or(false))
}

fn probe(py: Python<'_>) -> PyResult<bool> {
    let base = turn::copy_context(py)?;
    let copy = turn::copy_of(base.bind(py))?;
    let variable = py
        .import("contextvars")?
        .getattr("ContextVar")?
        .call1(("velo_probe",))?;
    let before = last_reference(&base);
    if before.0.is_null() || before != last_reference(&copy) {
        return Ok(false);
    }
    let entered = turn::entered(copy.bind(py), || last_reference(&copy))?;
    copy.call_method1(py, "run", (variable.getattr("set")?, 1))?;
    let after = last_reference(&copy);
    let inside = turn::entered(copy.bind(py), || last_reference(&copy))?;
    Ok(before == entered && before != after && after == inside && before == last_reference(&base))
}
