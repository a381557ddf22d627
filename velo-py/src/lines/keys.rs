//! The keys of the events of a run: found already for lines, else asked of Python.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pyo3::prelude::*;

use super::Line;

/// A function that gives the key of an event.
#[pyclass(frozen, module = "velo._core")]
pub struct LineKeys {
    /// Gives the key of an event that is no `Line`.
    other: Py<PyAny>,
    asked: AtomicU64,
}

#[pymethods]
impl LineKeys {
    #[new]
    fn new(other: Py<PyAny>) -> Self {
        LineKeys {
            other,
            asked: AtomicU64::new(0),
        }
    }

    /// The key of the next event.
    fn __call__<'py>(&self, event: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = event.py();
        let key = match event.cast_exact::<Line>() {
            Ok(line) => line.get().key.bind(py).clone(),
            Err(_) => self.other.bind(py).call1((event,))?,
        };
        self.asked.fetch_add(1, Relaxed);
        Ok(key)
    }

    /// The number of events whose key was asked for.
    #[getter]
    fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}
