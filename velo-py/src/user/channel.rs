//! The user's half of a stream: events go in, results come out.
//!
//! A [`Channel`] can offer events and take results and nothing else; the function's half is a
//! [`Port`](crate::function::port::Port). Both modes have one of each. Nothing here waits: it says whether
//! there is something to wait for.

use pyo3::prelude::*;

use crate::codec::ArraySpec;
use crate::errors::Thrown;
use crate::flow::{Interest, Offer, Take};
use crate::inline::InlineChannel;
use crate::process::client::channel::RingChannel;

/// The user's half, in either mode.
pub enum Channel {
    /// Queues in this process.
    Inline(InlineChannel),
    /// RingPair in shared memory.
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
    pub fn loan(&self, py: Python<'_>, spec: &ArraySpec) -> PyResult<Option<Py<PyAny>>> {
        either!(self, side => side.loan(py, spec))
    }

    /// Publishes the queued events, and wakes the function if it waits.
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        either!(self, side => side.flush_events(py))
    }

    /// Publishes how long events take, in nanoseconds, for `velo top`: the median and the 99th
    /// percentile. The supervisor does not see inline streams.
    pub fn publish_latencies(&self, py: Python<'_>, median: u64, p99: u64) -> PyResult<()> {
        match self {
            Channel::Inline(_) => Ok(()),
            Channel::Ring(side) => side.publish_latencies(py, median, p99),
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

    /// Gives the room of the results that were taken back to the function.
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

    /// When the function was last known to be done with an event, in ticks; 0 where that is unknown.
    pub fn handled_at(&self, py: Python<'_>) -> PyResult<u64> {
        either!(self, side => side.handled_at(py))
    }

    /// Whether a result is there that was not taken.
    pub fn has_results(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.has_results(py))
    }

    /// Whether the function is done with every event and has asked for one that is not there.
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.is_settled(py))
    }

    /// Bytes that went in and out between processes.
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.bytes(py))
    }

    /// The last look before sleeping: false when the thing waited for is there already. When true, the
    /// waits are woken as soon as it may be there.
    pub fn may_sleep(&self, py: Python<'_>, interest: Interest) -> PyResult<bool> {
        either!(self, side => side.may_sleep(py, interest))
    }

    /// Runs an inline function at once, or spins for a short while, with the GIL released, for a worker
    /// to bring the thing waited for. How many ticks it has spun.
    #[inline]
    pub fn spin(&self, py: Python<'_>, interest: Interest) -> PyResult<u64> {
        either!(self, side => side.spin(py, interest))
    }

    /// Detaches the stream from its session: events that were sent are handled, their results dropped. False
    /// when there is no room for that now.
    pub fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.detach(py))
    }

    /// No more events will come. `Full` when even that has no room now.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        either!(self, side => side.end_input(py))
    }
}
