//! Steps of keys: from one wait to the next.

use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::asyncio::CancelledError;
use pyo3::exceptions::{PyGeneratorExit, PyRuntimeError};
use pyo3::prelude::*;

use super::outlet::News;
use super::slot::{
    ANSWERS, AT_WORK, CANCEL_DUE, CANCELLED, CLOSING, DORMANT, ITS_TURN_IS_OVER, LAST, LIVE,
    QUEUED, SHARES, STARTED, SUSPENDED, TOOK, WAITS, size,
};
use super::table::{BUDGET, Inner, KeyTable};
use crate::errors;
use crate::ffi::asyncgen::{AsyncGen, Resumed};
use crate::lane_frames::{Name, Rest};
use crate::process::worker::due::RESULT;

/// Why a key does not run.
pub enum Pause {
    /// It waits for an event.
    Waits,
    /// It awaits something else, which its task has to see.
    Suspended(Py<PyAny>),
    /// It can go on once it is its turn again.
    Again,
    /// It is over, or was not to run at all.
    Over,
}

/// How a generator is to go on.
pub enum How {
    Resume,
    Throw(PyErr),
}
impl KeyTable {
    /// Runs a key until it has to wait. The caller has made its task the current one.
    #[inline]
    pub(super) fn run(&self, py: Python<'_>, id: u32, how: How) -> Pause {
        let begun = self.inner.with(py, |inner| {
            inner.budget = BUDGET;
            let slot = &mut inner.slots[id as usize];
            let name = Name {
                id,
                generation: slot.generation,
            };
            slot.flags |= STARTED;
            slot.flags &= !(WAITS | QUEUED | ITS_TURN_IS_OVER | SUSPENDED);
            let cancel = slot.take(CANCEL_DUE);
            let generator = slot.generator.take()?;
            let at = (slot.taken, slot.has(AT_WORK));
            Some((name, generator, slot.result.take(), cancel, at))
        });
        let Ok(Some((name, mut generator, result, cancel, at))) = begun else {
            if let Ok(DORMANT) = self.inner.with(py, |inner| inner.at(id).flags & DORMANT) {
                self.finish(py, id, Ok(())); // it gets no more events
            }
            return Pause::Over;
        };
        self.enters(py, id, at);
        let how = match how {
            How::Resume if cancel => How::Throw(cancelled()),
            how => how,
        };
        let before = self.stepping.swap(id, Relaxed);
        let stepped = self.advance(py, name, &mut generator, result, how);
        self.stepping.store(before, Relaxed);
        self.leaves();
        match stepped {
            Ok(pause) => {
                let kept = self.inner.with(py, |inner| {
                    if let Some(slot) = inner.slot(name) {
                        slot.generator = Some(generator);
                    }
                });
                debug_assert!(kept.is_ok());
                pause
            }
            Err(outcome) => {
                self.finish(py, id, outcome);
                Pause::Over
            }
        }
    }

