//! `send`, `request` and `end` of keys: awaitables that complete at once whenever they can.
//!
//! An operation begins with its first step. An operation that is cancelled while it waits for room has
//! sent nothing; a request that is cancelled later has sent its event, and its results are dropped.

use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning};
use pyo3::intern;
use pyo3::prelude::*;

use super::index::hash_of;
use super::keyed::Keys;
use super::requests::{Request, Ticket};
use super::stuck_tasks;
use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};

/// The kinds of operations.
pub enum What {
    /// Send an event to a key; true: wait for its results.
    Send(Py<PyAny>, Py<PyAny>, bool),
    /// End the input of a key.
    End(Py<PyAny>),
    /// End the input of all keys.
    EndAll,
}

/// One pending operation on keys.
#[pyclass(frozen, module = "velo._core")]
pub struct KeyOperation {
    keys: Py<Keys>,
    progress: GilCell<Progress>,
}

enum Progress {
    New(What),
    /// Lets other tasks run before it begins.
    StoodBack(What),
    /// Waits for room.
    InLine(What, Arc<Ticket>),
    /// Waits for its results.
    Asked(Arc<Request>),
    Done,
}

impl KeyOperation {
    /// An operation that has not begun.
    pub fn new(keys: Py<Keys>, what: What) -> Self {
        KeyOperation {
            keys,
            progress: GilCell::new(Progress::New(what)),
        }
    }

    fn advance(&self, py: Python<'_>) -> PyResult<Step> {
        let keys = self.keys.get();
        let progress = self
            .progress
            .with(py, |progress| std::mem::replace(progress, Progress::Done))?;
        if matches!(progress, Progress::StoodBack(_)) {
            keys.goes_on();
        }
        keys.check_owner(py)?;
        match progress {
            Progress::Done => Err(PyRuntimeError::new_err(
                "cannot await the same operation on keys twice",
            )),
            Progress::New(what) if keys.stands_back() => {
                self.progress
                    .with(py, |progress| *progress = Progress::StoodBack(what))?;
                Ok(Step::Yield(py.None()))
            }
            Progress::New(what) | Progress::StoodBack(what) => self.begin(py, what),
            Progress::InLine(what, ticket) => {
                let granted = ticket.is_granted(py)?;
                if granted {
                    ticket.leave(py);
                    keys.take_grant(py)?;
                }
                keys.check_open(py).inspect_err(|_| {
                    ticket.leave(py);
                })?;
                match what {
                    What::Send(key, event, asks) if granted => {
                        self.submit(py, &key, &event, asks).or_else(|error| {
                            keys.give_room(py)?; // to the next in line
                            Err(error)
                        })
                    }
                    what => self.sleep_in_line(py, what, ticket),
                }
            }
            Progress::Asked(request) => self.await_answer(py, request),
        }
    }

    fn begin(&self, py: Python<'_>, what: What) -> PyResult<Step> {
        let keys = self.keys.get();
        match what {
            What::Send(key, event, asks) => return self.begin_send(py, (key, event, asks)),
            What::End(key) => {
                keys.check_open(py)?;
                keys.end_key(py, key.bind(py))?;
                keys.see_to(py, false)?;
            }
            What::EndAll => {
                let why = "the input of all keys was ended by `end_all()`";
                keys.close_input(py, why.to_owned(), false)?;
            }
        }
        Ok(Step::Return(py.None()))
    }

    fn begin_send(&self, py: Python<'_>, sent: (Py<PyAny>, Py<PyAny>, bool)) -> PyResult<Step> {
        let (keys, (key, event, asks)) = (self.keys.get(), sent);
        keys.check_open(py)?;
        if keys.has_room(py)? {
            return self.submit(py, &key, &event, asks);
        }
        if let Some(name) = keys.refuses_to_wait(py)? {
            return Err(errors::buffer_full(&name, 0, event.bind(py)));
        }
        let ticket = keys.stand_in_line(py)?;
        self.sleep_in_line(py, What::Send(key, event, asks), ticket)
    }

    fn sleep_in_line(&self, py: Python<'_>, what: What, ticket: Arc<Ticket>) -> PyResult<Step> {
        let keys = self.keys.get();
        let future = ticket.sleep(keys.event_loop(py)?.bind(py))?;
        stuck_tasks::watch(py, &self.keys)?;
        keys.stint.ended();
        self.progress
            .with(py, |progress| *progress = Progress::InLine(what, ticket))?;
        Ok(Step::Yield(future))
    }

