//! The port of a key, whose events a key table holds.
//!
//! `function/` does not know the key table: it asks for events by the trait [`KeyEvents`], which the
//! table implements.

use std::sync::Arc;

use pyo3::prelude::*;
use velo_shm::Allowance;

use crate::errors::{self, Thrown};
use crate::ffi::send_slot::Step;
use crate::flow::Next;
use crate::lane_frames::Name;

/// The events of many keys, each found by its name.
pub trait KeyEvents: Send + Sync {
    /// The event loop that the keys run in.
    fn event_loop(&self) -> &Py<PyAny>;

    /// A step of a key's `async for`: an event, something to wait for, or `StopAsyncIteration`.
    fn step_events(&self, py: Python<'_>, name: Name) -> Result<Step, Thrown>;

    /// The next event of a key, without waiting.
    fn next_event(&self, py: Python<'_>, name: Name) -> Result<Next, Thrown>;

    /// The future, or None of Python, that a key waits on for an event. None: an event has come
    /// meanwhile.
    fn wait_event(&self, py: Python<'_>, name: Name) -> PyResult<Option<Py<PyAny>>>;

    /// Gives up a key's wait for an event.
    fn stop_waiting(&self, py: Python<'_>, name: Name);

    /// Whether a task other than the key's own waits for an event of the key.
    fn waits_elsewhere(&self, py: Python<'_>, name: Name) -> bool;

    /// Resumes a key that waits for an event, although no event came.
    fn wake(&self, py: Python<'_>, name: Name);

    /// The number of the event that a key took last, counted from 1; 0 before the first.
    fn event(&self, py: Python<'_>, name: Name) -> u64;

    /// Whether the caller has cancelled a key.
    fn is_cancelled(&self, py: Python<'_>, name: Name) -> bool;

    /// How long the running step of a key may go on from now.
    fn allow(&self, allowance: Option<Allowance>);

    /// Ends a key for its caller with `outcome`, although its function has not ended.
    fn give_up(&self, py: Python<'_>, name: Name, outcome: Result<(), PyErr>);
}

/// One key of a key table.
#[derive(Clone)]
pub struct KeyPort {
    /// The table.
    pub table: Arc<dyn KeyEvents>,
    /// The key.
    pub name: Name,
}

impl KeyPort {
    /// A step of the key's `async for`.
    #[inline]
    pub fn step_events(&self, py: Python<'_>) -> Result<Step, Thrown> {
        self.table.step_events(py, self.name)
    }

    /// See [`Port::next_event`](crate::function::port::Port::next_event).
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        self.table.next_event(py, self.name)
    }

    /// See [`Port::wait_event`](crate::function::port::Port::wait_event).
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.table.wait_event(py, self.name)
    }

    /// See [`Port::stop_waiting`](crate::function::port::Port::stop_waiting).
    pub fn stop_waiting(&self, py: Python<'_>) {
        self.table.stop_waiting(py, self.name);
    }

    /// See [`Port::is_waiting`](crate::function::port::Port::is_waiting).
    pub fn is_waiting(&self, py: Python<'_>) -> bool {
        self.table.waits_elsewhere(py, self.name)
    }

    /// False: the task of a key never sleeps on a future of its port.
    pub fn is_wait(&self, _py: Python<'_>, _future: &Py<PyAny>) -> bool {
        false
    }

    /// See [`Port::wake_function`](crate::function::port::Port::wake_function).
    pub fn wake_function(&self, py: Python<'_>) {
        self.table.wake(py, self.name);
    }

    /// See [`Port::event_loop`](crate::function::port::Port::event_loop).
    pub fn event_loop(&self) -> &Py<PyAny> {
        self.table.event_loop()
    }

    /// Fails: the table itself takes results from the generators of its keys.
    pub fn push(&self, _py: Python<'_>, _result: &Bound<'_, PyAny>) -> PyResult<bool> {
        Err(errors::velo("results of keys go through their table"))
    }

    /// Does nothing: the table flushes when none of its keys can go on.
    pub fn flush(&self, _py: Python<'_>) {}

    /// None: a key does not push results through its port.
    pub fn wait_space(&self, _py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(None)
    }

    /// Does nothing; see `wait_space`.
    pub fn stop_waiting_space(&self, _py: Python<'_>) {}

    /// See [`Port::is_cancelled`](crate::function::port::Port::is_cancelled).
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.table.is_cancelled(py, self.name)
    }

    /// See [`Port::event`](crate::function::port::Port::event).
    pub fn event(&self, py: Python<'_>) -> u64 {
        self.table.event(py, self.name)
    }

    /// See [`Port::allow`](crate::function::port::Port::allow).
    pub fn allow(&self, allowance: Option<Allowance>) {
        self.table.allow(allowance);
    }

    /// See [`Port::finish`](crate::function::port::Port::finish).
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.table.give_up(py, self.name, outcome);
    }
}
