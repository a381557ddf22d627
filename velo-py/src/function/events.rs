//! `events`: what a stream function iterates over.

use std::sync::Arc;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::{self, Thrown};
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::function::deadline::Budget;
use crate::function::flush_timer::Pace;
use crate::function::port::{KeyPort, Next, Port};
use crate::function::ticks::Ticks;
use crate::keys::frames::Name;
use crate::keys::table::KeyTable;

/// Where a function's events come from, and how long it may go on taking them.
#[derive(Clone)]
pub struct Source {
    pub port: Port,
    pub pace: Arc<Pace>,
    pub budget: Option<Arc<Budget>>,
}

/// What asking a [`Source`] came to.
pub enum Poll {
    /// The next event.
    Event(Py<PyAny>),
    /// The input has ended.
    Ended,
    /// It is time for the other tasks of the loop.
    Turn,
    /// Nothing is there yet.
    Empty,
}

impl Source {
    /// What a key's events come from.
    pub fn of_key(table: Arc<KeyTable>, name: Name) -> Self {
        Source {
            port: Port::Key(KeyPort { table, name }),
            pace: Arc::default(),
            budget: None,
        }
    }

    /// The next event, without waiting.
    #[inline]
    pub fn poll(&self, py: Python<'_>) -> Result<Poll, Thrown> {
        if self.pace.turn_is_over() {
            self.port.flush(py);
            return Ok(Poll::Turn);
        }
        if let Some(budget) = &self.budget {
            budget.asks(py)?;
        }
        let next = self.port.next_event(py)?;
        if let Some(budget) = &self.budget {
            match next {
                Next::Event(_) => {
                    budget.takes(py)?;
                    self.port.allow(py, budget.allowance(py));
                }
                Next::Empty | Next::Ended => budget.rests(py)?,
            }
        }
        Ok(match next {
            Next::Event(event) => {
                if self.pace.flush_is_due_at_event() {
                    self.port.flush(py);
                }
                Poll::Event(event)
            }
            Next::Ended => Poll::Ended,
            Next::Empty => Poll::Empty,
        })
    }

    /// What to wait on for the next event; None when one has come meanwhile.
    pub fn wait(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.port.flush(py);
        if self.port.is_waiting(py) {
            return Err(errors::busy(
                "two tasks wait for the next event of one stream; let one of them do it",
            ));
        }
        let future = self.port.wait_event(py)?;
        if future.is_some() {
            self.pace.turn_ended();
        }
        Ok(future)
    }
}

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
