//! The two queues of an inline stream, between the user's tasks and the function's task.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::ticks;

use crate::cell::GilCell;
use crate::codec::ArraySpec;
use crate::errors::Thrown;
use crate::flow::{Interest, Next, Offer, Take};
use crate::function_side::FunctionSide;
use crate::wait::{Wait, Waits};

/// Both halves of an inline stream.
pub struct InlineStream {
    queues: GilCell<Queues>,
    /// Where the user's tasks wait.
    user: Arc<Waits>,
    /// Where the function waits.
    function: Arc<FunctionSide>,
    event_loop: Py<PyAny>,
}

struct Queues {
    events: VecDeque<Py<PyAny>>,
    results: VecDeque<Py<PyAny>>,
    limit: usize,
    accepted: u64,
    /// Events that the function is done with: it has asked for the one after.
    handled: u64,
    delivered: u64,
    /// When the function was last seen to be done with an event, in ticks: where events come one by one.
    handled_at: u64,
    input_ended: bool,
    /// The function has asked for its first event.
    asked: bool,
    cancelled: bool,
    outcome: Option<Result<(), PyErr>>,
    finished: bool,
    /// A task waits until all events are handled.
    watched: bool,
    /// Events that were dropped for newer ones.
    dropped: u64,
}

impl Queues {
    /// Whether the function is done with every event and has asked for one that is not there.
    fn is_settled(&self) -> bool {
        self.asked && self.queued() == 0
    }

    /// Events that were accepted and that the function is not done with.
    fn queued(&self) -> usize {
        (self.accepted - self.handled) as usize
    }
}

impl InlineStream {
    /// Queues of `limit` events and as many results.
    pub fn new(event_loop: Py<PyAny>, limit: usize, user: Arc<Waits>) -> Self {
        Self::attached(event_loop, limit, user, Arc::default())
    }

    /// As `new`, of a function that there is already.
    pub fn attached(
        event_loop: Py<PyAny>,
        limit: usize,
        user: Arc<Waits>,
        function: Arc<FunctionSide>,
    ) -> Self {
        let queues = Queues {
            events: VecDeque::new(),
            results: VecDeque::new(),
            limit,
            accepted: 0,
            handled: 0,
            delivered: 0,
            handled_at: 0,
            input_ended: false,
            asked: false,
            cancelled: false,
            outcome: None,
            finished: false,
            watched: false,
            dropped: 0,
        };
        InlineStream {
            queues: GilCell::new(queues),
            user,
            function,
            event_loop,
        }
    }

    // The user's half.

