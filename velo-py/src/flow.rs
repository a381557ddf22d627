//! The words that both halves of a stream share: what they offer, take and wait for.

use std::str::FromStr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What offering an event came to.
pub enum Offer {
    /// The event is queued. The function sees it after `flush_events`.
    Sent,
    /// The queue holds `buffer` events already, or as many bytes as it may.
    Full,
}

/// What sending does when `buffer` events are queued: the setting `full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Sending waits for room.
    Wait,
    /// Sending drops the oldest event that the function has not taken yet.
    DropOldest,
    /// Sending raises `BufferFull`.
    Error,
}

impl FromStr for WhenFull {
    type Err = PyErr;

    fn from_str(name: &str) -> PyResult<Self> {
        match name {
            "wait" => Ok(WhenFull::Wait),
            "drop_oldest" => Ok(WhenFull::DropOldest),
            "error" => Ok(WhenFull::Error),
            _ => Err(PyValueError::new_err(format!("unknown policy `{name}`"))),
        }
    }
}

/// What taking a result came to.
pub enum Take {
    /// A result.
    Item(Py<PyAny>),
    /// No result is there yet.
    Empty,
    /// The function has ended, and its last result was taken.
    Ended,
}

/// What asking for the next event came to.
pub enum Next {
    /// An event. The one before it counts as handled.
    Event(Py<PyAny>),
    /// No event is there yet. All events before count as handled.
    Empty,
    /// The input has ended.
    Ended,
}

/// Cancels a stream's function, wherever it runs.
pub trait Cancel: Send + Sync {
    /// Cancels the function, and does not wait for its end.
    fn cancel(&self, py: Python<'_>) -> PyResult<()>;
}

/// What a task that is about to sleep waits for.
#[derive(Clone, Copy, Default)]
pub struct Interest {
    /// A result, or the end of the stream.
    pub results: bool,
    /// Room for an event.
    pub space: bool,
    /// The function to be done with every event that was sent.
    pub handled: bool,
    /// Memory of this many bytes to lend; 0 for none.
    pub loan: usize,
    /// The task moves many events and results at once (`feed`, `run`): what comes close together may
    /// wake it together, which costs latency and gains throughput.
    pub throughput: bool,
}

impl Interest {
    /// Nothing: the base of the others.
    pub const NOTHING: Interest = Interest {
        results: false,
        space: false,
        handled: false,
        loan: 0,
        throughput: false,
    };
    /// A result.
    pub const RESULTS: Interest = Interest {
        results: true,
        ..Interest::NOTHING
    };
    /// Room for an event.
    pub const SPACE: Interest = Interest {
        space: true,
        ..Interest::NOTHING
    };
}
