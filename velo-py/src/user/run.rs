//! `fn.run(...)` of a plain iterable: the whole life of a stream in one awaitable.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::cell::GilCell;
use crate::errors::Thrown;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::user::operation::{Operation, What};
use crate::user::results::Results;
use crate::user::state::StreamCore;

/// Sends the events of a source, ends the input, and returns all results as a list.
#[pyclass(frozen, module = "velo._core")]
pub struct Run {
    core: Arc<StreamCore>,
    results: Py<PyList>,
    stage: GilCell<Stage>,
}

enum Stage {
    Feed(Results),
    End(Operation),
    Drain(Results),
}

impl Run {
    /// Feeds the stream from `source`, an iterator.
    pub fn new(core: Arc<StreamCore>, source: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Run {
            stage: GilCell::new(Stage::Feed(Results::feed(core.clone(), source)?)),
            results: PyList::empty(source.py()).unbind(),
            core,
        })
    }

    fn advance(&self, py: Python<'_>, stage: &mut Stage) -> PyResult<Step> {
        loop {
            match stage {
                Stage::Feed(results) => {
                    if let Some(waiting) = self.collect(py, results)? {
                        return Ok(waiting);
                    }
                    let why = "the input was ended by `run()`".to_owned();
                    *stage = Stage::End(Operation::new(self.core.clone(), What::End(why)));
                }
                Stage::End(end) => match end.next(py)? {
                    Step::Yield(future) => return Ok(Step::Yield(future)),
                    Step::Return(_) => *stage = Stage::Drain(Results::drain(self.core.clone())),
                },
                Stage::Drain(results) => {
                    return match self.collect(py, results)? {
                        Some(waiting) => Ok(waiting),
                        None => Ok(Step::Return(self.results.clone_ref(py).into_any())),
                    };
                }
            }
        }
    }

    /// Takes results up to the end, or to a wait.
    fn collect(&self, py: Python<'_>, results: &Results) -> PyResult<Option<Step>> {
        let list = self.results.bind(py);
        loop {
            match results.next(py)? {
                Some(Step::Return(result)) => list.append(result)?,
                other => return Ok(other),
            }
        }
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.stage.with(py, |stage| match stage {
            Stage::Feed(results) | Stage::Drain(results) => results.stop(py),
            Stage::End(end) => end.stop(py),
        })?
    }
}

impl Awaitable for Run {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let (this, py) = (slf.get(), slf.py());
        Ok(this.stage.with(py, |stage| this.advance(py, stage))??)
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().stop(slf.py())?;
        Err(error)
    }
}

#[pymethods]
impl Run {
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stop(py)
    }
}

coroutine_methods!(Run);
