//! `async for key, result in fn.keyed(...)`.

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::keyed::Keys;
use crate::errors::Thrown;
use crate::ffi::async_iterator::{self, AsyncIterate, Lending};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::{Step, stepping_methods};

/// An async iterator over results with their keys.
#[pyclass(frozen, subclass, module = "velo._core")]
pub struct KeyedResults {
    keys: Py<Keys>,
    /// Closes everything when it is closed itself, or dropped: an async generator, of which the event
    /// loop takes care.
    guard: Py<PyAny>,
    lending: Lending,
}

impl Drop for KeyedResults {
    /// Closes keys whose iteration never began: the event loop does not know their guard.
    fn drop(&mut self) {
        destroy(|py| {
            if let Err(error) = self.keys.get().clear_unused(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}

#[pymethods]
impl KeyedResults {
    #[new]
    fn new(keys: Py<Keys>, guard: Py<PyAny>) -> Self {
        KeyedResults {
            keys,
            guard,
            lending: Lending::default(),
        }
    }

    /// `KeyedResults[T]`, for type checkers.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        _type: &Bound<'py, PyAny>,
    ) -> Bound<'py, PyType> {
        class.clone()
    }

    /// Close it: the functions of all keys are cancelled, their `finally` blocks run.
    fn aclose(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.guard.call_method0(py, "aclose")
    }

    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        async_iterator::lend(slf)
    }

    fn __iter__(&self) -> PyResult<Py<PyAny>> {
        Err(async_iterator::refuse_plain_for("the results of `keyed`"))
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        async_iterator::close(slf)
    }
}

impl AsyncIterate for KeyedResults {
    const ITEM: &'static str = "result";

    fn lending(&self) -> &Lending {
        &self.lending
    }

    #[inline]
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown> {
        let keys = self.keys.get();
        if let Some(item) = keys.taken(py)? {
            return Ok(Step::Return(item));
        }
        // Who calls a slot is not known to be attached: what is dropped on the way would be kept for
        // later.
        Python::attach(|py| match keys.next(py)? {
            Some(step) => Ok(step),
            None => match keys.take_error(py)? {
                Some(error) => Err(error.into()),
                None => Err(PyStopAsyncIteration::new_err(()).into()),
            },
        })
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        self.keys.get().stop(py);
        Ok(())
    }
}

stepping_methods!(KeyedResults);
