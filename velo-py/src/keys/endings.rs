//! The end of a key: of its function, or of its worker.

use pyo3::intern;
use pyo3::prelude::*;

use super::index::{Entry, Stage};
use super::keyed::Keys;
use super::lane::Act;
use super::routing::{AfterEnd, OnError, Out};
use super::saved_run::Mark;
use super::sending::has_returned;
use super::tracking::End;
use crate::errors;

/// How many events a function has not taken that has ended, apart from those that its caller holds.
fn untaken(known: &Entry, end: End) -> usize {
    let again = known.journal.as_ref().map_or(0, |journal| journal.unsent());
    match end {
        End::Told(rest) => known.in_flight.saturating_sub(rest.handled) as usize + again as usize,
        End::Died { .. } => 0,
    }
}

impl Keys {
    /// A key has ended, and no lane knows it any more.
    pub(super) fn key_ended(
        &self,
        py: Python<'_>,
        entry: u32,
        end: End,
        outcome: Result<(), PyErr>,
    ) -> PyResult<()> {
        let requests = self.requests_of_ended(py, entry, &outcome)?;
        let now = self.now();
        let (limited, gone, failed, refused) = self.state.with(py, |state| {
            state.counts.ended += 1;
            let known = state.index.entry(entry);
            let mut untaken = untaken(known, end).saturating_sub(requests.unanswered());
            let mut asked = known.is_ending();
            if asked {
                state.ending -= 1;
            }
            asked &= !state.forestalls_unloading(entry);
            let outcome = match state.end_tracked(py, entry, end, outcome) {
                Some(outcome) => outcome,
                None => return (state.limited, None, None, None),
            };
            let known = state.index.entry(entry);
            // What comes from here on is for the next run of the function.
            let ended = known.is_ending() && !known.ends;
            let journal = known.journal.take();
            state.waiting -= journal.as_ref().map_or(0, |journal| journal.unsent());
            let key = known.key.as_ref().map(|key| key.clone_ref(py));
            let failed = outcome.err();
            let waits = !known.waiting.is_empty();
            let again = waits && (ended || failed.is_some());
            let restarts = waits && !asked && state.after_end == AfterEnd::Restart;
            let finishes = !asked && failed.is_none() && state.after_end != AfterEnd::Restart;
            if !known.cancelled {
                let mark = match finishes && !(again || restarts) {
                    true => Mark::Finished,
                    false => Mark::Ended,
                };
                state.mark(py, entry, mark);
            }
            let known = state.index.entry(entry);
            let raises = state.after_end == AfterEnd::Raise && failed.is_none() && !known.cancelled;
            let gone = if again || restarts {
                // What came since opens it anew.
                if !ended {
                    state.wanting += 1;
                }
                known.stage = Stage::Unopened;
                (known.ends, known.evicted) = (false, false);
                state.unopened.push_back(entry);
                None
            } else {
                let waiting = std::mem::take(&mut known.waiting);
                untaken += waiting.len() - waiting.numbered();
                state.waiting -= waiting.len() as u64;
                state.counts.dropped += waiting.len() as u64;
                match finishes {
                    true => state.finish_key(entry, now),
                    false => Some(state.forget(entry)),
                }
            };
            if again || restarts {
                state.tell_end_to(entry);
            }
            let failed = failed.map(|error| (key.as_ref().map(|key| key.clone_ref(py)), error));
            let refused = key.filter(|_| raises && untaken > 0);
            (state.limited, gone, failed, refused)
        })?;
        drop(gone);
        if let Some(key) = refused {
            self.refuse_untaken(py, key)?;
        }
        if let Some((key, error)) = failed
            && !requests.told()
        {
            self.failed(py, key, error)?;
        }
        self.requests_after_end(py, requests)?;
        if limited && let Some(host) = self.state.with(py, |state| state.host(py))? {
            host.call_method0(py, intern!(py, "give_permit"))?;
        }
        Ok(())
    }