    /// Err: what the function came to.
    pub(super) fn advance(
        &self,
        py: Python<'_>,
        name: Name,
        generator: &mut AsyncGen,
        mut result: Option<Py<PyAny>>,
        how: How,
    ) -> Result<Pause, Result<(), PyErr>> {
        let none = py.None();
        let none = none.bind(py);
        let mut came = match how {
            How::Resume => None,
            // At a `yield` nothing is awaited that could be cancelled: the generator is closed.
            How::Throw(error) => Some(match result.take() {
                Some(_) if is_cancellation(py, &error) => {
                    self.mark(py, name, CLOSING);
                    generator.close(py)
                }
                _ => generator.throw(py, error),
            }),
        };
        let mut answers = None;
        loop {
            let step = match came.take() {
                Some(step) => step,
                None => {
                    if let Some(made) = result.take() {
                        let answers = answers.unwrap_or_else(|| self.answers(py, name));
                        match self.outlet.result(py, name, &made, answers) {
                            Ok(true) => {
                                // The function may go on to compute for long.
                                if self.pace.flush_is_due() {
                                    self.outlet.flush_results(py);
                                }
                                if self.yielded(py, name) {
                                    return Ok(Pause::Again);
                                }
                            }
                            Ok(false) => {
                                let _ = self.inner.with(py, |inner| {
                                    inner.blocked = true;
                                    inner.at(name.id).result = Some(made);
                                });
                                return Ok(Pause::Again);
                            }
                            // What cannot be sent fails at the `yield` that made it.
                            Err(error) => {
                                came = Some(generator.throw(py, error));
                                continue;
                            }
                        }
                    }
                    generator.resume(py, none)
                }
            };
            match step {
                Ok(Resumed::Yielded(made)) => {
                    let flags = self.flags(py, name);
                    answers = Some(flags & ANSWERS != 0);
                    if flags & CLOSING != 0 {
                        let what = "async generator ignored GeneratorExit";
                        let error = PyRuntimeError::new_err(what);
                        return Err(Err(error));
                    }
                    if flags & CANCELLED != 0 || self.has_expired(py, name) {
                        self.mark(py, name, CLOSING);
                        came = Some(generator.close(py));
                        continue;
                    }
                    result = Some(self.traced(py, name, made));
                }
                Ok(Resumed::Awaiting(waiting)) => {
                    if waiting.is_none(py) {
                        let flags = self.flags(py, name);
                        if flags & WAITS != 0 {
                            return Ok(Pause::Waits);
                        }
                        if flags & ITS_TURN_IS_OVER != 0 {
                            return Ok(Pause::Again);
                        }
                    }
                    return Ok(Pause::Suspended(waiting));
                }
                Ok(Resumed::Finished) => return Err(Ok(())),
                Err(error)
                    if self.flags(py, name) & CLOSING != 0
                        && error.is_instance_of::<PyGeneratorExit>(py) =>
                {
                    return Err(Ok(()));
                }
                Err(error) => return Err(Err(error.into())),
            }
        }
    }

    /// A result of the running key was sent. Whether its turn is over.
    #[inline]
    pub(super) fn yielded(&self, py: Python<'_>, name: Name) -> bool {
        let spend = |inner: &mut Inner| {
            if self.has_state
                && let Some(kept) = &mut inner.at(name.id).state
            {
                kept.passes(RESULT);
            }
            inner.budget = inner.budget.saturating_sub(1);
            inner.budget == 0
        };
        self.inner.with(py, spend).unwrap_or(true)
    }

    #[inline]
    pub(super) fn flags(&self, py: Python<'_>, name: Name) -> u16 {
        let flags = |inner: &mut Inner| inner.at(name.id).flags;
        self.inner.with(py, flags).unwrap_or(0)
    }

    /// Whether the results of a key are an answer.
    #[cold]
    fn answers(&self, py: Python<'_>, name: Name) -> bool {
        self.flags(py, name) & ANSWERS != 0
    }

    pub(super) fn mark(&self, py: Python<'_>, name: Name, flag: u16) {
        let _ = self
            .inner
            .with(py, |inner| inner.at(name.id).set(flag, true));
    }

    /// Whether the time of a key for its event is up.
    #[inline]
    pub(super) fn has_expired(&self, py: Python<'_>, name: Name) -> bool {
        let deadline = self.deadline.and_then(|_| self.deadline_of(py, name.id));
        deadline.is_some_and(|deadline| deadline.has_expired(py))
    }

    /// The function of a key has ended.
    pub(super) fn finish(&self, py: Python<'_>, id: u32, outcome: Result<(), PyErr>) {
        let outcome = match self.deadline.and_then(|_| self.deadline_of(py, id)) {
            None => outcome,
            Some(deadline) => deadline.outcome(py, outcome).unwrap_or(Ok(())),
        };
        let outcome = outcome.map_err(|error| match is_cancellation(py, &error) {
            true => errors::closed("the stream function was cancelled"),
            false => error,
        });
        let outcome = outcome.and_then(|()| self.check_progress(py, id));
        if outcome.is_ok() && self.restart(py, id) {
            return;
        }
        let ended = self.inner.with(py, |inner| {
            let name = inner.name(id);
            let slot = &mut inner.slots[id as usize];
            let at_work = slot.take(AT_WORK);
            let answers = slot.take(ANSWERS);
            let mut bytes = if at_work { size(slot.current) } else { 0 };
            let mut over = std::mem::take(slot);
            let rest = Rest {
                handled: over.untold + u32::from(at_work && outcome.is_ok()),
                in_hand: at_work && outcome.is_err(),
            };
            slot.generation = name.generation;
            slot.set(SHARES, over.has(SHARES));
            // What it has not taken counts as handled: nothing waits for it any more.
            let mut left = Vec::new();
            while let Some((event, len)) = over.pop() {
                bytes += size(len);
                left.push(event);
            }
            inner.events += left.len() as u64 + u64::from(at_work);
            inner.bytes += bytes;
            inner.live -= 1;
            inner.forget_trace(id);
            (name, answers, rest, (over, left))
        });
        let Ok((name, answers, rest, over)) = ended else {
            return;
        };
        drop(over);
        if answers {
            let answer = match &outcome {
                Ok(()) => News::Answered,
                Err(_) => News::AtFault,
            };
            self.tell(py, name, answer);
        }
        self.tell(py, name, News::Ended(rest, outcome));
    }

