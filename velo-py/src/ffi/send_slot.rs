//! Awaitables that complete without raising `StopIteration`.
//!
//! CPython resumes whatever a coroutine awaits through the `am_send` slot of its type, and takes the
//! result as a return value; without that slot it calls `__next__` and has to catch a
//! `StopIteration`, which costs more than the rest of the step. PyO3 has no syntax for the slot, so
//! [`install`] puts it into a finished class. Classes keep `__next__`, `send`, `throw` and `close`
//! beside it for tracers and for callers that step them by hand.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::PyClass;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::Thrown;

/// The outcome of one step of an awaitable.
pub enum Step {
    /// It has its result.
    Return(Py<PyAny>),
    /// It waits: the value goes up to the task that runs it.
    Yield(Py<PyAny>),
}

/// A class whose instances can be awaited, stepped by [`Awaitable::step`].
pub trait Awaitable: PyClass + Sync {
    /// Runs until there is a result or a future to wait for. The task sent `value`.
    fn step(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> Result<Step, Thrown>;

    /// The task was cancelled, or another exception was thrown in, during the wait. Gives up the wait
    /// and returns the exception to raise, or goes on.
    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step>;
}

/// Gives the class `T` its `am_send` slot. Called once, before the first instance exists.
pub fn install<T: Awaitable>(py: Python<'_>) -> PyResult<()> {
    let class: Bound<'_, PyType> = T::type_object(py);
    let class = class.as_type_ptr();
    // SAFETY: `class` is a live heap type made by PyO3; the slots of heap types are part of their
    // own allocation, nobody else runs with the GIL held here, and no instance exists yet.
    unsafe {
        let slots = (*class).tp_as_async;
        if slots.is_null() {
            return Err(PyRuntimeError::new_err(
                "awaitable class without async slots",
            ));
        }
        (*slots).am_send = Some(send::<T>);
        (*slots).am_await = Some(itself);
        ffi::PyType_Modified(class);
    }
    Ok(())
}

/// The methods beside the slot, for a class that implements [`Awaitable`] and defines `close`.
macro_rules! coroutine_methods {
    ($class:ident) => {
        #[pyo3::pymethods]
        impl $class {
            fn __iter__(slf: pyo3::Bound<'_, Self>) -> pyo3::Bound<'_, Self> {
                slf
            }
        }
        $crate::ffi::send_slot::stepping_methods!($class);
    };
}
pub(crate) use coroutine_methods;

/// [`coroutine_methods`] without `__iter__`.
macro_rules! stepping_methods {
    ($class:ident) => {
        #[pyo3::pymethods]
        impl $class {
            fn __await__(slf: pyo3::Bound<'_, Self>) -> pyo3::Bound<'_, Self> {
                slf
            }

            fn __next__(slf: pyo3::Bound<'_, Self>) -> pyo3::PyResult<pyo3::Py<pyo3::PyAny>> {
                let none = slf.py().None();
                $crate::ffi::send_slot::step_by_iteration(&slf, none.bind(slf.py()))
            }

            fn send(
                slf: pyo3::Bound<'_, Self>,
                value: pyo3::Bound<'_, pyo3::PyAny>,
            ) -> pyo3::PyResult<pyo3::Py<pyo3::PyAny>> {
                $crate::ffi::send_slot::step_by_iteration(&slf, &value)
            }

            #[pyo3(signature = (kind, value=None, _traceback=None))]
            fn throw(
                slf: pyo3::Bound<'_, Self>,
                kind: pyo3::Bound<'_, pyo3::PyAny>,
                value: Option<pyo3::Bound<'_, pyo3::PyAny>>,
                _traceback: Option<pyo3::Bound<'_, pyo3::PyAny>>,
            ) -> pyo3::PyResult<pyo3::Py<pyo3::PyAny>> {
                $crate::ffi::send_slot::throw_by_iteration(&slf, kind, value)
            }
        }
    };
}
pub(crate) use stepping_methods;

/// `__next__` and `send` in terms of [`Awaitable::step`].
pub fn step_by_iteration<T: Awaitable>(
    slf: &Bound<'_, T>,
    value: &Bound<'_, PyAny>,
) -> PyResult<Py<PyAny>> {
    as_iteration(T::step(slf, value)?)
}

/// `throw` in terms of [`Awaitable::throw`].
pub fn throw_by_iteration<T: Awaitable>(
    slf: &Bound<'_, T>,
    kind: Bound<'_, PyAny>,
    value: Option<Bound<'_, PyAny>>,
) -> PyResult<Py<PyAny>> {
    let error = match value {
        Some(value) if !value.is_none() => PyErr::from_value(value),
        _ if kind.is_instance_of::<PyType>() => PyErr::from_value(kind.call0()?),
        _ => PyErr::from_value(kind),
    };
    as_iteration(T::throw(slf, error)?)
}

fn as_iteration(step: Step) -> PyResult<Py<PyAny>> {
    match step {
        Step::Yield(value) => Ok(value),
        Step::Return(value) => Err(PyStopIteration::new_err((value,))),
    }
}

/// `__await__` and `__aiter__` of an object that is its own iterator, without a method call.
///
/// # Safety
///
/// For CPython, in the slots of a type.
pub unsafe extern "C" fn itself(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: CPython calls the slot with the GIL held and a live object.
    unsafe { ffi::Py_NewRef(slf) }
}

unsafe extern "C" fn send<T: Awaitable>(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: CPython calls the slot with the GIL held.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: both are borrowed references that outlive the call, and the slot was installed only
    // into the type of `T`, so `slf` is an instance of it. A NULL value means None.
    let (slf, value) = unsafe {
        let slf = Borrowed::from_ptr(py, slf);
        let value = if value.is_null() {
            ffi::Py_None()
        } else {
            value
        };
        (slf, Borrowed::from_ptr(py, value))
    };
    // SAFETY: as above, `slf` is an instance of `T`.
    let slf = unsafe { slf.cast_unchecked::<T>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| T::step(&slf, &value)));
    let (object, status) = match outcome {
        Ok(Ok(Step::Return(object))) => (object.into_ptr(), ffi::PySendResult::PYGEN_RETURN),
        Ok(Ok(Step::Yield(object))) => (object.into_ptr(), ffi::PySendResult::PYGEN_NEXT),
        Ok(Err(error)) => {
            PyErr::from(error).restore(py);
            (ptr::null_mut(), ffi::PySendResult::PYGEN_ERROR)
        }
        Err(_) => {
            PyRuntimeError::new_err("internal error in velo: a step panicked; please report it")
                .restore(py);
            (ptr::null_mut(), ffi::PySendResult::PYGEN_ERROR)
        }
    };
    // SAFETY: CPython passes a valid place for the result.
    unsafe { *result = object };
    status
}
