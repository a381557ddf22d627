//! `async for result in stream` and `stream.feed(...)`: results one by one, taken in batches.

use std::sync::Arc;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::errors::{Thrown, is_journal_full};
use crate::ffi::async_iterator::{self, AsyncIterate, Lending};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::{Step, stepping_methods};
use crate::flow::{Interest, Offer, Take};
use crate::user::batch::Batch;
use crate::user::feed_source::{FeedSource, Filled};
use crate::user::read_ahead::Ahead;
use crate::user::state::StreamCore;

/// While results keep coming, the source is asked for events after this many results.
const FEED_EVERY: u32 = 64;
/// The room of results is returned to the function after this many of them.
const FLUSH_EVERY: u32 = 32;

/// The end of an iteration; each iteration ends at the latest with the stream.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// With the stream.
    End,
    /// When the source is exhausted and every event is handled.
    Handled,
}

/// An async iterator over results.
#[pyclass(frozen, module = "velo._core")]
pub struct Results {
    core: Arc<StreamCore>,
    state: GilCell<State>,
    lending: Lending,
}

struct State {
    /// The source; None once it is exhausted, or for an iteration without a source.
    source: Option<FeedSource>,
    /// A thread reads the source, which has no event at the moment.
    starved: bool,
    until: Until,
    /// The number of this iteration in its stream, from its first step to its end.
    number: Option<u64>,
    begun: bool,
    until_feed: u32,
    until_flush: u32,
    /// The future that the task sleeps on.
    asleep: Option<Py<PyAny>>,
    over: bool,
}

impl Drop for Results {
    fn drop(&mut self) {
        destroy(|py| {
            let _ = self.state.with(py, |state| {
                self.stop_waiting(py, state);
                self.over(py, state);
            });
        });
    }
}

impl Results {
    /// All results up to the end of the stream.
    pub fn drain(core: Arc<StreamCore>) -> Self {
        Results::new(core, None, Until::End)
    }

    /// Sends the events of `source` while it receives; ends when all of them are handled.
    pub fn feed(core: Arc<StreamCore>, source: &Bound<'_, PyAny>) -> PyResult<Self> {
        let source = FeedSource::new(&core, source)?;
        Ok(Results::new(core, Some(source), Until::Handled))
    }

    fn new(core: Arc<StreamCore>, source: Option<FeedSource>, until: Until) -> Self {
        let state = State {
            source,
            starved: false,
            until,
            number: None,
            begun: false,
            until_feed: 0,
            until_flush: FLUSH_EVERY,
            asleep: None,
            over: false,
        };
        Results {
            core,
            state: GilCell::new(state),
            lending: Lending::default(),
        }
    }

    /// The next result, or a future to wait for; None at the end.
    #[inline]
    pub fn next(&self, py: Python<'_>) -> Result<Option<Step>, Thrown> {
        self.state.with(py, |state| self.advance(py, state))?
    }

