//! Where a function's events come from, for everything that iterates over them.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::errors::{self, Thrown};
use crate::flow::Next;
use crate::function::deadline::Deadline;
use crate::function::flush_timer::FlushTimer;
use crate::function::key_port::KeyPort;
use crate::function::port::Port;

/// Where a function's events come from, and how long it may go on taking them.
#[derive(Clone)]
pub struct Source {
    pub port: Port,
    pub timer: Arc<FlushTimer>,
    pub deadline: Option<Arc<Deadline>>,
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
    /// The source of a key's events, without a deadline.
    pub fn of_key(key: KeyPort) -> Self {
        Source {
            port: Port::Key(key),
            timer: Arc::default(),
            deadline: None,
        }
    }

    /// The next event, without waiting.
    #[inline]
    pub fn poll(&self, py: Python<'_>) -> Result<Poll, Thrown> {
        if self.timer.turn_is_over() {
            self.port.flush(py);
            return Ok(Poll::Turn);
        }
        if let Some(deadline) = &self.deadline {
            deadline.asks(py)?;
        }
        let next = self.port.next_event(py)?;
        if let Some(deadline) = &self.deadline {
            match next {
                Next::Event(_) => {
                    deadline.takes(py)?;
                    self.port.allow(py, deadline.allowance(py));
                }
                Next::Empty | Next::Ended => deadline.rests(py)?,
            }
        }
        Ok(match next {
            Next::Event(event) => {
                if self.timer.flush_is_due_at_event() {
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
            self.timer.turn_ended();
        }
        Ok(future)
    }
}
