//! `send`, `recv` and their relatives: awaitables that complete at once whenever they can.
//!
//! An operation begins with its first step, so one that is never awaited does nothing. A cancelled
//! operation has done nothing either, except `send_batch`, which may have sent a part.

use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::cell::GilCell;
use crate::codec::ArraySpec;
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::ffi::iterate::next_of;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::flow::{Interest, Offer, Take, WhenFull};
use crate::user::batch::Batch;
use crate::user::state::StreamCore;
use crate::user::stuck_sender;
use crate::wait::complete;

/// The kinds of operations.
pub enum What {
    /// Send one event.
    Send(Py<PyAny>),
    /// Send all events of this iterator.
    SendBatch(Py<PyAny>),
    /// Send the events that were put back.
    SendPutBack,
    /// Receive one result; a private copy of it, or not.
    Recv(bool),
    /// Receive at least one result, and at most this many, as `Recv` does.
    RecvBatch(usize, bool),
    /// Lend an array like this.
    Loan(ArraySpec),
    /// End the input, for this reason.
    End(String),
    /// Wait, while closing, until the stream may have ended, or there is a result that no other task
    /// will take. Ends after any wake-up.
    Closing,
    /// Wait, while another task receives, until every event may be handled. Ends after any wake-up.
    Handled,
}

impl What {
    /// The method of `Stream` that makes the operation. None for an operation of velo itself.
    fn method(&self) -> Option<&'static str> {
        match self {
            What::Send(_) => Some("send(...)"),
            What::SendBatch(_) => Some("send_batch(...)"),
            What::Recv(_) => Some("recv()"),
            What::RecvBatch(..) => Some("recv_batch(...)"),
            What::Loan(_) => Some("loan(...)"),
            What::End(_) => Some("end()"),
            What::SendPutBack | What::Closing | What::Handled => None,
        }
    }
}

/// One pending operation on a stream.
#[pyclass(frozen, module = "velo._core")]
pub struct Operation {
    core: Arc<StreamCore>,
    progress: GilCell<Progress>,
}

struct Progress {
    /// None once done.
    what: Option<What>,
    /// The operation was awaited, or given up.
    begun: bool,
    /// The future that the task sleeps on, and the place where it waits.
    asleep: Option<(Place, Py<PyAny>)>,
}

#[derive(Clone, Copy)]
enum Place {
    Sending,
    Lending,
    Receiving,
    Closing,
}

impl Operation {
    /// An operation that has not begun.
    pub fn new(core: Arc<StreamCore>, what: What) -> Self {
        let progress = Progress {
            what: Some(what),
            begun: false,
            asleep: None,
        };
        Operation {
            core,
            progress: GilCell::new(progress),
        }
    }

    /// Runs until the operation is done or has to wait.
    #[inline]
    pub fn next(&self, py: Python<'_>) -> PyResult<Step> {
        self.progress
            .with(py, |progress| self.advance(py, progress))?
    }

