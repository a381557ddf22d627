//! `events.ticks(seconds)`: the events of a stream, and a sentinel whenever none came for a while.

use std::sync::{Arc, Weak};

use pyo3::exceptions::{PyStopAsyncIteration, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::cell::GilCell;
use crate::errors::Thrown;
use crate::ffi::async_iterator::{self, AsyncIterate, Lending};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::{Step, stepping_methods};
use crate::function::source::{Poll, Source};

/// Clocks may be early by their resolution; seconds.
const EARLY: f64 = 1e-6;

/// An async iterator over events and ticks. It is its own `__anext__` awaitable.
#[pyclass(frozen, module = "velo._core")]
pub struct Ticks {
    shared: Arc<Shared>,
    lending: Lending,
}

/// What the function gets for an event.
type ValueOf = Box<dyn Fn(Python<'_>, Py<PyAny>) -> PyResult<Py<PyAny>> + Send + Sync>;

struct Shared {
    source: Source,
    value_of: ValueOf,
    seconds: f64,
    state: GilCell<State>,
}

#[derive(Default)]
struct State {
    /// Since when the function has been waiting, by the loop's clock.
    since: Option<f64>,
    /// It has been waiting for long enough.
    due: bool,
    /// The timer, which is left running when an event comes: it looks how long is left when it
    /// goes off. A steady flow of events sets no timers.
    timer: Option<Py<PyAny>>,
}

impl Ticks {
    /// Ticks after `seconds` without an event.
    pub fn new(source: Source, seconds: f64, value_of: ValueOf) -> PyResult<Self> {
        if seconds <= 0.0 || seconds.is_nan() || seconds.is_infinite() {
            return Err(PyValueError::new_err(format!(
                "`seconds` must be more than 0, not {seconds}"
            )));
        }
        Ok(Ticks {
            shared: Arc::new(Shared {
                source,
                value_of,
                seconds,
                state: GilCell::default(),
            }),
            lending: Lending::default(),
        })
    }
}

impl Shared {
    fn now(&self, py: Python<'_>) -> PyResult<f64> {
        let event_loop = self.source.port.event_loop().bind(py);
        event_loop.call_method0(intern!(py, "time"))?.extract()
    }

    /// The function begins to wait, or goes on waiting.
    fn waits(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let (begins, armed) = self
            .state
            .with(py, |state| (state.since.is_none(), state.timer.is_some()))?;
        if begins {
            let now = self.now(py)?;
            self.state.with(py, |state| state.since = Some(now))?;
            if !armed {
                self.arm(py, self.seconds)?;
            }
        }
        Ok(())
    }

    fn arm(self: &Arc<Self>, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let alarm = Alarm(Arc::downgrade(self));
        let event_loop = self.source.port.event_loop().bind(py);
        let timer = event_loop.call_method1(intern!(py, "call_later"), (seconds, alarm))?;
        self.state
            .with(py, |state| state.timer = Some(timer.unbind()))?;
        Ok(())
    }

    /// The function does not wait any more.
    fn goes_on(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.since = None;
            state.due = false;
        })?)
    }

    /// Whether it is time for a tick.
    fn take_due(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| {
            let due = std::mem::take(&mut state.due);
            if due {
                state.since = None;
            }
            due
        })?)
    }

    fn on_time(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let since = self.state.with(py, |state| {
            state.timer = None;
            state.since
        })?;
        let Some(since) = since else {
            return Ok(());
        };
        let left = self.seconds - (self.now(py)? - since);
        if left > EARLY {
            return self.arm(py, left);
        }
        self.state.with(py, |state| state.due = true)?;
        self.source.port.wake_function(py);
        Ok(())
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        destroy(|py| {
            if let Ok(Some(timer)) = self.shared.state.with(py, |state| state.timer.take()) {
                let _ = timer.call_method0(py, intern!(py, "cancel"));
            }
        });
    }
}

impl AsyncIterate for Ticks {
    const ITEM: &'static str = "event";

    fn lending(&self) -> &Lending {
        &self.lending
    }

    #[inline]
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown> {
        static TICK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let shared = &self.shared;
        loop {
            match shared.source.poll(py)? {
                Poll::Event(event) => {
                    shared.goes_on(py)?;
                    return Ok(Step::Return((shared.value_of)(py, event)?));
                }
                Poll::Ended => {
                    shared.goes_on(py)?;
                    return Err(PyStopAsyncIteration::new_err(()).into());
                }
                Poll::Turn => return Ok(Step::Yield(py.None())),
                Poll::Empty if shared.take_due(py)? => {
                    let tick = TICK.import(py, "velo.events", "TICK")?;
                    return Ok(Step::Return(tick.clone().unbind()));
                }
                Poll::Empty => {
                    if let Some(future) = shared.source.wait(py)? {
                        shared.waits(py)?;
                        return Ok(Step::Yield(future));
                    }
                }
            }
        }
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.source.port.stop_waiting(py);
        self.shared.goes_on(py)
    }
}

#[pymethods]
impl Ticks {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        async_iterator::lend(slf)
    }

    fn __iter__(&self) -> PyResult<Py<PyAny>> {
        Err(async_iterator::refuse_plain_for("the events of a stream"))
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        async_iterator::close(slf)
    }
}

stepping_methods!(Ticks);

/// What the timer calls. It does not keep the iteration alive.
#[pyclass(frozen)]
struct Alarm(Weak<Shared>);

#[pymethods]
impl Alarm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.upgrade().map_or(Ok(()), |shared| shared.on_time(py))
    }
}
