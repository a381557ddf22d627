//! The output of a stream: taking results, its end, and the tasks that iterate over it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyWeakrefReference;

use crate::errors::{self, Thrown};
use crate::flow::Take;
use crate::user::state::StreamCore;

impl StreamCore {
    /// Takes the next result, counts it and remembers the end.
    #[inline]
    pub fn take(&self, py: Python<'_>) -> Result<Take, Thrown> {
        self.take_as(py, false)
    }

    /// As `take`; the receiver of a `private` result may write to it.
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

    /// Takes the available results, at most `max`. Returns their number, and whether the stream has
    /// ended. An error comes after the results before it, with the next call.
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

    /// The running task begins an iteration over the results. Returns the iteration's number.
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

    /// Whether another task is going to take the results.
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

    /// The reason why there are no more results.
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
}

fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CURRENT.import(py, "asyncio", "current_task")?.call0()
}
