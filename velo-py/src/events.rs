//! `events`: what a stream function iterates over.

use std::sync::Arc;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;

use crate::errors;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::pace::Pace;
use crate::port::{Next, Port};

/// The events of one stream, in order: `async for event in events`.
///
/// It is its own `__anext__` awaitable, so that a step allocates nothing but the event. Waiting is
/// safe to cancel: no event is lost, the next `anext(events)` gets it.
#[pyclass(frozen, module = "velo._core")]
pub struct Events {
    port: Port,
    pace: Arc<Pace>,
}

impl Events {
    /// The events that come in at `port`.
    pub fn new(port: Port, pace: Arc<Pace>) -> Self {
        Events { port, pace }
    }
}

#[pymethods]
impl Events {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn close(&self, py: Python<'_>) {
        self.port.stop_waiting(py);
    }
}

impl Awaitable for Events {
    const ITERATES: bool = true;

    #[inline]
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Step> {
        let (this, py) = (slf.get(), slf.py());
        if this.pace.turn_is_over() {
            this.port.flush(py);
            return Ok(Step::Yield(py.None()));
        }
        loop {
            match this.port.next_event(py)? {
                Next::Event(event) => {
                    if this.pace.flush_is_due() {
                        this.port.flush(py);
                    }
                    return Ok(Step::Return(event));
                }
                Next::Ended => return Err(PyStopAsyncIteration::new_err(())),
                Next::Empty => {
                    this.port.flush(py);
                    if this.port.is_waiting(py) {
                        return Err(errors::busy(
                            "two tasks wait for the next event of one stream; let one of them do it",
                        ));
                    }
                    if let Some(future) = this.port.wait_event(py)? {
                        this.pace.turn_ended();
                        return Ok(Step::Yield(future));
                    }
                }
            }
        }
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().port.stop_waiting(slf.py());
        Err(error)
    }
}

coroutine_methods!(Events);
