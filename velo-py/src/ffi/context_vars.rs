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
use pyo3::types::PyList;

use super::turn;

/// The variables of a context at one moment. They are kept, so that no other variables can come to lie at
/// their address.
pub struct Variables(Py<PyAny>);

impl Variables {
    /// The variables of a context that is not entered, or is the current one; `None` if this interpreter does
    /// not tell them apart.
    pub fn of(py: Python<'_>, context: &Py<PyAny>) -> Option<Self> {
        if !tells(py) {
            return None;
        }
        // SAFETY: null or an object that the context holds, which no other code can change meanwhile.
        let kept = unsafe { Bound::from_borrowed_ptr_or_opt(py, last_reference(context)) };
        kept.map(|kept| Variables(kept.unbind()))
    }

    /// Whether a context has had the same variables since: none was set.
    #[inline]
    pub fn are_those_of(&self, context: &Py<PyAny>) -> bool {
        self.0.as_ptr() == last_reference(context)
    }
}

/// Whether the same variables have the same values in both contexts. Values that are equal are not the
/// same: two lists may be equal until one of them is changed.
pub fn are_same(context: &Bound<'_, PyAny>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
    if context.len()? != other.len()? {
        return Ok(false);
    }
    let missing = PyList::empty(context.py());
    for item in context.call_method0("items")?.try_iter()? {
        let (variable, value) = item?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        if !other.call_method1("get", (variable, &missing))?.is(&value) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The last object that a context refers to. The first is the context that was current before it, the
/// last its variables.
#[inline]
fn last_reference(context: &Py<PyAny>) -> *mut ffi::PyObject {
    let mut last: *mut ffi::PyObject = ptr::null_mut();
    // SAFETY: a context is a garbage-collected object, whose traverse function visits what it refers to
    // and runs no Python code.
    unsafe {
        let kind = ffi::Py_TYPE(context.as_ptr());
        if let Some(traverse) = (*kind).tp_traverse {
            traverse(context.as_ptr(), note, (&raw mut last).cast::<c_void>());
        }
    }
    last
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
    if before.is_null() || before != last_reference(&copy) {
        return Ok(false);
    }
    let entered = turn::entered(copy.bind(py), || last_reference(&copy))?;
    copy.call_method1(py, "run", (variable.getattr("set")?, 1))?;
    let after = last_reference(&copy);
    let inside = turn::entered(copy.bind(py), || last_reference(&copy))?;
    Ok(before == entered && before != after && after == inside && before == last_reference(&base))
}
