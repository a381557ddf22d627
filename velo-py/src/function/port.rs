//! The function's half of a stream: where its events come from and its results go.
//!
//! A [`Port`] can take events and push results and nothing else; the user's half is a
//! [`Channel`](crate::user::channel::Channel). Both modes have one of each.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::Allowance;

use crate::errors::Thrown;
use crate::flow::Next;
use crate::function::key_port::KeyPort;
use crate::function::session::SessionPort;
use crate::inline::InlineStream;
use crate::process::worker::ring_port::RingPort;

/// The function's half, in either mode.
#[derive(Clone)]
pub enum Port {
    /// Queues in this process.
    Inline(Arc<InlineStream>),
    /// RingPair in shared memory.
    Ring(Arc<RingPort>),
    /// A session's: either of them, or none at present; and whether it is an inline one.
    Session(Arc<SessionPort>, bool),
    /// One key of a key table.
    Key(KeyPort),
}

macro_rules! either {
    ($port:expr, $side:ident => $call:expr) => {
        match $port {
            Port::Inline($side) => $call,
            Port::Ring($side) => $call,
            Port::Session($side, _) => $call,
            Port::Key($side) => $call,
        }
    };
}

impl Port {
    /// The next event, without waiting.
    #[inline]
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        either!(self, side => side.next_event(py))
    }

    /// Registers the running task to be woken when an event is there. None: one has come already.
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        either!(self, side => side.wait_event(py))
    }

    /// The wait for an event was given up.
    pub fn stop_waiting(&self, py: Python<'_>) {
        either!(self, side => side.stop_waiting(py));
    }

    /// Whether a task waits for an event.
    pub fn is_waiting(&self, py: Python<'_>) -> bool {
        either!(self, side => side.is_waiting(py))
    }

    /// Whether `future` is what the function waits on for an event, or for room.
    pub fn is_wait(&self, py: Python<'_>, future: &Py<PyAny>) -> bool {
        either!(self, side => side.is_wait(py, future))
    }

    /// Has the function look again, although no event came.
    pub fn wake_function(&self, py: Python<'_>) {
        either!(self, side => side.wake_function(py));
    }

    /// The loop that the function runs in.
    pub fn event_loop(&self) -> &Py<PyAny> {
        either!(self, side => side.event_loop())
    }

    /// Queues a result; false when there is no room for it now.
    #[inline]
    pub fn push(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        either!(self, side => side.push(py, result))
    }

    /// What the function's state begins as.
    pub fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match self {
            Port::Inline(_) | Port::Key(_) => Ok(PyDict::new(py)),
            Port::Session(side, _) => side.state(py),
            Port::Ring(side) => side.state(py),
        }
    }

    /// Makes the results so far visible to the other half: the function may go on to compute for
    /// long.
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) {
        match self {
            Port::Inline(_) | Port::Key(_) => {} // no other task runs before the function waits
            Port::Ring(side) => side.flush_results(py),
            Port::Session(side, _) => side.flush_results(py),
        }
    }

    /// Makes results and handled events so far visible to the other half.
    #[inline]
    pub fn flush(&self, py: Python<'_>) {
        either!(self, side => side.flush(py));
    }

    /// Registers the running task to be woken when there is room for a result. None: there is.
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        either!(self, side => side.wait_space(py))
    }

    /// The wait for room was given up.
    pub fn stop_waiting_space(&self, py: Python<'_>) {
        either!(self, side => side.stop_waiting_space(py));
    }

    /// Whether the stream was cancelled from the user's half.
    #[inline]
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        either!(self, side => side.is_cancelled(py))
    }

    /// Which event the function took last, counted from 1; 0 before the first.
    pub fn event(&self, py: Python<'_>) -> u64 {
        either!(self, side => side.event(py))
    }

    /// A step that has begun may last for this long from now.
    #[inline]
    pub fn allow(&self, py: Python<'_>, allowance: Option<Allowance>) {
        match self {
            Port::Inline(_) => {} // nothing could stop it
            Port::Ring(side) => side.allow(allowance),
            Port::Key(side) => side.allow(allowance),
            Port::Session(side, _) => side.allow(py, allowance),
        }
    }

    /// The function has ended. The user's half sees this after the last result.
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        either!(self, side => side.finish(py, outcome));
    }
}

/// What a [`Port`] does with the places where its function waits.
macro_rules! waits_of {
    ($side:ty) => {
        impl $side {
            /// See [`Port::stop_waiting`].
            pub fn stop_waiting(&self, py: Python<'_>) {
                self.event_wait().clear(py);
            }

            /// See [`Port::is_waiting`].
            pub fn is_waiting(&self, py: Python<'_>) -> bool {
                self.event_wait().is_waiting(py)
            }

            /// See [`Port::is_wait`].
            pub fn is_wait(&self, py: Python<'_>, future: &Py<PyAny>) -> bool {
                self.event_wait().is_on(py, future) || self.space_wait().is_on(py, future)
            }

            /// See [`Port::wake_function`].
            pub fn wake_function(&self, py: Python<'_>) {
                self.event_wait().wake(py);
            }

            /// See [`Port::stop_waiting_space`].
            pub fn stop_waiting_space(&self, py: Python<'_>) {
                self.space_wait().clear(py);
            }
        }
    };
}

waits_of!(InlineStream);
waits_of!(RingPort);
waits_of!(SessionPort);
