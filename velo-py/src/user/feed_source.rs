//! The source of a `feed`: an iterator, read in place or in a thread.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::ffi::iterate::next_of;
use crate::user::read_ahead::{Ahead, ReadAhead};
use crate::user::state::StreamCore;

/// The source of a `feed`.
pub enum FeedSource {
    /// An iterator that always has the next event at once.
    Plain(Py<PyAny>),
    /// An iterator that a thread reads.
    Ahead(Py<ReadAhead>),
}

/// The reason why no more events went into the stream.
#[derive(PartialEq)]
pub enum Filled {
    /// There is no room for more.
    Full,
    /// The source has no event yet.
    Starved,
    /// The source has no more events.
    Exhausted,
}

impl FeedSource {
    /// Connects a source to the stream of `core`.
    pub fn new(core: &Arc<StreamCore>, iterator: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = iterator.py();
        let Ok(ahead) = iterator.cast::<ReadAhead>() else {
            return Ok(FeedSource::Plain(iterator.clone().unbind()));
        };
        let call = |what| Py::new(py, FromThread(Arc::downgrade(core), what)).map(Py::into_any);
        let wake = core.thread_safe(py, call(Event::Ready)?)?;
        ahead.get().connect(py, wake, call(Event::Left)?)?;
        core.reads(py, Some(ahead.clone().unbind()))?;
        Ok(FeedSource::Ahead(ahead.clone().unbind()))
    }

    /// Another reference.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            FeedSource::Plain(iterator) => FeedSource::Plain(iterator.clone_ref(py)),
            FeedSource::Ahead(ahead) => FeedSource::Ahead(ahead.clone_ref(py)),
        }
    }

    /// The next event; it never waits for a source that a thread reads. At most `room` events may be
    /// taken.
    #[inline]
    pub fn next(&self, py: Python<'_>, room: usize) -> PyResult<Ahead> {
        match self {
            FeedSource::Plain(iterator) => Ok(match next_of(iterator.bind(py))? {
                Some(event) => Ahead::Event(event.unbind()),
                None => Ahead::Ended,
            }),
            FeedSource::Ahead(ahead) => ahead.get().take(py, room),
        }
    }
}

/// The callbacks of the thread that reads a source. They do not keep the stream alive.
#[pyclass(frozen)]
struct FromThread(Weak<StreamCore>, Event);

#[derive(Clone, Copy)]
enum Event {
    /// There is an event again.
    Ready,
    /// An event was read while the reading was given up: it goes before the next event that is sent.
    Left,
}

#[pymethods]
impl FromThread {
    #[pyo3(signature = (event=None))]
    fn __call__(&self, py: Python<'_>, event: Option<Py<PyAny>>) -> PyResult<()> {
        match (self.0.upgrade(), self.1, event) {
            (Some(core), Event::Ready, _) => core.waits.recv.wake(py),
            (Some(core), Event::Left, Some(event)) => core.put_back(py, event)?,
            _ => {}
        }
        Ok(())
    }
}
