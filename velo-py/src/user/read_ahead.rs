//! Reads a plain iterator that may wait, in a thread: the event loop continues meanwhile, and each event
//! is sent as soon as it is read.
//!
//! The thread reads on demand, up to the number of events that there is room for, and wakes a caller
//! that has found no event. Its loop is Python (`velo._api.source`): when a program ends while the thread
//! waits, the interpreter ends the thread, which must not happen below a frame of Rust. The GIL guards
//! all state.

use std::collections::VecDeque;

use pyo3::intern;
use pyo3::prelude::*;

use crate::cell::GilCell;

/// The thread reads on.
const GO_ON: u8 = 1;
/// The thread calls `wake`: a caller has found no event.
const WAKE: u8 = 2;
/// The thread calls `left` with the event: the reading was given up.
const LEFT: u8 = 4;

/// Events of a plain iterator, which a thread pushes here.
///
/// As an iterator it stops when no event was read yet, and continues once there is one.
#[pyclass(frozen, module = "velo._core")]
pub struct ReadAhead {
    shared: GilCell<Shared>,
    /// A queue that the thread waits at: an item of it is a demand.
    demand: Py<PyAny>,
    limit: usize,
}

struct Shared {
    ready: VecDeque<Py<PyAny>>,
    /// The end of the source, with its error, if it has ended. The error is raised once.
    ended: Option<Result<(), PyErr>>,
    /// Starts the thread; None once it runs.
    start: Option<Py<PyAny>>,
    /// The thread calls this when there is an event again.
    wake: Option<Py<PyAny>>,
    /// Takes the event that the thread has in hand when the reading is given up.
    left: Option<Py<PyAny>>,
    /// A caller has found no event.
    missed: bool,
    /// The thread was asked for events and has not stopped reading them.
    wanted: bool,
    /// The most events that may lie here.
    room: usize,
    /// Reading has stopped.
    closed: bool,
}

/// The answer to a request for an event.
pub enum Ahead {
    /// The next event.
    Event(Py<PyAny>),
    /// The next event was not read yet.
    Nothing,
    /// There are no more.
    Ended,
}

impl ReadAhead {
    /// The next event, if it was read; otherwise the thread reads at most `room` events. After the last
    /// event it raises the error of the source.
    pub fn take(&self, py: Python<'_>, room: usize) -> PyResult<Ahead> {
        let (event, ended, start, asks) = self.shared.with(py, |shared| {
            let event = shared.ready.pop_front();
            let (mut ended, mut asks) = (None, false);
            if event.is_none() {
                ended = shared.ended.take();
                if ended.is_some() {
                    shared.ended = Some(Ok(()));
                } else {
                    shared.missed = true;
                    shared.room = room;
                    asks = !std::mem::replace(&mut shared.wanted, true);
                }
            }
            (event, ended, shared.start.take(), asks)
        })?;
        if let Some(ended) = ended {
            return ended.map(|()| Ahead::Ended);
        }
        if let Some(start) = start {
            start.call0(py)?;
        }
        if asks {
            self.ask(py)?;
        }
        Ok(event.map_or(Ahead::Nothing, Ahead::Event))
    }

    /// Sets the callbacks of the thread: `wake` when there is an event again, and `left` for the event
    /// that it holds at the end.
    pub fn connect(&self, py: Python<'_>, wake: Py<PyAny>, left: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| {
            shared.wake = Some(wake);
            shared.left = Some(left);
        })?)
    }

    /// The events that were read and not taken. The thread reads no more before it is asked again.
    pub fn take_all(&self, py: Python<'_>) -> VecDeque<Py<PyAny>> {
        let ready = self.shared.with(py, |shared| {
            shared.room = 0;
            std::mem::take(&mut shared.ready)
        });
        ready.unwrap_or_default()
    }

    /// Stops reading. Returns the events that were read and not taken.
    pub fn close(&self, py: Python<'_>) -> VecDeque<Py<PyAny>> {
        let gone = self.shared.with(py, |shared| {
            shared.closed = true;
            shared.ended.get_or_insert(Ok(()));
            let gone = (shared.wake.take(), shared.start.take());
            (std::mem::take(&mut shared.ready), gone)
        });
        let _ = self.ask(py); // the thread looks, and ends
        gone.map(|(ready, _)| ready).unwrap_or_default()
    }

    fn ask(&self, py: Python<'_>) -> PyResult<()> {
        let none = py.None();
        self.demand
            .call_method1(py, intern!(py, "put"), (none,))
            .map(drop)
    }
}

