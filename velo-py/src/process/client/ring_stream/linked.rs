//! A stream as its link uses it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;
use velo_shm::{LaneActivity, Running};

use super::{RingStream, StreamState};
use crate::process::client::blame::Death;
use crate::process::client::link::{ClientLink, LinkedStream};

/// The signal that kills a worker which cannot end by itself.
const SIGKILL: i32 = 9;

impl LinkedStream for RingStream {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_number(&self, py: Python<'_>, number: u64) -> bool {
        let known = self.state.with(py, |state| state.at.number);
        known.is_ok_and(|known| known == number)
    }

    fn on_ready(&self, py: Python<'_>, link: &ClientLink) -> Option<u64> {
        let handled = self.handled_asleep(py);
        self.awake(link);
        if self.orphaned.load(Relaxed) {
            self.drop_results(py);
            return handled;
        }
        self.flush_results(py); // views may have been dropped
        let flushed = self.flush_backlog(py).map(drop);
        if let Err(error) = flushed.and_then(|()| self.catch_up(py)) {
            self.fail_with(py, error);
        }
        self.waits.wake(py);
        handled
    }

    fn on_ended(&self, py: Python<'_>, number: u64) {
        self.note(py, number, |state| state.ended = true);
    }

    fn on_asked(&self, py: Python<'_>, number: u64) {
        self.note(py, number, |state| state.asked = true);
    }

    fn check_up(&self, py: Python<'_>) -> bool {
        self.asleep.load(Relaxed) && self.look_again(py)
    }

    fn fail(&self, py: Python<'_>, error: PyErr) {
        self.fail_with(py, error);
    }

    fn is_limited(&self) -> bool {
        self.has_limits()
    }

    fn is_slow(&self, py: Python<'_>) -> PyResult<bool> {
        let here = |state: &mut StreamState| (state.at.link.clone(), state.at.slot);
        let (link, slot) = self.state.wait_with(py, here)?;
        Ok(link.slow.with(py, |slow| slow.has(slot))?)
    }

    fn event_in_worker(&self, py: Python<'_>, running: Running) -> Option<u64> {
        let look = |state: &mut StreamState| {
            let same = state.at.number == running.stream;
            same.then(|| match self.lane {
                true => LaneActivity::event_of(running.event),
                false => state.begun(running.event),
            })
        };
        self.state.wait_with(py, look).ok().flatten()
    }

    fn on_worker_gone(
        self: Arc<Self>,
        py: Python<'_>,
        running: Option<Running>,
        (make, replace): (&Bound<'_, PyAny>, &Bound<'_, PyAny>),
    ) -> PyResult<()> {
        let (error, death) = self.death(py, running, make)?;
        let Some(death) = death else {
            // The worker lives, and wrote over the link. Which function did so cannot be told: it
            // would do the same in another worker.
            self.fail_with(py, error);
            return Ok(());
        };
        if self.begins_elsewhere(py, &error, replace)? {
            return Ok(());
        }
        if self.lane {
            self.state
                .wait_with(py, |state| state.death = Some(death))?;
            self.fail_with(py, error);
            return Ok(()); // the caller has the keys take it from here
        }
        match self.leaves_worker(py, Some((&error, death))) {
            Ok(true) => {}
            Ok(false) => self.fail_with(py, error),
            Err(failed) => {
                failed.set_cause(py, Some(error));
                self.fail_with(py, failed);
            }
        }
        Ok(())
    }

    fn send_away(self: Arc<Self>, py: Python<'_>) -> PyResult<bool> {
        if self.lane {
            self.leaving.store(true, Relaxed);
            self.waits.wake(py); // the caller has the keys go
            return Ok(true);
        }
        self.leaves_worker(py, None)
    }
}

impl RingStream {
    /// Notes what the worker says of a stream, unless that one had the slot before.
    fn note(&self, py: Python<'_>, number: u64, what: impl FnOnce(&mut StreamState)) {
        let _ = self.state.with(py, |state| {
            if state.at.number == number {
                what(state);
            }
        });
        self.waits.wake(py);
    }

    /// The exception for a worker that is gone, and how it died; None if it lives.
    fn death(
        &self,
        py: Python<'_>,
        running: Option<Running>,
        make: &Bound<'_, PyAny>,
    ) -> PyResult<(PyErr, Option<Death>)> {
        self.state.wait_with(py, |state| {
            let at = &state.at;
            let here = running.filter(|r| (r.slot, r.stream) == (at.slot, at.number));
            let number = at.number;
            let (sent, handled) = state.progress_now();
            // The link's activity is ahead of what a busy function has reported as handled.
            let begun = match here {
                Some(running) if !self.lane => state.begun(running.event).saturating_sub(1),
                _ => 0,
            };
            let in_flight = sent.saturating_sub(handled.max(begun));
            let error = make.call1((&self.name, number, in_flight))?;
            let culprit = error.getattr_opt("culprit")?; // only of a `WorkerDied`
            let signal = error.getattr_opt("signal")?;
            let killed = signal.map(|is| is.extract()).transpose()?.flatten() == Some(SIGKILL);
            let death = culprit.map(|is| is.extract()).transpose()?.map(|culprit| {
                let event = here.map_or(0, |running| running.event);
                Death::from((culprit, event, killed))
            });
            Ok((PyErr::from_value(error), death))
        })?
    }
}