    /// The function of a key has returned without events that it was to take, with `finished_keys="raise"`.
    fn refuse_untaken(&self, py: Python<'_>, key: Py<PyAny>) -> PyResult<()> {
        let error = has_returned(key.bind(py))?;
        match self.is_live_form(py)? {
            true => self.failed(py, Some(key), error), // the tasks that have sent them are gone
            false => self.set_error(py, error),
        }
    }

    /// A key ends with this error, although its function goes on in its lane, where it is cancelled.
    pub(super) fn drop_key(&self, py: Python<'_>, entry: u32, error: PyErr) -> PyResult<()> {
        self.state.with(py, |state| {
            let known = state.index.entry(entry);
            let name = known.name();
            let lane = &mut state.lanes[known.lane as usize];
            lane.ids.abandon(name.id);
            lane.outgoing.push_back(Act::Cancel(name));
        })?;
        self.key_ended(
            py,
            entry,
            End::Died {
                ran: true,
                event: 0,
            },
            Err(error),
        )
    }

    /// The function of a key has made another result than the first time, or none.
    pub(super) fn divergence(
        &self,
        py: Python<'_>,
        entry: u32,
        result: u64,
        differs: bool,
    ) -> PyResult<PyErr> {
        Ok(errors::diverged(&self.name_of(py, entry)?, result, differs))
    }

    /// The function of a key has made another result than the first time: the key ends.
    pub(super) fn diverges(&self, py: Python<'_>, entry: u32, result: u64) -> PyResult<()> {
        let error = self.divergence(py, entry, result, true)?;
        self.drop_key(py, entry, error)
    }

    /// Ends keys whose journals are full. Whether there was one.
    pub(super) fn fail_full(&self, py: Python<'_>) -> PyResult<bool> {
        let (full, keep) = self
            .state
            .with(py, |state| (std::mem::take(&mut state.full), state.keep))?;
        let any = !full.is_empty();
        for (entry, size) in full {
            let is_full = self.state.with(py, |state| {
                let known = state.index.entry(entry);
                known.stage == Stage::Open && known.journal.is_some() && !known.waiting.is_empty()
            })?;
            if is_full && let Some(keep) = keep {
                self.state.with(py, |state| {
                    let known = state.index.entry(entry);
                    let first = known.journal.as_ref().map_or(0, |j| j.accepted()) + 1;
                    state.fails_at(py, entry, first);
                })?;
                let error = errors::journal_full(&self.name_of(py, entry)?, size, keep.limit);
                self.drop_key(py, entry, error)?;
            }
        }
        Ok(any)
    }

    /// What the stream of a key is called.
    fn name_of(&self, py: Python<'_>, entry: u32) -> PyResult<String> {
        let (host, key) = self.state.with(py, |state| {
            let key = state.index.entry(entry).key.as_ref();
            let key = key.map(|key| key.clone_ref(py));
            (state.host(py), key)
        })?;
        match (host, key) {
            (Some(host), Some(key)) => host
                .call_method1(py, intern!(py, "name_of"), (key,))?
                .extract(py),
            _ => Ok("keyed".to_owned()),
        }
    }

    /// The function of a key has raised.
    pub(super) fn failed(
        &self,
        py: Python<'_>,
        key: Option<Py<PyAny>>,
        error: PyErr,
    ) -> PyResult<()> {
        let key = key.unwrap_or_else(|| py.None());
        let closing = self.state.with(py, |state| state.closing)?;
        if closing {
            return Ok(());
        }
        let call = self.state.with(py, |state| match &state.on_error {
            OnError::Raise | OnError::Hold => None,
            OnError::Drop => Some(false),
            OnError::Call(_) => Some(true),
        })?;
        let note = || -> PyResult<()> {
            let note = format!("in the stream of key {}", key.bind(py).repr()?);
            error
                .value(py)
                .call_method1(intern!(py, "add_note"), (note,))?;
            Ok(())
        };
        match call {
            None => {
                note()?;
                self.set_error(py, error)?;
            }
            Some(false) => {}
            Some(true) => {
                note()?;
                if self.is_live_form(py)? {
                    return self.call_on_error(py, key, &error);
                }
                self.state
                    .with(py, |state| state.out.push_back(Out::Failed(key, error)))?;
            }
        }
        Ok(())
    }
}
