//! The state that all operations on one stream share: its channel, its figures, and its waiting tasks.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::{fork, ticks};

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::Step;
use crate::flow::{Cancel, Interest, WhenFull};
use crate::user::channel::Channel;
use crate::user::function_stats::{Counted, StreamCounts, Streams, Sums};
use crate::user::meter::Meter;
use crate::user::read_ahead::ReadAhead;
use crate::user::turn_budget::TurnBudget;
use crate::wait::{Wait, Waits};

/// The state that all operations on one stream share.
pub struct StreamCore {
    pub channel: Channel,
    pub waits: Arc<Waits>,
    pub full: WhenFull,
    pub name: String,
    pub(super) event_loop: Py<PyAny>,
    pub(super) thread: usize,
    /// The generation of forks in which the stream was opened.
    pub(super) born: u32,
    pub state: GilCell<State>,
    /// Cancels the function.
    pub(crate) cancel: Arc<dyn Cancel>,
    /// Iterations over the results that have not come to their end, and the tasks that run them.
    pub(super) iterations: GilCell<Vec<(u64, Py<PyAny>)>>,
    /// A source of the stream that is read in a thread.
    pub(super) ahead: GilCell<Option<Py<ReadAhead>>>,
    /// The turn budget of the task that uses the stream.
    pub turn: TurnBudget,
    /// The statistics that count this stream, and its number there.
    pub(crate) counted_in: OnceLock<(Arc<Streams>, u64)>,
}

impl Drop for StreamCore {
    fn drop(&mut self) {
        if let Some((stats, number)) = self.counted_in.take() {
            destroy(|py| stats.retire(py, number, self));
        }
    }
}

impl Counted for StreamCore {
    fn add_to(&self, py: Python<'_>, sums: &mut Sums) -> PyResult<()> {
        let (accepted, handled) = self.channel.progress(py)?;
        let (bytes_in, bytes_out) = self.channel.bytes(py)?;
        let dropped = self.channel.dropped(py)?;
        self.state.wait_with(py, |state| {
            self.observe(py, &mut state.meter);
            sums.add(&StreamCounts {
                accepted,
                handled,
                dropped,
                bytes_in,
                bytes_out,
                results: state.meter.results(),
                open: !state.is_over(),
                latencies: state.meter.latencies(),
            });
        })?;
        Ok(())
    }
}

/// The part of a stream that changes.
#[derive(Default)]
pub struct State {
    /// The reason why no more events may be sent.
    pub(crate) closed: Option<String>,
    /// The end of the input was sent to the function.
    pub(crate) told_end: bool,
    /// The stream was cancelled from this side.
    pub(crate) cancelled: bool,
    /// The reason why there are no more results.
    pub(crate) over: Option<String>,
    /// Events that were taken from a source and did not fit yet. They go first.
    pub(crate) stash: VecDeque<Py<PyAny>>,
    pub meter: Meter,
    /// The function's exception, while the results before it are taken.
    pub(crate) deferred: Option<Thrown>,
    /// A timer watches the task that waits to send.
    pub(crate) sender_watched: bool,
    /// The time of the last use, in ticks.
    touched: u64,
    /// The number of results that were taken by then.
    taken: u64,
    /// The seconds by which a test has moved the clock since. They are not subtracted from `touched`,
    /// which may be less soon after the machine has started.
    aged: f64,
}

impl State {
    /// Notes that the stream is in use.
    #[inline]
    fn touch(&mut self, now: u64) {
        self.touched = now;
        self.taken = self.meter.results();
        self.aged = 0.0;
    }

    /// Moves the time of the last use back by this many seconds.
    pub(crate) fn age(&mut self, seconds: f64) {
        self.aged += seconds;
    }

    /// The seconds since the last use. A caller that takes long for each result of a batch uses the
    /// stream too, although an iteration notes the time only once per batch.
    pub(crate) fn idle(&mut self) -> f64 {
        if self.meter.results() != self.taken {
            self.touch(ticks::now());
        }
        let real = ticks::to_duration(ticks::now().saturating_sub(self.touched));
        real.as_secs_f64() + self.aged
    }

    /// Whether the end of the input was sent to the function.
    pub fn has_told_end(&self) -> bool {
        self.told_end || self.cancelled
    }

