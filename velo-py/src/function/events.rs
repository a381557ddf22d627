//! `events`: what a stream function iterates over.

use std::sync::Arc;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::Thrown;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::function::source::{Poll, Source};
use crate::function::ticks::Ticks;
use crate::keys::frames::Name;
use crate::keys::table::KeyTable;

/// The events of one stream, in order: `async for event in events`.
///
/// It is its own `__anext__` awaitable, so that a step allocates nothing but the event. Waiting is
/// safe to cancel: no event is lost, the next `anext(events)` gets it.
#[pyclass(frozen, module = "velo._core")]
pub struct Events(From);

/// Whose events they are.
enum From {
    /// A stream's.
    Stream(Source),
    /// A key's, of which there are many: no more is kept for each than it takes to find it.
    Key(Arc<KeyTable>, Name),
}

impl Events {
    /// The events that come from `source`.
    pub fn new(source: Source) -> Self {
        Events(From::Stream(source))
    }

    /// The events of a key.
    pub fn of_key(table: Arc<KeyTable>, name: Name) -> Self {
        Events(From::Key(table, name))
    }
}

#[pymethods]
impl Events {
    /// The events, and a `velo.events.TICK` whenever `seconds` pass without one.
    fn ticks(&self, seconds: f64) -> PyResult<Ticks> {
        let source = match &self.0 {
            From::Stream(source) => source.clone(),
            From::Key(table, name) => Source::of_key(table.clone(), *name),
        };
        Ticks::new(source, seconds)
    }

    /// `Events[In]`, for type checkers.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        _type: &Bound<'py, PyAny>,
    ) -> Bound<'py, PyType> {
        class.clone()
    }

    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn close(&self, py: Python<'_>) {
        match &self.0 {
            From::Stream(source) => source.port.stop_waiting(py),
            From::Key(table, name) => table.stop_waiting(py, *name),
        }
    }
}

impl Awaitable for Events {
    const ITERATES: bool = true;

    #[inline]
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let py = slf.py();
        let source = match &slf.get().0 {
            From::Stream(source) => source,
            From::Key(table, name) => return table.step_events(py, *name),
        };
        loop {
            match source.poll(py)? {
                Poll::Event(event) => return Ok(Step::Return(event)),
                Poll::Ended => return Err(PyStopAsyncIteration::new_err(()).into()),
                Poll::Turn => return Ok(Step::Yield(py.None())),
                Poll::Empty => {
                    if let Some(future) = source.wait(py)? {
                        return Ok(Step::Yield(future));
                    }
                }
            }
        }
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().close(slf.py());
        Err(error)
    }
}

coroutine_methods!(Events);