#[pymethods]
impl ReadAhead {
    /// `demand` is a queue that the thread waits at, `limit` how many events are read ahead at most where
    /// this is used as an iterator.
    #[new]
    fn new(demand: Py<PyAny>, limit: usize) -> Self {
        ReadAhead {
            shared: GilCell::new(Shared {
                ready: VecDeque::new(),
                ended: None,
                start: None,
                wake: None,
                left: None,
                missed: false,
                wanted: false,
                room: 0,
                closed: false,
            }),
            demand,
            limit: limit.max(1),
        }
    }

    /// Sets `start`, which is called with the first demand.
    fn start_by(&self, py: Python<'_>, start: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| shared.start = Some(start))?)
    }

    /// Sets `wake`, which the thread calls when there is an event again.
    fn wake_by(&self, py: Python<'_>, wake: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| shared.wake = Some(wake))?)
    }

    /// Takes an event that the thread has read. Returns the next steps of the thread, as a sum of 1 (reads
    /// on), 2 (calls `wake`) and 4 (calls `left` with the event).
    fn push(&self, py: Python<'_>, event: Py<PyAny>) -> PyResult<u8> {
        Ok(self.shared.with(py, |shared| {
            if shared.closed {
                return LEFT;
            }
            shared.ready.push_back(event);
            let mut next = 0;
            if shared.ready.len() < shared.room {
                next |= GO_ON;
            } else {
                shared.wanted = false;
            }
            if std::mem::take(&mut shared.missed) {
                next |= WAKE;
            }
            next
        })?)
    }

    /// The source has ended, by this error if there is one. Returns as `push` does.
    #[pyo3(signature = (error=None))]
    fn finish(&self, py: Python<'_>, error: Option<Bound<'_, PyAny>>) -> PyResult<u8> {
        let ended = error.map_or(Ok(()), |error| Err(PyErr::from_value(error)));
        Ok(self.shared.with(py, |shared| {
            if shared.closed {
                return 0;
            }
            shared.ended = Some(ended);
            match std::mem::take(&mut shared.missed) {
                true => WAKE,
                false => 0,
            }
        })?)
    }

    /// What the thread calls when there is something again.
    #[getter]
    fn wake(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.shared.with(py, |shared| {
            shared.wake.as_ref().map(|wake| wake.clone_ref(py))
        })?)
    }

    /// The callback for the event that the thread holds when the reading stops.
    #[getter]
    fn left(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.shared.with(py, |shared| {
            shared.left.as_ref().map(|left| left.clone_ref(py))
        })?)
    }

    /// Whether reading has stopped.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.shared.with(py, |shared| shared.closed)?)
    }

    /// Whether the source has ended and all of its events were taken.
    #[getter]
    fn exhausted(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared.with(py, |shared| {
            if !shared.ready.is_empty() {
                return Ok(false);
            }
            match shared.ended.take() {
                None => Ok(false),
                Some(ended) => {
                    shared.ended = Some(Ok(()));
                    ended.map(|()| true)
                }
            }
        })?
    }

    /// Stops reading.
    #[pyo3(name = "close")]
    fn give_up(&self, py: Python<'_>) {
        drop(self.close(py));
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.take(py, self.limit)? {
            Ahead::Event(event) => Ok(Some(event)),
            Ahead::Nothing | Ahead::Ended => Ok(None),
        }
    }
}
