//! The user's half of a stream: events go in, results come out.
//!
//! A [`Channel`] offers events and takes results; the function's half is a
//! [`Port`](crate::function::port::Port). Both modes have one of each. A channel never waits: it returns
//! whether its caller has to.

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

    /// Queues an event, and drops the oldest events if there is no room. Returns the number of events
    /// that this call has dropped.
    pub fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        either!(self, side => side.offer_newest(py, event))
    }

    /// The numbers of accepted events that were dropped before they were queued for the function, and
    /// after.
    pub fn dropped(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.dropped(py))
    }

    /// An array to fill and to send; in process mode sending it copies nothing. None: no memory is free
    /// now.
    pub fn loan(&self, py: Python<'_>, spec: &ArraySpec) -> PyResult<Option<Py<PyAny>>> {
        either!(self, side => side.loan(py, spec))
    }

    /// Publishes the queued events, and wakes the function if it waits.
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        either!(self, side => side.flush_events(py))
    }

    /// Publishes the median and the 99th percentile of the latency, in nanoseconds, for `velo top`. The
    /// supervisor does not see inline streams.
    pub fn publish_latencies(&self, py: Python<'_>, median: u64, p99: u64) -> PyResult<()> {
        match self {
            Channel::Inline(_) => Ok(()),
            Channel::Ring(side) => side.publish_latencies(py, median, p99),
        }
    }

    /// The number of further events that may be queued.
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        either!(self, side => side.free_events(py))
    }

    /// The next result, or the function's exception, once. The receiver of a `private` result may write
    /// to it.
    #[inline]
    pub fn take(&self, py: Python<'_>, private: bool) -> Result<Take, Thrown> {
        either!(self, side => side.take(py, private))
    }

    /// Returns the room of the taken results to the function.
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) -> PyResult<()> {
        either!(self, side => side.flush_results(py))
    }

    /// Whether the function has ended. Its last results may still be queued.
    pub fn is_finished(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.is_finished(py))
    }

    /// The numbers of accepted and of handled events so far.
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.progress(py))
    }

    /// The time of the last handled event, in ticks; 0 if it is unknown.
    pub fn handled_at(&self, py: Python<'_>) -> PyResult<u64> {
        either!(self, side => side.handled_at(py))
    }

    /// Whether a result waits to be taken.
    pub fn has_results(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.has_results(py))
    }

    /// Whether the function has handled every event and waits for the next one.
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.is_settled(py))
    }

    /// Bytes that went in and out between processes.
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        either!(self, side => side.bytes(py))
    }

    /// The last check before sleeping: false if the awaited thing is there already. If true, its waits
    /// are woken as soon as it may be there.
    pub fn may_sleep(&self, py: Python<'_>, interest: Interest) -> PyResult<bool> {
        either!(self, side => side.may_sleep(py, interest))
    }

    /// Inline: runs the function at once. Process mode: spins for a short while, with the GIL released,
    /// until the worker brings the awaited thing. Returns the ticks that it has spun.
    #[inline]
    pub fn spin(&self, py: Python<'_>, interest: Interest) -> PyResult<u64> {
        either!(self, side => side.spin(py, interest))
    }

    /// Detaches the stream from its session: the function handles the sent events, and their results are
    /// dropped. False if there is no room for that now.
    pub fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        either!(self, side => side.detach(py))
    }

    /// Ends the input. `Full` if there is no room even for that now.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        either!(self, side => side.end_input(py))
    }
}
