//! Where the results of a key table go: back to the caller, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::lane_frames::{
    ANSWER, ANSWERED, AT_FAULT, ENDED, FAILED, HANDLED, Handled, Message, Name, RESULT, RETURNED,
    Rest, SAVED, read_saved, with_count,
};
use crate::process::worker::ring_port::RingPort;
use crate::wait::Group;

/// The way back.
pub enum Outlet {
    /// To a caller in this thread.
    Inline(InlineOutlet),
    /// To one in another process.
    Ring(Arc<RingPort>),
}

/// What is told of a key beside its results.
pub enum News {
    /// The answer to its request is complete.
    Answered,
    /// It ends by an exception at its request.
    AtFault,
    /// Its function has returned after this number of events, and is run anew with the next one.
    Returned(u32),
    Ended(Rest, Result<(), PyErr>),
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
    /// For this number of results; `reader` is told of what comes.
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
    pub fn result(
        &self,
        py: Python<'_>,
        name: Name,
        result: &Py<PyAny>,
        answers: bool,
    ) -> PyResult<bool> {
        match self {
            Outlet::Inline(outlet) => Ok(outlet.queue.with(py, |queue| {
                let room = queue.len() < outlet.limit;
                if room {
                    let result = result.clone_ref(py);
                    queue.push_back(match answers {
                        false => Message::Result(name, result, 0),
                        true => Message::Answer(name, result, 0),
                    });
                }
                room
            })?),
            Outlet::Ring(port) => {
                let kind = if answers { ANSWER } else { RESULT };
                port.push_named(py, kind, name, Some(result.bind(py)))
            }
        }
    }

    /// Tells something of a key. Gives it back when there is no room for that now.
    pub fn tell(&self, py: Python<'_>, name: Name, news: News) -> Option<News> {
        match self {
            Outlet::Inline(outlet) => {
                let message = match news {
                    News::Answered => Message::Answered(name),
                    News::AtFault => Message::AtFault(name),
                    News::Returned(taken) => Message::Returned(name, taken),
                    News::Ended(rest, outcome) => Message::Ended(name, rest, outcome),
                };
                // It ends what is bounded, and is not bounded itself.
                let sent = outlet.queue.with(py, |queue| queue.push_back(message));
                debug_assert!(sent.is_ok());
                None
            }
            Outlet::Ring(port) => {
                let sent = match &news {
                    News::Answered => port.push_named(py, ANSWERED, name, None),
                    News::AtFault => port.push_named(py, AT_FAULT, name, None),
                    News::Returned(taken) => {
                        port.push_bytes(py, RETURNED, &with_count(name, *taken))
                    }
                    News::Ended(rest, Ok(())) => {
                        port.push_bytes(py, ENDED, &[&name.bytes()[..], &rest.bytes()].concat())
                    }
                    News::Ended(rest, Err(error)) => {
                        port.push_failure(py, FAILED, (name, *rest), error)
                    }
                };
                (!matches!(sent, Ok(true))).then_some(news)
            }
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

    /// Sends a snapshot, as it travels; false when there is no room for it now.
    pub fn saved(&self, py: Python<'_>, frame: &[u8]) -> PyResult<bool> {
        match self {
            Outlet::Inline(outlet) => {
                let message = read_saved(frame)?;
                outlet.queue.with(py, |queue| queue.push_back(message))?;
                Ok(true)
            }
            Outlet::Ring(port) => port.push_bytes(py, SAVED, frame),
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

    /// Whether others may look at the table, because it is in a worker.
    pub fn is_watched(&self) -> bool {
        matches!(self, Outlet::Ring(_))
    }

    /// The same in the middle of a step. A caller in this thread looks when the step is over.
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) {
        if let Outlet::Ring(port) = self {
            port.flush_results(py);
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