    /// The wait is given up.
    pub fn stop(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| self.stop_waiting(py, state))?)
    }

    #[inline]
    fn advance(&self, py: Python<'_>, state: &mut State) -> Result<Option<Step>, Thrown> {
        let awoken = state.asleep.take().is_some();
        if !std::mem::replace(&mut state.begun, true) {
            self.core.check_loop(py)?;
            state.number = Some(self.core.iteration_begins(py)?);
            if state.source.is_some() {
                self.core.check_open(py)?;
            }
        }
        if state.over {
            return Ok(None);
        }
        self.core.check_thread()?;
        if state.until_flush == FLUSH_EVERY && self.core.turn.is_over() {
            state.until_flush = FLUSH_EVERY - 1;
            if state.source.is_some() {
                self.fill(py, state)?; // the function has work while other tasks have their turn
            }
            return Ok(Some(Step::Yield(py.None())));
        }
        loop {
            if state.until_feed == 0 && state.source.is_some() {
                self.fill(py, state)?;
                state.until_feed = FEED_EVERY;
            }
            match self.core.take(py) {
                Ok(Take::Item(result)) => {
                    state.until_feed = state.until_feed.saturating_sub(1);
                    state.until_flush -= 1;
                    if state.until_flush == 0 || awoken {
                        state.until_flush = FLUSH_EVERY;
                        self.core.touch(py)?;
                        self.core.channel.flush_results(py)?;
                    }
                    return Ok(Some(Step::Return(result)));
                }
                Ok(Take::Empty) => {}
                Ok(Take::Ended) => {
                    self.over(py, state);
                    return Ok(None);
                }
                Err(error) => {
                    self.over(py, state);
                    return Err(error);
                }
            }
            state.until_feed = 0;
            if state.until_flush < FLUSH_EVERY {
                state.until_flush = FLUSH_EVERY;
                self.core.touch(py)?;
            }
            self.core.channel.flush_results(py)?;
            let mut interest = Interest {
                throughput: state.until == Until::Handled,
                ..Interest::RESULTS
            };
            if state.source.is_some() {
                interest.space = !state.starved;
                if self.core.channel.free_events(py)? > 0 && self.fill(py, state)? > 0 {
                    self.core.spin(
                        py,
                        Interest {
                            space: false,
                            ..interest
                        },
                    )?;
                    continue;
                }
                interest.space = state.source.is_some() && !state.starved;
            }
            interest.handled = state.until == Until::Handled && state.source.is_none();
            if interest.handled && self.core.channel.is_settled(py)? {
                // Results are shown before the count of handled events: look once more.
                return match self.core.take(py)? {
                    Take::Item(result) => Ok(Some(Step::Return(result))),
                    _ => {
                        self.over(py, state);
                        Ok(None)
                    }
                };
            }
            self.core.spin(py, interest)?;
            if let Some(step) = self.core.sleep(py, &self.core.waits.recv, interest)? {
                if let Step::Yield(future) = &step {
                    state.asleep = Some(future.clone_ref(py));
                }
                return Ok(Some(step));
            }
        }
    }

    /// Ends this iteration.
    fn over(&self, py: Python<'_>, state: &mut State) {
        state.over = true;
        if let Some(FeedSource::Ahead(_)) = state.source.take() {
            let _ = self.core.reads(py, None); // its remaining events go before the next event that is sent
        }
        if let Some(number) = state.number.take() {
            self.core.iteration_ends(py, number);
        }
    }

    fn stop_waiting(&self, py: Python<'_>, state: &mut State) {
        if let Some(future) = state.asleep.take() {
            self.core.waits.recv.clear_if(py, &future);
        }
    }

    /// Moves events from the source into the stream while there is room. Returns their number.
    fn fill(&self, py: Python<'_>, state: &mut State) -> PyResult<u64> {
        let Some(source) = state.source.as_ref().map(|source| source.clone_ref(py)) else {
            return Ok(0);
        };
        let mut batch = Batch::new(&self.core);
        let filled = self.fill_from(py, &source, &mut batch);
        batch.flush(py)?;
        match filled {
            Ok(filled) => {
                state.starved = filled == Filled::Starved;
                if filled == Filled::Exhausted {
                    state.source = None;
                }
                Ok(batch.sent())
            }
            Err(error) => {
                if let FeedSource::Ahead(ahead) = &source
                    && is_journal_full(py, &error)
                {
                    // What it has read would not fit either, and `end` must not fail for it.
                    ahead.get().close(py);
                }
                self.over(py, state);
                Err(error)
            }
        }
    }

    fn fill_from(
        &self,
        py: Python<'_>,
        source: &FeedSource,
        batch: &mut Batch<'_>,
    ) -> PyResult<Filled> {
        let mut room = self.core.channel.free_events(py)?;
        if room > 0 {
            self.core.check_open(py)?;
        }
        if room > 0 && !self.core.send_stash(py)? {
            return Ok(Filled::Full); // nothing more is taken from the source before that is gone
        }
        while room > 0 {
            let event = match source.next(py, room) {
                Ok(Ahead::Event(event)) => event.into_bound(py),
                Ok(Ahead::Nothing) => return Ok(Filled::Starved),
                Ok(Ahead::Ended) => return Ok(Filled::Exhausted),
                Err(error) => {
                    // A failing source fails its stream: what it would have given is lost.
                    self.core.abandon(py)?;
                    return Err(error);
                }
            };
            match self.core.offer(py, &event)? {
                Offer::Sent => {
                    batch.add(py)?;
                    room -= 1;
                }
                Offer::Full => {
                    self.core.put_back(py, event.unbind())?;
                    return Ok(Filled::Full);
                }
            }
        }
        Ok(Filled::Full)
    }
}

impl AsyncIterate for Results {
    const ITEM: &'static str = "result";

    fn lending(&self) -> &Lending {
        &self.lending
    }

    #[inline]
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown> {
        let next = self.next(py)?;
        next.ok_or_else(|| PyStopAsyncIteration::new_err(()).into())
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        self.stop(py)
    }
}

#[pymethods]
impl Results {
    /// The task that sends is done.
    fn _all_sent(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| state.until = Until::Handled)?;
        self.core.waits.recv.wake(py);
        Ok(())
    }

    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        async_iterator::lend(slf)
    }

    fn __iter__(&self) -> PyResult<Py<PyAny>> {
        Err(async_iterator::refuse_plain_for("the results of a stream"))
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        async_iterator::close(slf)
    }
}

stepping_methods!(Results);