    fn submit(
        &self,
        py: Python<'_>,
        key: &Py<PyAny>,
        event: &Py<PyAny>,
        asks: bool,
    ) -> PyResult<Step> {
        let (keys, key) = (self.keys.get(), key.bind(py));
        let hash = hash_of(key).inspect_err(|error| not_a_key(key, error))?;
        let request = asks.then(Arc::<Request>::default);
        keys.submit(py, event.bind(py), (key, hash), request.clone())?;
        keys.see_to(py, false)?;
        keys.sent(py)?;
        match request {
            None => Ok(Step::Return(py.None())),
            Some(request) => self.await_answer(py, request),
        }
    }

    fn await_answer(&self, py: Python<'_>, request: Arc<Request>) -> PyResult<Step> {
        let keys = self.keys.get();
        if let Some(results) = request.take(py)? {
            return Ok(Step::Return(results));
        }
        let future = request.sleep(keys.event_loop(py)?.bind(py))?;
        stuck_tasks::watch(py, &self.keys)?;
        keys.stint.ended();
        self.progress
            .with(py, |progress| *progress = Progress::Asked(request))?;
        Ok(Step::Yield(future))
    }

    /// Gives up. What was not even begun.
    fn stop(&self, py: Python<'_>) -> PyResult<Option<What>> {
        let progress = self
            .progress
            .with(py, |progress| std::mem::replace(progress, Progress::Done))?;
        match progress {
            Progress::New(what) => return Ok(Some(what)),
            Progress::StoodBack(_) => self.keys.get().goes_on(),
            Progress::InLine(_, ticket) => {
                if ticket.leave(py) {
                    let keys = self.keys.get();
                    keys.take_grant(py)?;
                    keys.give_room(py)?;
                }
            }
            Progress::Asked(request) => request.abandon(py),
            Progress::Done => {}
        }
        Ok(None)
    }
}

/// Notes which key it was.
#[cold]
fn not_a_key(key: &Bound<'_, PyAny>, error: &PyErr) {
    let py = key.py();
    let shown = key.repr().map_or_else(
        |_| "a key that cannot be shown".to_owned(),
        |r| r.to_string(),
    );
    let note = format!("this was to be a key: {shown}");
    let _ = error
        .value(py)
        .call_method1(intern!(py, "add_note"), (note,));
}

impl Drop for KeyOperation {
    /// Ends the wait of a task that is gone. An operation that was never awaited has done nothing, which
    /// is a mistake of its caller: it warns, as a coroutine does.
    fn drop(&mut self) {
        destroy(|py| {
            let method = match self.stop(py) {
                Ok(Some(What::Send(_, _, false))) => "send(key, event)",
                Ok(Some(What::Send(_, _, true))) => "request(key, event)",
                Ok(Some(What::End(_))) => "end(key)",
                Ok(Some(What::EndAll)) => "end_all()",
                _ => return,
            };
            let text = format!(
                "`keys.{method}` was never awaited, so it did nothing: write `await keys.{method}`"
            );
            let Ok(text) = std::ffi::CString::new(text) else {
                return;
            };
            let category = py.get_type::<PyRuntimeWarning>();
            if let Err(error) = PyErr::warn(py, &category, &text, 1) {
                error.write_unraisable(py, None); // warnings are errors, and a destructor raises none
            }
        });
    }
}

impl Awaitable for KeyOperation {
    #[inline]
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let this = slf.get();
        // Who calls a slot is not known to be attached: what is dropped would be kept for later.
        Ok(Python::attach(|py| this.advance(py))?)
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().stop(slf.py())?;
        Err(error)
    }
}

#[pymethods]
impl Keys {
    /// Sends an event to a key.
    fn send(slf: Py<Self>, key: Py<PyAny>, event: Py<PyAny>) -> KeyOperation {
        KeyOperation::new(slf, What::Send(key, event, false))
    }

    /// Sends an event to a key, and receives its results.
    fn request(slf: Py<Self>, key: Py<PyAny>, event: Py<PyAny>) -> KeyOperation {
        KeyOperation::new(slf, What::Send(key, event, true))
    }

    /// Ends the input of a key.
    fn end(slf: Py<Self>, key: Py<PyAny>) -> KeyOperation {
        KeyOperation::new(slf, What::End(key))
    }

    /// Ends the input of all keys.
    fn end_all(slf: Py<Self>) -> KeyOperation {
        KeyOperation::new(slf, What::EndAll)
    }
}

#[pymethods]
impl KeyOperation {
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stop(py).map(drop)
    }
}

coroutine_methods!(KeyOperation);