    /// The end of the input was sent to the function.
    pub fn told_end(&mut self) {
        self.told_end = true;
    }

    /// Whether there are no more results.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// The reason why nothing can be sent; None while sending is possible.
    pub fn closed(&self) -> Option<String> {
        self.closed.as_ref().or(self.over.as_ref()).cloned()
    }
}

impl StreamCore {
    /// A stream over `channel`, used from the running event loop and this thread.
    pub fn new(
        event_loop: Py<PyAny>,
        channel: Channel,
        waits: Arc<Waits>,
        cancel: Arc<dyn Cancel>,
        full: WhenFull,
        name: String,
    ) -> Self {
        let state = State {
            touched: ticks::now(),
            ..State::default()
        };
        StreamCore {
            channel,
            waits,
            full,
            name,
            event_loop,
            thread: this_thread(),
            born: fork::generation(),
            state: GilCell::new(state),
            cancel,
            iterations: GilCell::default(),
            ahead: GilCell::default(),
            turn: TurnBudget::default(),
            counted_in: OnceLock::new(),
        }
    }

    /// The event loop that the stream belongs to.
    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// A callable for any thread, which calls `callback` in the stream's event loop.
    pub fn thread_safe(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<Py<PyAny>> {
        static PARTIAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let name = intern!(py, "call_soon_threadsafe");
        let call = self.event_loop.getattr(py, name)?;
        let partial = PARTIAL.import(py, "functools", "partial")?;
        Ok(partial.call1((call, callback))?.unbind())
    }

    /// See [`Channel::spin`].
    #[inline]
    pub fn spin(&self, py: Python<'_>, interest: Interest) -> PyResult<()> {
        self.turn.spun(self.channel.spin(py, interest)?);
        Ok(())
    }

    /// Counts events that were offered, and flushes them to the function.
    #[inline]
    pub fn count_and_flush(&self, py: Python<'_>, count: u64) -> PyResult<()> {
        self.count(py, count)?;
        self.channel.flush_events(py)
    }

    /// Counts events that were offered.
    #[inline]
    pub fn count(&self, py: Python<'_>, count: u64) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            let now = ticks::now();
            state.touch(now);
            if state.meter.is_overdue(now) {
                self.follow(py, &mut state.meter);
            }
            state.meter.sent(count, now);
        })?)
    }

    /// Updates the meter with the number of handled events, and the time of the last one.
    pub(crate) fn observe(&self, py: Python<'_>, meter: &mut Meter) {
        // A busy channel is observed at a later time.
        if let Ok((_, handled)) = self.channel.progress(py) {
            let at = self.channel.handled_at(py).unwrap_or(0);
            meter.observe(handled, at, ticks::now());
        }
    }

    /// As `observe`, and publishes the latencies.
    pub(super) fn follow(&self, py: Python<'_>, meter: &mut Meter) {
        self.observe(py, meter);
        if let Some((median, p99)) = meter.unpublished() {
            // The ring of a stream whose worker is gone takes no figures.
            let _ = self.channel.publish_latencies(py, median, p99);
        }
    }

    /// Notes that the stream is in use.
    #[inline]
    pub fn touch(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.touch(ticks::now()))?)
    }

    /// Lets the running task sleep until the awaited thing may be there. None: it is there already.
    pub fn sleep(&self, py: Python<'_>, wait: &Wait, interest: Interest) -> PyResult<Option<Step>> {
        if wait.is_waiting(py) {
            let (what, how) = match interest {
                Interest { loan: 1.., .. } => ("borrow from", "loans"),
                Interest { results: true, .. } | Interest { handled: true, .. } => {
                    ("receive from", "results")
                }
                _ => ("send to", "events"),
            };
            return Err(errors::busy(format!(
                "two tasks {what} one stream at once; let one task handle its {how}"
            )));
        }
        let future = wait.start(self.event_loop.bind(py))?;
        if self.channel.may_sleep(py, interest)? {
            self.turn.ended();
            return Ok(Some(Step::Yield(future)));
        }
        wait.clear(py);
        Ok(None)
    }
}

/// A number that differs between threads.
#[inline]
pub fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}
