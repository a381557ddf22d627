//! Where the results of a key table go: back to the caller, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::lane_frames::{ENDED, FAILED, HANDLED, Handled, Message, Name, RESULT, Rest};
use crate::process::worker::ring_port::RingPort;
use crate::wait::Group;

/// The way back.
pub enum Outlet {
    /// To a caller in this thread.
    Inline(InlineOutlet),
    /// To one in another process.
    Ring(Arc<RingPort>),
}

/// A queue that the caller reads.
pub struct InlineOutlet {
    queue: GilCell<VecDeque<Message>>,
    /// So many results may lie there.
    limit: usize,
    /// Where the caller waits.
    reader: Arc<Group>,
}

impl InlineOutlet {
    /// For so many results; `reader` is told of what comes.
    pub fn new(limit: usize, reader: Arc<Group>) -> Self {
        InlineOutlet {
            queue: GilCell::default(),
            limit,
            reader,
        }
    }

    /// The next message.
    #[inline]
    pub fn pop(&self, py: Python<'_>) -> PyResult<Option<Message>> {
        Ok(self.queue.with(py, VecDeque::pop_front)?)
    }

    /// How many messages there are.
    pub fn len(&self, py: Python<'_>) -> usize {
        self.queue.with(py, |queue| queue.len()).unwrap_or(0)
    }
}

impl Outlet {
    /// Whether this is a process that a function has forked: the way back is its worker's.
    #[inline]
    pub fn is_of_parent(&self) -> bool {
        match self {
            Outlet::Inline(_) => false,
            Outlet::Ring(port) => port.is_of_parent(),
        }
    }

    /// Sends a result; false when there is no room for it now.
    #[inline]
    pub fn result(&self, py: Python<'_>, name: Name, result: &Py<PyAny>) -> PyResult<bool> {
        match self {
            Outlet::Inline(outlet) => Ok(outlet.queue.with(py, |queue| {
                let room = queue.len() < outlet.limit;
                if room {
                    queue.push_back(Message::Result(name, result.clone_ref(py)));
                }
                room
            })?),
            Outlet::Ring(port) => port.push_named(py, RESULT, name, Some(result.bind(py))),
        }
    }

    /// Says how a key has ended. Gives it back when there is no room for that now.
    pub fn ended(
        &self,
        py: Python<'_>,
        name: Name,
        rest: Rest,
        outcome: Result<(), PyErr>,
    ) -> Option<Result<(), PyErr>> {
        match self {
            Outlet::Inline(outlet) => {
                // It ends what is bounded, and is not bounded itself.
                let sent = outlet.queue.with(py, |queue| {
                    queue.push_back(Message::Ended(name, rest, outcome))
                });
                debug_assert!(sent.is_ok());
                None
            }
            Outlet::Ring(port) => match outcome {
                Ok(()) => {
                    match port.push_bytes(py, ENDED, &[&name.bytes()[..], &rest.bytes()].concat()) {
                        Ok(true) => None,
                        _ => Some(Ok(())),
                    }
                }
                Err(error) => match port.push_failure(py, FAILED, (name, rest), &error) {
                    Ok(true) => None,
                    _ => Some(Err(error)),
                },
            },
        }
    }

    /// Says what was handled; false when there is no room for that now.
    pub fn handled(&self, py: Python<'_>, handled: &Handled) -> PyResult<bool> {
        match self {
            Outlet::Inline(outlet) => {
                outlet.queue.with(py, |queue| {
                    queue.push_back(Message::Handled(handled.clone()));
                })?;
                Ok(true)
            }
            Outlet::Ring(port) => port.push_bytes(py, HANDLED, &handled.bytes()),
        }
    }

    /// Shows the caller what was sent.
    #[inline]
    pub fn flush(&self, py: Python<'_>) {
        match self {
            Outlet::Inline(outlet) => {
                if outlet.len(py) > 0 {
                    outlet.reader.wait().wake(py);
                }
            }
            Outlet::Ring(port) => port.flush(py),
        }
    }

    /// Has whoever drives the table go on.
    pub fn nudge(&self, py: Python<'_>) {
        match self {
            Outlet::Inline(outlet) => outlet.reader.wait().wake(py),
            Outlet::Ring(port) => port.function().event.wake(py),
        }
    }
}
