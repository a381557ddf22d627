//! A plain iterator that may wait, read in a thread: the event loop goes on meanwhile, and each event
//! travels as it comes.
//!
//! The thread reads on demand, as many events as there is room for, and tells a caller that has found
//! nothing as soon as there is something. Everything but the demand is guarded by the GIL.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::ffi::iterate::next_of;

/// After so many events in a row other threads may have the GIL.
const TURN: usize = 256;

/// Events of a plain iterator, read in a thread that calls [`ReadAhead::read`].
///
/// As an iterator it stops where no event is there yet, and goes on once there is one.
#[pyclass(frozen, module = "velo._core")]
pub struct ReadAhead {
    shared: GilCell<Shared>,
    demand: Mutex<Demand>,
    changed: Condvar,
    limit: usize,
}

struct Shared {
    /// None once it is exhausted, has failed or is given up.
    source: Option<Py<PyAny>>,
    ready: VecDeque<Py<PyAny>>,
    /// How it has ended, if it has. The error is raised once.
    ended: Option<Result<(), PyErr>>,
    /// Starts the thread; None once it runs.
    start: Option<Py<PyAny>>,
    /// Called, in the thread, when there is something again.
    wake: Option<Py<PyAny>>,
    /// A caller has found nothing.
    missed: bool,
    /// How many events may lie here.
    room: usize,
    /// Takes the events that the thread has in hand when the reading is given up.
    left: Option<Py<PyAny>>,
}

#[derive(Default)]
struct Demand {
    wanted: bool,
    closed: bool,
}

/// What asking for an event came to.
pub enum Ahead {
    Event(Py<PyAny>),
    /// None is there yet.
    Nothing,
    Ended,
}

impl ReadAhead {
    /// The next event, if it is there; otherwise the thread reads events, at most `room` of them. Raises
    /// what the source has raised, after its last event.
    pub fn take(&self, py: Python<'_>, room: usize) -> PyResult<Ahead> {
        let (event, ended, start) = self.shared.with(py, |shared| {
            let event = shared.ready.pop_front();
            let mut ended = None;
            if event.is_none() {
                ended = shared.ended.take();
                match ended {
                    Some(_) => shared.ended = Some(Ok(())),
                    None => {
                        shared.missed = true;
                        shared.room = room;
                    }
                }
            }
            (event, ended, shared.start.take())
        })?;
        if let Some(ended) = ended {
            return ended.map(|()| Ahead::Ended);
        }
        if let Some(start) = start {
            start.call0(py)?;
        }
        if event.is_none() {
            self.set(|demand| !std::mem::replace(&mut demand.wanted, true));
        }
        Ok(event.map_or(Ahead::Nothing, Ahead::Event))
    }