    /// Gives up.
    pub fn stop(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.progress.with(py, |progress| {
            self.stop_waiting(py, progress);
            progress.begun = true;
            progress.what = None;
        })?)
    }

    fn advance(&self, py: Python<'_>, progress: &mut Progress) -> PyResult<Step> {
        progress.begun = true;
        let Some(what) = progress.what.as_mut() else {
            return Err(PyRuntimeError::new_err(
                "cannot await the same stream operation twice",
            ));
        };
        self.core.check_loop(py)?;
        let resumed = progress.asleep.take().is_some();
        if !resumed && self.core.turn.is_over() {
            return Ok(Step::Yield(py.None()));
        }
        let outcome = match what {
            What::Send(event) => self.send_one(py, event.bind(py)),
            What::SendBatch(source) => self.send_batch(py, &source.clone_ref(py)),
            What::SendPutBack => self.send_all_put_back(py),
            What::Recv(private) => self.recv(py, *private),
            What::RecvBatch(max, private) => self.recv_batch(py, *max, *private),
            What::Loan(spec) => self.loan(py, spec),
            What::End(why) => self.end(py, why),
            What::Closing => self.wait_for_end(py, resumed),
            What::Handled => self.wait_until_handled(py, resumed),
        };
        match outcome {
            Ok(Step::Yield(future)) => {
                let place = match what {
                    What::Send(_) | What::SendBatch(_) | What::SendPutBack => Place::Sending,
                    What::Loan(_) => Place::Lending,
                    What::End(_) | What::Closing | What::Handled => Place::Closing,
                    What::Recv(_) | What::RecvBatch(..) => Place::Receiving,
                };
                progress.asleep = Some((place, future.clone_ref(py)));
                Ok(Step::Yield(future))
            }
            done => {
                progress.what = None;
                done
            }
        }
    }

    fn send_one(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Step> {
        self.core.put_back_what_was_read(py)?;
        loop {
            self.core.check_open(py)?;
            if self.core.full == WhenFull::DropOldest {
                self.core.send_newest(py, event)?;
                return Ok(Step::Return(py.None()));
            }
            match self.core.offer(py, event)? {
                Offer::Sent => {
                    self.core.count_and_flush(py, 1)?;
                    return Ok(Step::Return(py.None()));
                }
                Offer::Full if self.core.full == WhenFull::Error => {
                    return Err(self.buffer_full(py, 0, event));
                }
                Offer::Full => {
                    if let Some(step) = self.wait_for_room(py)? {
                        return Ok(step);
                    }
                }
            }
        }
    }

    fn wait_for_room(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        if self.core.channel.is_finished(py)? {
            return Err(self.core.ended_early(py));
        }
        self.core.spin(py, Interest::SPACE)?;
        let step = self
            .core
            .sleep(py, &self.core.waits.send, Interest::SPACE)?;
        if step.is_some() {
            stuck_sender::watch(py, &self.core)?;
        }
        Ok(step)
    }

    /// The error of a stream that does not wait for room, or that of its end.
    #[cold]
    fn buffer_full(&self, py: Python<'_>, sent: u64, event: &Bound<'_, PyAny>) -> PyErr {
        match self.core.channel.is_finished(py) {
            Ok(true) => self.core.ended_early(py),
            Ok(false) => errors::buffer_full(&self.core.name, sent, event),
            Err(error) => error,
        }
    }

    fn send_batch(&self, py: Python<'_>, source: &Py<PyAny>) -> PyResult<Step> {
        self.core.put_back_what_was_read(py)?;
        let mut batch = Batch::new(&self.core);
        let outcome = self.core.check_open(py).and_then(|()| {
            if let Some(step) = self.send_put_back(py)? {
                return Ok(step);
            }
            loop {
                let Some(event) = next_of(source.bind(py))? else {
                    return Ok(Step::Return(py.None()));
                };
                if self.core.full == WhenFull::DropOldest {
                    self.core.send_newest(py, &event)?;
                    continue;
                }
                match self.core.offer(py, &event)? {
                    Offer::Sent => batch.add(py)?,
                    Offer::Full if self.core.full == WhenFull::Error => {
                        return Err(self.buffer_full(py, batch.sent(), &event));
                    }
                    Offer::Full => {
                        batch.flush(py)?;
                        self.core.put_back(py, event.unbind())?;
                        if let Some(step) = self.send_put_back(py)? {
                            return Ok(step);
                        }
                    }
                }
            }
        });
        batch.flush(py)?;
        outcome
    }

    fn send_all_put_back(&self, py: Python<'_>) -> PyResult<Step> {
        self.core.check_open(py)?;
        let step = self.send_put_back(py)?;
        Ok(step.unwrap_or_else(|| Step::Return(py.None())))
    }

    /// Sends the events that were put back; the step to take while there is no room for them.
    fn send_put_back(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        while !self.core.send_stash(py)? {
            if let Some(step) = self.wait_for_room(py)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    fn loan(&self, py: Python<'_>, spec: &ArraySpec) -> PyResult<Step> {
        loop {
            self.core.check_open(py)?;
            if let Some(array) = self.core.channel.loan(py, spec)? {
                return Ok(Step::Return(array));
            }
            if self.core.channel.is_finished(py)? {
                return Err(self.core.ended_early(py));
            }
            let interest = Interest {
                loan: spec.len(),
                ..Interest::NOTHING
            };
            if let Some(step) = self.core.sleep(py, &self.core.waits.loan, interest)? {
                return Ok(step);
            }
        }
    }

    fn recv(&self, py: Python<'_>, private: bool) -> PyResult<Step> {
        self.core.check_thread()?;
        loop {
            match self.core.take_as(py, private)? {
                Take::Item(result) => {
                    self.core.touch(py)?;
                    self.core.channel.flush_results(py)?;
                    return Ok(Step::Return(result));
                }
                Take::Ended => return Err(self.core.why_over(py)),
                Take::Empty => {
                    if let Some(step) = self.wait_for_results(py, Interest::RESULTS)? {
                        return Ok(step);
                    }
                }
            }
        }
    }

    fn recv_batch(&self, py: Python<'_>, max: usize, private: bool) -> PyResult<Step> {
        self.core.check_thread()?;
        let results = PyList::empty(py);
        while results.len() < max {
            match self.core.take_as(py, private) {
                Ok(Take::Item(result)) => results.append(result)?,
                Ok(_) if !results.is_empty() => break,
                Ok(Take::Ended) => return Err(self.core.why_over(py)),
                Ok(Take::Empty) => {
                    if let Some(step) = self.wait_for_results(py, Interest::RESULTS)? {
                        return Ok(step);
                    }
                }
                Err(error) if results.is_empty() => return Err(error.into()),
                Err(error) => {
                    // The results before it arrive first.
                    self.core.defer(py, error)?;
                    break;
                }
            }
        }
        self.core.touch(py)?;
        self.core.channel.flush_results(py)?;
        Ok(Step::Return(results.into_any().unbind()))
    }

    fn wait_for_end(&self, py: Python<'_>, resumed: bool) -> PyResult<Step> {
        self.core.check_thread()?;
        if resumed || self.core.state.with(py, |state| state.is_over())? {
            return Ok(Step::Return(py.None()));
        }
        // A receiver takes the results, and its end wakes this; otherwise they wake this.
        let results = !self.core.has_receiver(py)?;
        let space = !self.core.state.with(py, |state| state.has_told_end())?;
        let interest = Interest {
            results,
            space,
            throughput: results && space,
            ..Interest::NOTHING
        };
        self.core.channel.flush_results(py)?;
        let step = self.core.sleep(py, &self.core.waits.closing, interest)?;
        Ok(step.unwrap_or_else(|| Step::Return(py.None())))
    }

    fn wait_until_handled(&self, py: Python<'_>, resumed: bool) -> PyResult<Step> {
        self.core.check_thread()?;
        let (sent, handled) = self.core.channel.progress(py)?;
        if resumed || sent == handled || self.core.state.with(py, |state| state.is_over())? {
            return Ok(Step::Return(py.None()));
        }
        let interest = Interest {
            handled: true,
            ..Interest::NOTHING
        };
        let step = self.core.sleep(py, &self.core.waits.closing, interest)?;
        Ok(step.unwrap_or_else(|| Step::Return(py.None())))
    }

    fn wait_for_results(&self, py: Python<'_>, interest: Interest) -> PyResult<Option<Step>> {
        self.core.channel.flush_results(py)?;
        self.core.spin(py, interest)?;
        self.core.sleep(py, &self.core.waits.recv, interest)
    }

    fn end(&self, py: Python<'_>, why: &str) -> PyResult<Step> {
        while !self.core.try_end(py, why)? {
            if let Some(step) = self
                .core
                .sleep(py, &self.core.waits.closing, Interest::SPACE)?
            {
                return Ok(step);
            }
        }
        Ok(Step::Return(py.None()))
    }

    /// The future that its task sleeps on, while it waits to send.
    fn sleeps_on(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.progress.with(py, |progress| match &progress.asleep {
            Some((Place::Sending, future)) => Some(future.clone_ref(py)),
            _ => None,
        })?)
    }

    #[cold]
    fn warn_never_awaited(&self, py: Python<'_>, method: &str) {
        let name = &self.core.name;
        let text = format!(
            "`{method}` of stream `{name}` was never awaited, so it did nothing: write \
             `await stream.{method}`"
        );
        let Ok(text) = std::ffi::CString::new(text) else {
            return;
        };
        let category = py.get_type::<PyRuntimeWarning>();
        if let Err(error) = PyErr::warn(py, &category, &text, 1) {
            error.write_unraisable(py, None); // warnings are errors, and a destructor raises none
        }
    }

    fn stop_waiting(&self, py: Python<'_>, progress: &mut Progress) {
        let Some((place, future)) = progress.asleep.take() else {
            return;
        };
        let waits = &self.core.waits;
        match place {
            Place::Sending => waits.send.clear_if(py, &future),
            Place::Lending => waits.loan.clear_if(py, &future),
            Place::Receiving => waits.recv.clear_if(py, &future),
            Place::Closing => waits.closing.clear_if(py, &future),
        }
    }
}

impl Drop for Operation {
    /// Ends the wait of a task that is gone. An operation that was never awaited has done nothing, which
    /// is a mistake of its caller: it warns, as a coroutine does.
    fn drop(&mut self) {
        destroy(|py| {
            let forgotten = self.progress.with(py, |progress| {
                self.stop_waiting(py, progress);
                match &progress.what {
                    Some(what) if !progress.begun => what.method(),
                    _ => None,
                }
            });
            if let Ok(Some(method)) = forgotten {
                self.warn_never_awaited(py, method);
            }
        });
    }
}

impl Awaitable for Operation {
    #[inline]
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        Ok(slf.get().next(slf.py())?)
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().stop(slf.py())?;
        Err(error)
    }
}

#[pymethods]
impl Operation {
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stop(py)
    }

    /// While its task sleeps: frees the place where it waits. The task sleeps until `_resume`.
    fn _pause(&self, py: Python<'_>) -> PyResult<()> {
        let future = self.sleeps_on(py)?;
        if let Some(future) = future {
            self.core.waits.send.clear_if(py, &future);
        }
        Ok(())
    }

    /// Wakes its task.
    fn _resume(&self, py: Python<'_>) -> PyResult<()> {
        let future = self.sleeps_on(py)?;
        if let Some(future) = future {
            self.core.waits.send.clear_if(py, &future);
            complete(future.bind(py));
        }
        Ok(())
    }
}

coroutine_methods!(Operation);
