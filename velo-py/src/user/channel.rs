//! The user's half of a stream: events go in, results come out.
//!
//! A [`Channel`] can offer events and take results and nothing else; the function's half is a
//! [`Port`](crate::function::port::Port). Both modes have one of each. Nothing here waits: it says whether
//! there is something to wait for.

use std::str::FromStr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::codec::Blank;
use crate::errors::Thrown;
use crate::inline::InlineChannel;
use crate::process::client::RingChannel;

/// What offering an event came to.
pub enum Offer {
    /// It is queued. The function sees it after `flush_events`.
    Sent,
    /// `buffer` events, or as many bytes as may be, are queued.
    Full,
}

/// What sending does when `buffer` events are queued.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WhenFull {
    /// It waits.
    Wait,
    /// The oldest event that the function has not begun with is dropped.
    DropOldest,
    /// It raises.
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
    /// Nothing is there yet.
    Empty,
    /// The function has ended and its last result was taken.
    Ended,
}

/// Cancels a stream's function, wherever it runs.
pub trait Cancel: Send + Sync {
    /// Does so, without waiting for its end.
    fn cancel(&self, py: Python<'_>) -> PyResult<()>;
}

/// What a task is about to sleep for.
#[derive(Clone, Copy, Default)]
pub struct Want {
    /// A result, or the end.
    pub results: bool,
    /// Room for an event.
    pub space: bool,
    /// The function to be done with every event that was sent.
    pub handled: bool,
    /// Memory of so many bytes to lend.
    pub loan: usize,
    /// Not the next result, but all of them: those that come together are taken together.
    pub bulk: bool,
}

impl Want {
    /// What the others are made of.
    pub const NOTHING: Want = Want {
        results: false,
        space: false,
        handled: false,
        loan: 0,
        bulk: false,
    };
    /// A result.
    pub const RESULTS: Want = Want {
        results: true,
        ..Want::NOTHING
    };
    /// Room for an event.
    pub const SPACE: Want = Want {
        space: true,
        ..Want::NOTHING
    };
}

/// The user's half, in either mode.
pub enum Channel {
    /// Queues in this process.
    Inline(InlineChannel),
    /// Rings in shared memory.
    Ring(RingChannel),
}

macro_rules! either {
    ($channel:expr, $side:ident => $call:expr) => {
        match $channel {
            Channel::Inline($side) => $call,
            Channel::Ring($side) => $call,
        }
    };
}

impl Channel {
    /// Queues an event.
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        either!(self, side => side.offer(py, event))
    }

    /// Queues an event, for which the oldest one is dropped if need be. How many were dropped here
    /// and now.
    pub fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        either!(self, side => side.offer_newest(py, event))
    }

    /// Events that were accepted and dropped again: before they were queued for the function, and
    /// after.
    pub fn dropped(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.dropped(py))
    }

    /// An array to fill and to send; in process mode without a copy. None: there is no memory to lend
    /// now.
    pub fn loan(&self, py: Python<'_>, blank: &Blank) -> PyResult<Option<Py<PyAny>>> {
        either!(self, side => side.loan(py, blank))
    }

    /// Lets the function see what was queued.
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        either!(self, side => side.flush_events(py))
    }

    /// The same where the function runs in another process. False: it runs here, and
    /// [`give_turn`](Self::give_turn) has to follow.
    #[inline]
    pub fn flush_elsewhere(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Channel::Inline(_) => Ok(false),
            Channel::Ring(side) => side.flush_events(py).map(|()| true),
        }
    }

    /// Lets a function that runs here handle what was queued, right now if it waits for nothing else.
    pub fn give_turn(&self, py: Python<'_>) {
        if let Channel::Inline(side) = self {
            side.give_turn(py);
        }
    }

    /// Shows those who look at streams how long events take, in nanoseconds: the median and the
    /// 99th percentile. Nobody looks at inline streams that way.
    pub fn show_latencies(&self, py: Python<'_>, median: u64, p99: u64) -> PyResult<()> {
        match self {
            Channel::Inline(_) => Ok(()),
            Channel::Ring(side) => side.show_latencies(py, median, p99),
        }
    }

    /// How many more events may be queued.
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        either!(self, side => side.free_events(py))
    }

    /// The next result, or the function's exception, once. A `private` one is the receiver's alone,
    /// to be written to.
    #[inline]
    pub fn take(&self, py: Python<'_>, private: bool) -> Result<Take, Thrown> {
        either!(self, side => side.take(py, private))
    }

    /// Gives the room of what was taken back to the function.
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) -> PyResult<()> {
        either!(self, side => side.flush_results(py))
    }

    /// Whether the function has ended. Its last results may still be queued.
    pub fn is_finished(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.is_finished(py))
    }

    /// Events accepted so far, and how many of them the function is done with.
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.progress(py))
    }

    /// Whether the function is done with every event and has asked for one that is not there.
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.is_settled(py))
    }

    /// Bytes that went in and out between processes.
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.bytes(py))
    }

    /// The last look before sleeping: false when what is wanted is there already. When true, the
    /// waits are woken as soon as it may be there.
    pub fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        either!(self, side => side.may_sleep(py, want))
    }

    /// Has what is wanted come at once, if that is possible: runs an inline function, or looks for a
    /// short while, with the GIL released, at what a worker does. How many ticks it has looked.
    #[inline]
    pub fn spin(&self, py: Python<'_>, want: Want) -> PyResult<u64> {
        either!(self, side => side.spin(py, want))
    }

    /// Lets go of a stream that is kept: what was sent is handled, what comes of it is dropped. False
    /// when there is no room for that now.
    pub fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.detach(py))
    }

    /// No more events will come. `Full` when even that has no room now.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        either!(self, side => side.end_input(py))
    }
}
