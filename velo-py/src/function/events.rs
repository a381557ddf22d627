//! `events`: what a stream function iterates over.

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::cell::GilCell;
use crate::codec::Record;
use crate::errors::Thrown;
use crate::ffi::async_iterator::{self, AsyncIterate, Lending};
use crate::ffi::send_slot::{Step, stepping_methods};
use crate::function::key_port::KeyPort;
use crate::function::source::{Poll, Source};
use crate::function::ticks::Ticks;

/// The events of one stream, in order: `async for event in events`.
///
/// It lends itself as its `__anext__` awaitable, so that a step allocates nothing but the event. Waiting is
/// safe to cancel: no event is lost, the next `anext(events)` gets it.
#[pyclass(frozen, module = "velo._core")]
pub struct Events {
    from: From,
    lending: Lending,
    /// The record of the event that came last, of a source of `velo.connect`.
    record: GilCell<Option<Py<Record>>>,
}

/// The port that the events come from.
enum From {
    /// The port of a stream.
    Stream(Source),
    /// The port of a key. A program may have millions of keys, so this holds no timer and no deadline.
    Key(KeyPort),
}

impl Events {
    /// The events that come from `source`.
    pub fn new(source: Source) -> Self {
        Events::from(From::Stream(source))
    }

    /// The events of a key.
    pub fn of_key(key: KeyPort) -> Self {
        Events::from(From::Key(key))
    }

    fn from(from: From) -> Self {
        Events {
            from,
            lending: Lending::default(),
            record: GilCell::default(),
        }
    }

    /// What the function gets for an event: of a record, which is kept, its value.
    #[inline]
    pub fn value_of(&self, py: Python<'_>, event: Py<PyAny>) -> PyResult<Py<PyAny>> {
        // Hardly any event is a record, and a failed cast makes an error.
        match event.bind(py).is_exact_instance_of::<Record>() {
            true => self.value_of_record(event.bind(py)),
            false => Ok(event),
        }
    }

    #[inline(never)]
    fn value_of_record(&self, event: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = event.py();
        let record = event.cast_exact::<Record>()?;
        let value = record.get().value.clone_ref(py);
        let before = self
            .record
            .with(py, |place| place.replace(record.clone().unbind()))?;
        drop(before);
        Ok(value)
    }
}

#[pymethods]
impl Events {
    /// The events, and a `velo.events.TICK` whenever `seconds` pass without one.
    fn ticks(slf: &Bound<'_, Self>, seconds: f64) -> PyResult<Ticks> {
        let source = match &slf.get().from {
            From::Stream(source) => source.clone(),
            From::Key(key) => Source::of_key(key.clone()),
        };
        let events = slf.clone().unbind();
        let value_of = move |py: Python<'_>, event| events.get().value_of(py, event);
        Ticks::new(source, seconds, Box::new(value_of))
    }

    /// The `velo.connect.Record` of the event that the function received last; None before the first
    /// one, and for events that come from no source of `velo.connect`.
    #[getter]
    fn record(&self, py: Python<'_>) -> PyResult<Option<Py<Record>>> {
        Ok(self.record.with(py, |record| {
            record.as_ref().map(|record| record.clone_ref(py))
        })?)
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

impl AsyncIterate for Events {
    const ITEM: &'static str = "event";

    fn lending(&self) -> &Lending {
        &self.lending
    }

    #[inline]
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown> {
        let source = match &self.from {
            From::Stream(source) => source,
            From::Key(key) => {
                return match key.step_events(py)? {
                    Step::Return(event) => Ok(Step::Return(self.value_of(py, event)?)),
                    step => Ok(step),
                };
            }
        };
        loop {
            match source.poll(py)? {
                Poll::Event(event) => return Ok(Step::Return(self.value_of(py, event)?)),
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

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        match &self.from {
            From::Stream(source) => source.port.stop_waiting(py),
            From::Key(key) => key.stop_waiting(py),
        }
        Ok(())
    }
}

stepping_methods!(Events);
