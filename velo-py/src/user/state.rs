//! The state that all operations on one stream share: its channel, whether it may be used, its figures.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyWeakrefReference;
use velo_shm::{fork, ticks};

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::Step;
use crate::flow::{Cancel, Interest, Offer, Take, WhenFull};
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
    event_loop: Py<PyAny>,
    thread: usize,
    /// In which generation of forks it was opened.
    born: u32,
    pub state: GilCell<State>,
    /// Cancels the function.
    pub(crate) cancel: Arc<dyn Cancel>,
    /// Iterations over the results that have not come to their end, and the tasks that run them.
    iterations: GilCell<Vec<(u64, Py<PyAny>)>>,
    /// A source of the stream that is read in a thread.
    ahead: GilCell<Option<Py<ReadAhead>>>,
    /// Of the task that uses the stream.
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
    /// Why no more events may be sent.
    pub(crate) closed: Option<String>,
    /// The function was told that its input has ended.
    pub(crate) told_end: bool,
    /// The stream was cancelled from this side.
    pub(crate) cancelled: bool,
    /// Why there are no more results.
    pub(crate) over: Option<String>,
    /// Events that were taken from a source and did not fit yet. They go first.
    pub(crate) stash: VecDeque<Py<PyAny>>,
    pub meter: Meter,
    /// The function's exception, while results that came before it are being handed out.
    pub(crate) deferred: Option<Thrown>,
    /// A timer looks at the task that waits to send.
    pub(crate) sender_watched: bool,
    /// When the stream was last used, in ticks.
    touched: u64,
    /// How many results were taken by then.
    taken: u64,
    /// By how many seconds a clock of tests was moved since. Not taken off `touched`, which is less
    /// where the machine has only just started.
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

    /// Notes that it was last used earlier, by this many seconds.
    pub(crate) fn age(&mut self, seconds: f64) {
        self.aged += seconds;
    }

    /// Seconds since the stream was last used. A caller that takes its time for each result of a batch
    /// uses the stream too, although an iteration notes the time only once per batch.
    pub(crate) fn idle(&mut self) -> f64 {
        if self.meter.results() != self.taken {
            self.touch(ticks::now());
        }
        let real = ticks::to_duration(ticks::now().saturating_sub(self.touched));
        real.as_secs_f64() + self.aged
    }

    /// Whether the function was told that its input has ended.
    pub fn has_told_end(&self) -> bool {
        self.told_end || self.cancelled
    }

    /// The function was told that its input has ended.
    pub fn told_end(&mut self) {
        self.told_end = true;
    }

    /// Whether there are no more results.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Why nothing can be sent, if so.
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

    /// A callable that has `callback` called in the stream's event loop, from any thread.
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

    /// Refuses use from another thread.
    #[inline]
    pub fn check_thread(&self) -> PyResult<()> {
        if this_thread() == self.thread && self.born == fork::generation() {
            return Ok(());
        }
        self.check_owner()
    }

    /// The misuse that `check_loop` and `check_thread` refuse.
    #[cold]
    fn check_owner(&self) -> PyResult<()> {
        if let Some(why) = self.is_of_parent() {
            return Err(errors::closed(why));
        }
        if this_thread() == self.thread {
            return Ok(());
        }
        Err(errors::busy(
            "this stream belongs to another thread; use it there, for example with \
             `asyncio.run_coroutine_threadsafe(stream.send(event), loop)`",
        ))
    }

    /// Why it cannot be used in a process that was forked since: its worker serves the parent. An
    /// inline stream was forked with its function, and goes on in both.
    pub fn is_of_parent(&self) -> Option<String> {
        let inherited = self.born != fork::generation() && matches!(self.channel, Channel::Ring(_));
        inherited.then(|| {
            format!(
                "stream `{}` belongs to the process that this one was forked from; open a stream of \
                 its own in this process",
                self.name
            )
        })
    }

    /// Refuses use from another event loop.
    #[inline]
    pub fn check_loop(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread()?;
        // In the stream's thread, either its loop runs or another one does. To ask for the running
        // one takes a system call in Python 3.11.
        let event_loop = self.event_loop.bind(py);
        if event_loop
            .call_method0(intern!(py, "is_running"))?
            .is_truthy()?
        {
            return Ok(());
        }
        Err(errors::busy(
            "this stream was opened in another event loop; open one in this loop",
        ))
    }

    /// Refuses to send where nothing can be sent any more.
    #[inline]
    pub fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread()?;
        match self.state.with(py, |state| state.closed())? {
            None => Ok(()),
            Some(why) => Err(errors::closed(why)),
        }
    }

    /// The function has ended while events were being sent.
    pub fn ended_early(&self, py: Python<'_>) -> PyErr {
        let why = self
            .state
            .with(py, |state| state.over.clone())
            .ok()
            .flatten();
        errors::closed(why.unwrap_or_else(|| {
            "the stream function has ended: `recv` has what is left, or its error".to_owned()
        }))
    }

    /// Offers an event, after those that were put back.
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        match self.send_stash(py)? {
            true => self.channel.offer(py, event),
            false => Ok(Offer::Full),
        }
    }

    /// Sends an event, for which the oldest one is dropped if need be.
    pub fn send_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.channel.is_finished(py)? {
            return Err(self.ended_early(py));
        }
        let dropped = self.channel.offer_newest(py, event)?;
        self.count_and_flush(py, 1)?;
        Ok(self.state.with(py, |state| state.meter.dropped(dropped))?)
    }

    /// Keeps an event that was taken from a source and could not be sent yet.
    pub fn put_back(&self, py: Python<'_>, event: Py<PyAny>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.stash.push_back(event))?)
    }

    /// The stream's events come from this source, until None takes its place.
    pub fn reads(&self, py: Python<'_>, ahead: Option<Py<ReadAhead>>) -> PyResult<()> {
        let before = self
            .ahead
            .with(py, |place| std::mem::replace(place, ahead))?;
        for event in before.map_or_else(Default::default, |ahead| ahead.get().close(py)) {
            self.put_back(py, event)?;
        }
        Ok(())
    }

    /// Puts back the events of a source that were read and not sent: they go before what is sent beside
    /// it.
    #[inline]
    pub fn put_back_what_was_read(&self, py: Python<'_>) -> PyResult<()> {
        let ahead = self
            .ahead
            .with(py, |place| place.as_ref().map(|ahead| ahead.clone_ref(py)))?;
        for event in ahead.map_or_else(Default::default, |ahead| ahead.get().take_all(py)) {
            self.put_back(py, event)?;
        }
        Ok(())
    }

    /// Sends the events that were put back. False when there is no room for them.
    #[inline]
    pub fn send_stash(&self, py: Python<'_>) -> PyResult<bool> {
        while let Some(event) = self.state.with(py, |state| state.stash.pop_front())? {
            if let Offer::Full = self.channel.offer(py, event.bind(py))? {
                self.state.with(py, |state| state.stash.push_front(event))?;
                return Ok(false);
            }
            self.count_and_flush(py, 1)?;
        }
        Ok(true)
    }

    /// Closes the input; the first reason stays.
    pub fn close_input(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        Ok(self.state.with(py, |state| {
            let first = state.closed.is_none();
            state.closed.get_or_insert_with(|| why.to_owned());
            first
        })?)
    }

    /// Takes the next result, counts it and remembers the end.
    #[inline]
    pub fn take(&self, py: Python<'_>) -> Result<Take, Thrown> {
        self.take_as(py, false)
    }

    /// As `take`; a `private` result is the receiver's alone.
    #[inline]
    pub fn take_as(&self, py: Python<'_>, private: bool) -> Result<Take, Thrown> {
        if let Some(error) = self.state.with(py, |state| state.deferred.take())? {
            return Err(error);
        }
        match self.channel.take(py, private) {
            Ok(Take::Item(result)) => {
                self.state.with(py, |state| {
                    if state.meter.received(1) {
                        self.follow(py, &mut state.meter);
                    }
                })?;
                Ok(Take::Item(result))
            }
            Ok(Take::Ended) => {
                self.over(py, || "the stream function has returned".to_owned())?;
                Ok(Take::Ended)
            }
            Ok(Take::Empty) => Ok(Take::Empty),
            Err(error) => {
                self.over(py, || {
                    let what = error
                        .value(py)
                        .repr()
                        .map_or_else(|_| String::new(), |r| r.to_string());
                    format!("the stream function has failed: {what}")
                })?;
                Err(error)
            }
        }
    }

    /// Takes the results that are there, at most `max`: how many, and whether the stream is over. An
    /// error comes after the results before it, with the next call.
    pub fn drain(
        &self,
        py: Python<'_>,
        max: usize,
        mut give: impl FnMut(Py<PyAny>) -> PyResult<()>,
    ) -> PyResult<(usize, bool)> {
        self.check_thread()?;
        let mut count = 0;
        while count < max {
            match self.take(py) {
                Ok(Take::Item(result)) => {
                    give(result)?;
                    count += 1;
                }
                Ok(Take::Empty) => break,
                Ok(Take::Ended) => return Ok((count, true)),
                Err(error) if count == 0 => return Err(error.into()),
                Err(error) => {
                    self.defer(py, error)?;
                    break;
                }
            }
        }
        if count > 0 {
            self.touch(py)?;
        }
        self.channel.flush_results(py)?;
        Ok((count, false))
    }

    /// Keeps the function's exception for the next `take`.
    pub fn defer(&self, py: Python<'_>, error: Thrown) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.deferred = Some(error))?)
    }

    /// The last result was taken.
    pub fn over(&self, py: Python<'_>, why: impl FnOnce() -> String) -> PyResult<()> {
        self.state.with(py, |state| {
            state.over.get_or_insert_with(why);
            self.observe(py, &mut state.meter);
            state.meter.ended();
        })?;
        self.waits.wake(py);
        Ok(())
    }

    /// The running task begins an iteration over the results. Returns what names it.
    pub fn iteration_begins(&self, py: Python<'_>) -> PyResult<u64> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Relaxed);
        let task = match current_task(py)? {
            task if task.is_none() => task,
            task => PyWeakrefReference::new(&task)?.into_any(),
        };
        self.iterations
            .with(py, |all| all.push((number, task.unbind())))?;
        Ok(number)
    }

    /// An iteration over the results has ended, or was given up.
    pub fn iteration_ends(&self, py: Python<'_>, number: u64) {
        let ended = self.iterations.with(py, |all| {
            let at = all.iter().position(|(other, _)| *other == number);
            at.map(|at| all.swap_remove(at))
        });
        drop(ended);
        self.waits.closing.wake(py);
    }

    /// Whether some other task is going to take the results.
    pub fn has_receiver(&self, py: Python<'_>) -> PyResult<bool> {
        if self.waits.recv.is_waiting(py) {
            return Ok(true);
        }
        let tasks: Vec<_> = self.iterations.with(py, |all| {
            all.iter().map(|(_, task)| task.clone_ref(py)).collect()
        })?;
        let current = current_task(py)?;
        for task in tasks {
            let task = task.into_bound(py);
            let task = if task.is_none() { task } else { task.call0()? };
            if !task.is_none()
                && !task.is(&current)
                && !task.call_method0(intern!(py, "done"))?.is_truthy()?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Why there are no more results.
    pub fn why_over(&self, py: Python<'_>) -> PyErr {
        let why = self
            .state
            .with(py, |state| match (&state.over, &state.closed) {
                (Some(over), Some(closed)) if over.ends_with("returned") => closed.clone(),
                (Some(over), _) => over.clone(),
                _ => "the stream is closed".to_owned(),
            });
        errors::closed(why.unwrap_or_default())
    }

    /// Ends the input, behind the events that were put back. False when there is no
    /// room for that now.
    pub fn try_end(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.check_thread()?;
        if self.close_input(py, why)? {
            self.waits.send.wake(py); // a task that waits for room learns that the input is closed
        }
        if self.state.with(py, |state| state.has_told_end())? || self.channel.is_finished(py)? {
            return Ok(true);
        }
        self.put_back_what_was_read(py)?;
        let told = self.send_stash(py)? && matches!(self.channel.end_input(py)?, Offer::Sent);
        if told {
            self.state.with(py, |state| state.told_end())?;
        }
        Ok(told)
    }

    /// Detaches the stream from its session, behind the events that were put back; or waits for
    /// its end, if its input was ended. False when there is no room for that now.
    pub fn try_detach(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.check_thread()?;
        if self.close_input(py, why)? {
            self.waits.send.wake(py);
        }
        if self.state.with(py, |state| state.has_told_end())? || self.channel.is_finished(py)? {
            return Ok(true);
        }
        self.put_back_what_was_read(py)?;
        let gone = self.send_stash(py)? && self.channel.detach(py)?;
        if gone {
            self.state.with(py, |state| state.told_end())?;
        }
        Ok(gone)
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

    /// Has the meter know how many events the function has handled, and since when.
    pub(crate) fn observe(&self, py: Python<'_>, meter: &mut Meter) {
        // A channel that is busy is looked at another time.
        if let Ok((_, handled)) = self.channel.progress(py) {
            meter.observe(handled, self.channel.handled_at(py).unwrap_or(0));
        }
    }

    /// As `observe`, and publishes the latencies.
    fn follow(&self, py: Python<'_>, meter: &mut Meter) {
        self.observe(py, meter);
        if let Some((median, p99)) = meter.unpublished() {
            // The ring of a stream whose worker is gone takes no figures.
            let _ = self.channel.publish_latencies(py, median, p99);
        }
    }

    /// Closes the input and cancels the function.
    pub fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_of_parent().is_some() {
            return Ok(());
        }
        self.close_input(py, "the stream was cancelled")?;
        self.state.with(py, |state| state.cancelled = true)?;
        self.waits.send.wake(py);
        self.cancel.cancel(py)
    }

    /// Notes that the stream is in use.
    #[inline]
    pub fn touch(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.touch(ticks::now()))?)
    }

    /// Has the running task sleep until the thing that it waits for may be there. None: it is there.
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

fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CURRENT.import(py, "asyncio", "current_task")?.call0()
}

/// Something that is different in every thread.
#[inline]
pub fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}