    /// Queues an event.
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        Ok(self.queues.with(py, |queues| {
            if queues.finished || queues.queued() >= queues.limit {
                return Offer::Full;
            }
            queues.events.push_back(event.clone().unbind());
            queues.accepted += 1;
            Offer::Sent
        })?)
    }

    /// See [`Channel::loan`](crate::user::channel::Channel::loan).
    pub fn loan(&self, py: Python<'_>, spec: &ArraySpec) -> PyResult<Option<Py<PyAny>>> {
        match self.queues.with(py, |queues| queues.finished)? {
            true => Ok(None),
            false => spec.alone(py).map(Some),
        }
    }

    /// See [`Channel::offer_newest`](crate::user::channel::Channel::offer_newest).
    pub fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        let oldest = self.queues.with(py, |queues| {
            if queues.finished {
                return None;
            }
            queues.events.push_back(event.clone().unbind());
            queues.accepted += 1;
            let oldest = (queues.events.len() > queues.limit).then(|| queues.events.pop_front());
            let oldest = oldest.flatten();
            if oldest.is_some() {
                queues.accepted -= 1;
                queues.dropped += 1;
            }
            oldest
        })?;
        Ok(oldest.map_or(0, |_| 1))
    }

    /// See [`Channel::dropped`](crate::user::channel::Channel::dropped).
    pub fn dropped(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        Ok((self.queues.with(py, |queues| queues.dropped)?, 0))
    }

    /// Lets the function see the queued events.
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        self.function.event.wake(py);
        Ok(())
    }

    /// How many more events may be queued.
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.queues.with(py, |queues| match queues.finished {
            true => 0,
            false => queues.limit.saturating_sub(queues.queued()),
        })?)
    }

    /// The next result.
    #[inline]
    pub fn take(&self, py: Python<'_>, private: bool) -> Result<Take, Thrown> {
        let taken = self
            .queues
            .with(py, |queues| match queues.results.pop_front() {
                Some(result) => Ok(Take::Item(result)),
                None if !queues.finished => Ok(Take::Empty),
                None => match queues.outcome.take() {
                    Some(Err(error)) => Err(error),
                    _ => Ok(Take::Ended),
                },
            })??;
        if matches!(taken, Take::Item(_)) {
            self.function.space.wake(py);
        }
        if let Take::Item(result) = &taken
            && private
        {
            static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let copy = COPY.import(py, "copy", "deepcopy")?.call1((result,))?;
            return Ok(Take::Item(copy.unbind()));
        }
        Ok(taken)
    }

    /// Room was given back when the result was taken.
    pub fn flush_results(&self, _py: Python<'_>) -> PyResult<()> {
        Ok(())
    }

    /// Whether the function has ended (its results may still be queued).
    pub fn is_finished(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| queues.finished)?)
    }

    /// See [`Channel::is_settled`](crate::user::channel::Channel::is_settled).
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self
            .queues
            .with(py, |queues| queues.is_settled() || queues.finished)?)
    }

    /// The numbers of accepted and of handled events.
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        Ok(self
            .queues
            .with(py, |queues| (queues.accepted, queues.handled))?)
    }

    /// See [`Channel::handled_at`](crate::user::channel::Channel::handled_at).
    pub fn handled_at(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.queues.with(py, |queues| queues.handled_at)?)
    }

    /// See [`Channel::has_results`](crate::user::channel::Channel::has_results).
    pub fn has_results(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| !queues.results.is_empty())?)
    }

    /// Nothing crosses a process boundary.
    pub fn bytes(&self, _py: Python<'_>) -> PyResult<(u64, u64)> {
        Ok((0, 0))
    }

    /// See [`Channel::may_sleep`](crate::user::channel::Channel::may_sleep).
    pub fn may_sleep(&self, py: Python<'_>, interest: Interest) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| {
            let there = queues.finished
                || interest.results && !queues.results.is_empty()
                || interest.space && queues.queued() < queues.limit
                || interest.handled && queues.is_settled();
            queues.watched |= !there && (interest.handled || interest.space && interest.results);
            !there
        })?)
    }

    /// No more events will come.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        self.queues.with(py, |queues| queues.input_ended = true)?;
        self.function.event.wake(py);
        Ok(Offer::Sent)
    }

    /// The stream is cancelled: queued events are not handled, and results are dropped.
    pub fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let left = self.queues.with(py, |queues| {
            queues.cancelled = true;
            queues.input_ended = true;
            std::mem::take(&mut queues.events)
        })?;
        drop(left);
        self.function.event.wake(py);
        Ok(())
    }

    /// Whether no event will come any more.
    pub fn has_input_ended(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| queues.input_ended)?)
    }

    // The function's half.

    /// The function has asked for an event before this stream was there.
    pub fn asked(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.queues.with(py, |queues| queues.asked = true)?)
    }

    /// Whether the function is done with all that was sent, and may yet be sent more.
    pub fn is_at_rest(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| {
            queues.queued() == 0 && !queues.input_ended && !queues.finished
        })?)
    }

    /// See [`Port::is_cancelled`](crate::function::port::Port::is_cancelled).
    #[inline]
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.queues
            .with(py, |queues| queues.cancelled)
            .unwrap_or(false)
    }

    /// See [`Port::next_event`](crate::function::port::Port::next_event).
    #[inline]
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        let (next, freed, watched) = self.queues.with(py, |queues| {
            queues.asked = true;
            let freed = queues.handled != queues.delivered;
            queues.handled = queues.delivered;
            match queues.events.pop_front() {
                Some(event) => {
                    queues.delivered += 1;
                    if freed && queues.events.is_empty() {
                        queues.handled_at = ticks::now(); // events come one by one
                    }
                    (Next::Event(event), true, false)
                }
                None if queues.input_ended => {
                    (Next::Ended, freed, std::mem::take(&mut queues.watched))
                }
                None => {
                    if freed {
                        queues.handled_at = ticks::now();
                    }
                    (Next::Empty, freed, std::mem::take(&mut queues.watched))
                }
            }
        })?;
        if freed {
            self.user.send.wake(py);
            self.user.closing.wake(py);
        }
        if watched {
            self.user.wake_receivers(py);
        }
        Ok(next)
    }

    /// See [`Port::wait_event`](crate::function::port::Port::wait_event).
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.function.wait_event(py, &self.event_loop).map(Some)
    }

    /// The loop that the function runs in.
    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// Where the function waits for an event.
    pub fn event_wait(&self) -> &Wait {
        &self.function.event
    }

    /// See [`Port::push`](crate::function::port::Port::push).
    #[inline]
    pub fn push(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.queues.with(py, |queues| {
            if queues.results.len() >= queues.limit {
                return false;
            }
            queues.results.push_back(result.clone().unbind());
            true
        })?)
    }

    /// See [`Port::flush`](crate::function::port::Port::flush).
    pub fn flush(&self, py: Python<'_>) {
        let there = self
            .queues
            .with(py, |queues| !queues.results.is_empty() || queues.finished);
        if there.unwrap_or(true) {
            self.user.wake_receivers(py);
        }
    }

    /// See [`Port::wait_space`](crate::function::port::Port::wait_space).
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.function
            .space
            .start(self.event_loop.bind(py))
            .map(Some)
    }

    /// Where the function waits for room.
    pub fn space_wait(&self) -> &Wait {
        &self.function.space
    }

    /// See [`Port::event`](crate::function::port::Port::event).
    pub fn event(&self, py: Python<'_>) -> u64 {
        self.queues.with(py, |queues| queues.delivered).unwrap_or(0)
    }

    /// See [`Port::finish`](crate::function::port::Port::finish).
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        let left = self.queues.with(py, |queues| {
            queues.finished = true;
            queues.outcome = Some(outcome);
            std::mem::take(&mut queues.events)
        });
        drop(left);
        self.user.wake(py);
    }
}