    /// Tells something of a key, now or once there is room, in order.
    fn tell(&self, py: Python<'_>, name: Name, news: News) {
        let waits = self.inner.with(py, |inner| !inner.unsent.is_empty());
        let unsent = match waits {
            Ok(false) => self.outlet.tell(py, name, news),
            _ => Some(news),
        };
        if let Some(news) = unsent {
            let _ = self.inner.with(py, |inner| {
                inner.blocked = true;
                inner.unsent.push_back((name, news));
            });
        }
    }

    /// Fails for a function that has returned and taken no event: run anew, it would do that for ever.
    fn check_progress(&self, py: Python<'_>, id: u32) -> PyResult<()> {
        let stuck = self.inner.with(py, |inner| {
            let slot = &inner.slots[id as usize];
            let ends = slot.has(CANCELLED) || slot.event.is_none();
            inner.terms.restarts && !ends && !slot.has(TOOK)
        })?;
        match stuck {
            true => Err(errors::closed(
                "the function has returned without taking the event that waits for it; with \
                 `finished_keys=\"restart\"`, it would be run anew for that event for ever",
            )),
            false => Ok(()),
        }
    }

    /// Keeps a key whose function has returned, where that is agreed, so that its next event runs the
    /// function anew: one that is there already, or one that is on its way. Whether it does.
    fn restart(&self, py: Python<'_>, id: u32) -> bool {
        let again = self.inner.with(py, |inner| {
            let slot = &inner.slots[id as usize];
            let more = slot.event.is_some();
            let ends = slot.has(CANCELLED) || slot.has(LAST) && !more;
            if !inner.terms.restarts || ends {
                return None;
            }
            let name = inner.name(id);
            inner.forget_trace(id);
            if inner.slots[id as usize].take(AT_WORK) {
                inner.handled(id, 1, size(inner.slots[id as usize].current));
            }
            let slot = &mut inner.slots[id as usize];
            let answers = slot.take(ANSWERS);
            slot.flags = slot.flags & (LIVE | LAST | SHARES) | DORMANT;
            let over = (
                slot.generator.take(),
                slot.deadline.take(),
                slot.state.take(),
            );
            Some((name, answers, more, slot.taken, over))
        });
        let Ok(Some((name, answers, more, taken, _over))) = again else {
            return false;
        };
        if answers {
            self.tell(py, name, News::Answered);
        }
        self.save_anew(py, name, taken);
        if more {
            self.awake(py, name, &[]);
            let _ = self.inner.with(py, |inner| inner.queue(id));
        } else {
            // The caller ends the key, unless it has sent more.
            self.tell(py, name, News::Returned(taken));
        }
        true
    }

    /// Calls the function of a dormant key, which begins with this snapshot if there is one.
    pub(super) fn awake(&self, py: Python<'_>, name: Name, state: &[u8]) {
        let taken = self.inner.with(py, |inner| inner.at(name.id).taken);
        self.enters(py, name.id, (taken.unwrap_or(0), false));
        let begun = self.begin(py, name, state);
        self.leaves();
        match begun {
            Ok(generator) => {
                let generator = AsyncGen::of_owner(py, generator);
                let _ = self.inner.with(py, |inner| {
                    if let Some(slot) = inner.slot(name) {
                        slot.set(DORMANT, false);
                        slot.generator = Some(generator);
                    }
                });
            }
            Err(error) => self.finish(py, name.id, Err(error)),
        }
    }
}

fn cancelled() -> PyErr {
    CancelledError::new_err(())
}

fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<CancelledError>(py)
}
