//! `async for key, result in keys`, where events come from tasks.

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;

use super::keyed::Keys;
use crate::errors::Thrown;
use crate::ffi::async_iterator::{self, AsyncIterate, Lending};
use crate::ffi::send_slot::{Step, stepping_methods};

/// An async iterator over the results that are no answers, with their keys.
#[pyclass(frozen, module = "velo._core")]
pub struct LiveResults {
    keys: Py<Keys>,
    lending: Lending,
}

impl LiveResults {
    /// The results of `keys`.
    pub fn new(keys: Py<Keys>) -> Self {
        LiveResults {
            keys,
            lending: Lending::default(),
        }
    }
}

#[pymethods]
impl Keys {
    /// The results that are no answers.
    fn results(slf: Py<Self>) -> LiveResults {
        LiveResults::new(slf)
    }
}

#[pymethods]
impl LiveResults {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        async_iterator::lend(slf)
    }

    fn __iter__(&self) -> PyResult<Py<PyAny>> {
        Err(async_iterator::refuse_plain_for("the results of keys"))
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        async_iterator::close(slf)
    }
}

impl AsyncIterate for LiveResults {
    const ITEM: &'static str = "result";

    fn lending(&self) -> &Lending {
        &self.lending
    }

    #[inline]
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown> {
        let keys = self.keys.get();
        keys.check_owner(py)?;
        if keys.stint.is_over() {
            return Ok(Step::Yield(py.None()));
        }
        // Who calls a slot is not known to be attached: what is dropped on the way would be kept for
        // later.
        Python::attach(|py| {
            if let Some(item) = keys.take_result(py)? {
                return Ok(Step::Return(item));
            }
            keys.see_to(py, true)?;
            if let Some(item) = keys.take_result(py)? {
                return Ok(Step::Return(item));
            }
            if let Some(future) = keys.wait_for_result(py)? {
                keys.stint.ended();
                return Ok(Step::Yield(future));
            }
            match keys.untold_error(py)? {
                Some(error) => Err(error.into()),
                None => Err(PyStopAsyncIteration::new_err(()).into()),
            }
        })
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        self.keys.get().stop_reading(py)
    }
}

stepping_methods!(LiveResults);