    /// Has the thread call `wake` when there is something again, and give what it has in hand at the end
    /// to `left`.
    pub fn connect(&self, py: Python<'_>, wake: Py<PyAny>, left: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| {
            shared.wake = Some(wake);
            shared.left = Some(left);
        })?)
    }

    /// The events that were read and not taken.
    pub fn take_all(&self, py: Python<'_>) -> VecDeque<Py<PyAny>> {
        let ready = self
            .shared
            .with(py, |shared| std::mem::take(&mut shared.ready));
        ready.unwrap_or_default()
    }

    /// Reads no more. Gives the events that were read and not taken.
    pub fn close(&self, py: Python<'_>) -> VecDeque<Py<PyAny>> {
        self.set(|demand| !std::mem::replace(&mut demand.closed, true));
        let gone = self.shared.with(py, |shared| {
            shared.ended.get_or_insert(Ok(()));
            let gone = (
                shared.source.take(),
                shared.wake.take(),
                shared.start.take(),
            );
            (std::mem::take(&mut shared.ready), gone)
        });
        gone.map(|(ready, _)| ready).unwrap_or_default()
    }

    /// Changes the demand; the thread looks at it if it has changed.
    fn set(&self, change: impl FnOnce(&mut Demand) -> bool) {
        let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut demand) {
            self.changed.notify_all();
        }
    }

    /// Waits, without the GIL, until events are wanted. False when none are wanted any more.
    fn wait(&self, py: Python<'_>) -> bool {
        py.detach(|| {
            let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
            while !demand.wanted && !demand.closed {
                let waited = self.changed.wait(demand);
                demand = waited.unwrap_or_else(PoisonError::into_inner);
            }
            demand.wanted = false;
            !demand.closed
        })
    }

    /// Notes an event or the end. Returns the call that says so, if somebody waits for it, and whether
    /// there is room for more.
    fn note(
        &self,
        py: Python<'_>,
        next: PyResult<Option<Py<PyAny>>>,
    ) -> PyResult<(Option<Py<PyAny>>, bool)> {
        Ok(self.shared.with(py, |shared| {
            let goes_on = match next {
                Ok(Some(event)) => {
                    shared.ready.push_back(event);
                    shared.ready.len() < shared.room
                }
                Ok(None) => {
                    shared.ended = Some(Ok(()));
                    false
                }
                Err(error) => {
                    shared.ended = Some(Err(error));
                    false
                }
            };
            let wake = match std::mem::take(&mut shared.missed) {
                true => shared.wake.as_ref().map(|wake| wake.clone_ref(py)),
                false => None,
            };
            (wake, goes_on)
        })?)
    }
}

#[pymethods]
impl ReadAhead {
    /// `limit` is how many events are read ahead at most where it is used as an iterator.
    #[new]
    fn new(source: Py<PyAny>, limit: usize) -> Self {
        ReadAhead {
            shared: GilCell::new(Shared {
                source: Some(source),
                ready: VecDeque::new(),
                ended: None,
                start: None,
                wake: None,
                missed: false,
                room: 0,
                left: None,
            }),
            demand: Mutex::default(),
            changed: Condvar::new(),
            limit: limit.max(1),
        }
    }

    /// Has `start` called with the first demand.
    fn start_by(&self, py: Python<'_>, start: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| shared.start = Some(start))?)
    }

    /// Has `wake` called, in the thread, when there is something again.
    fn wake_by(&self, py: Python<'_>, wake: Py<PyAny>) -> PyResult<()> {
        Ok(self.shared.with(py, |shared| shared.wake = Some(wake))?)
    }

    /// Reads events as they are wanted, until the source ends or the reading is given up.
    fn read(&self, py: Python<'_>) -> PyResult<()> {
        while self.wait(py) {
            let mut in_a_row = 0;
            loop {
                let source = self
                    .shared
                    .with(py, |shared| shared.source.as_ref().map(|s| s.clone_ref(py)))?;
                let Some(source) = source else { return Ok(()) };
                let next = next_of(source.bind(py)).map(|next| next.map(Bound::unbind));
                drop(source);
                let over = !matches!(next, Ok(Some(_)));
                let given_up = self
                    .demand
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .closed;
                if given_up {
                    let left = self.shared.with(py, |shared| shared.left.take())?;
                    if let (Some(left), Ok(Some(event))) = (left, next) {
                        left.call1(py, (event,))?;
                    }
                    return Ok(());
                }
                let (wake, goes_on) = self.note(py, next)?;
                if over {
                    // The source goes here, in the thread that has read it.
                    drop(self.shared.with(py, |shared| shared.source.take())?);
                }
                if wake.is_some_and(|wake| wake.call0(py).is_err()) {
                    return Ok(()); // the event loop is closed: nothing is read any more
                }
                if over {
                    return Ok(());
                }
                if !goes_on {
                    break;
                }
                in_a_row += 1;
                if in_a_row % TURN == 0 {
                    py.detach(|| {});
                }
            }
        }
        Ok(())
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

    /// Reads no more.
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
