//! What lanes say: results, what was handled, and ends.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answers::unknown;
use super::index::Stage;
use super::journal::Took;
use super::keyed::Keys;
use super::lane::Lane;
use super::routing::Out;
use super::tracking::End;
use crate::errors;
use crate::lane_frames::{Message, Name};
use crate::process::client::blame::Death;
use crate::process::client::told::Told;

/// So many messages of a lane are read before it is another's turn.
const BATCH: usize = 128;

impl Keys {
    /// Reads what lanes say. Whether there was anything.
    pub(super) fn read(&self, py: Python<'_>) -> PyResult<bool> {
        let (lanes, kept) = self
            .state
            .with(py, |state| (state.ways(), state.keep.is_some()))?;
        let mut progress = false;
        for (number, way) in lanes {
            let mut results = 0;
            while results < BATCH {
                match way.told(py, kept) {
                    Ok(Told::Message(message)) => {
                        results += 1;
                        self.take_message(py, number, message)?;
                        if self.has_failed(py)? {
                            break;
                        }
                    }
                    Ok(Told::Nothing) => break,
                    Ok(Told::Over(error, death)) => {
                        self.heard(py, number, results)?;
                        self.lane_is_over(py, number, error, death)?;
                        progress = true;
                        break;
                    }
                    Err(error) => {
                        self.state
                            .with(py, |state| state.error = state.error.take().or(Some(error)))?;
                        return Ok(true);
                    }
                }
            }
            if results > 0 {
                progress = true;
                self.heard(py, number, results)?;
                way.read(py)?;
            }
        }
        Ok(progress)
    }

    /// So many messages of a lane were read.
    fn heard(&self, py: Python<'_>, number: usize, messages: usize) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            if messages > 0 {
                state.lanes[number].heard = true;
                state.stillborn = 0;
            }
        })?)
    }

    /// A lane has ended.
    fn lane_is_over(
        &self,
        py: Python<'_>,
        number: usize,
        error: Option<PyErr>,
        death: Option<Death>,
    ) -> PyResult<()> {
        let closing = self.state.with(py, |state| {
            let lane = &mut state.lanes[number];
            lane.over = true;
            let has_left = lane.left && lane.ids.live() == 0;
            state.closing || has_left
        })?;
        match (error, death) {
            _ if closing => Ok(()),
            (Some(error), Some(death)) => self.lane_died(py, number, &error, death),
            (Some(error), None) => self.set_error(py, error),
            (None, _) => self.set_error(py, errors::closed("a lane has ended")),
        }
    }

    #[inline]
    pub(super) fn take_message(
        &self,
        py: Python<'_>,
        number: usize,
        message: Message,
    ) -> PyResult<()> {
        match message {
            Message::Result(name, result, hash) => {
                let differs = self.state.with(py, |state| {
                    let ids = &state.lanes[number].ids;
                    let Some(entry) = ids.entry(name.id, name.generation) else {
                        return state.lanes[number].unknown(name).map(|()| None);
                    };
                    let known = state.index.entry(entry);
                    if let Some(journal) = &mut known.journal
                        && let Some(keep) = state.keep
                    {
                        match journal.takes(hash, keep) {
                            Took::New => {}
                            Took::Repeated => return Ok(None),
                            Took::Differs(number) => return Ok(Some((entry, number))),
                        }
                    }
                    let Some(key) = &known.key else {
                        return Err(unknown());
                    };
                    let item = PyTuple::new(py, [key.bind(py), result.bind(py)])?;
                    state.out.push_back(Out::Item(item.into_any().unbind()));
                    state.soil_by_result(entry);
                    state.counts.results += 1;
                    Ok(None)
                })??;
                match differs {
                    None => Ok(()),
                    Some((entry, number)) => self.diverges(py, entry, number),
                }
            }
            Message::Saved(name, count, saved) => self.state.with(py, |state| {
                let ids = &state.lanes[number].ids;
                let Some(entry) = ids.entry(name.id, name.generation) else {
                    return state.lanes[number].unknown(name);
                };
                if state.saving().is_some() {
                    return state.run_saved(py, entry, count, &saved);
                }
                let known = state.index.entry(entry);
                let journal = known.journal.as_mut();
                if !journal.is_some_and(|journal| journal.saved(count, &saved)) {
                    return Err(errors::corrupted("a snapshot of events that were not sent"));
                }
                if known.unsent() > 0 && known.stage == Stage::Open {
                    state.send_waiting(py, entry); // some may have waited for it
                }
                Ok(())
            })?,
            Message::Handled(handled) => Ok(self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                lane.handled = handled.events;
                lane.handled_bytes = handled.bytes;
                for (name, count) in handled.keys {
                    let ids = &state.lanes[number].ids;
                    if let Some(entry) = ids.entry(name.id, name.generation) {
                        let known = state.index.entry(entry);
                        known.in_flight = known.in_flight.saturating_sub(count);
                        state.works(entry, count);
                        state.handled_by(entry, count);
                        let known = state.index.entry(entry);
                        if known.unsent() > 0 && known.stage == Stage::Open {
                            state.send_waiting(py, entry);
                        }
                        state.unload(entry);
                    }
                }
            })?),
            Message::Answer(name, result, hash) => self.answer(py, number, name, result, hash),
            Message::Answered(name) => self.answered(py, number, name),
            Message::AtFault(name) => self.at_fault(py, number, name),
            Message::Returned(name, taken) => Ok(self.state.with(py, |state| {
                let ids = &state.lanes[number].ids;
                if let Some(entry) = ids.entry(name.id, name.generation) {
                    let known = state.index.entry(entry);
                    // Otherwise the function runs anew by now.
                    if known.sent == taken && known.unsent() == 0 {
                        state.end(py, entry);
                    }
                }
            })?),
            Message::Ended(name, rest, outcome) => {
                let ended = self.state.with(py, |state| {
                    let lane = &mut state.lanes[number];
                    let entry = lane.ids.entry(name.id, name.generation);
                    if entry.is_none() {
                        lane.unknown(name)?;
                    }
                    lane.ids.give_back(name.id);
                    if let Some(entry) = entry {
                        state.ends_at(py, entry, rest, outcome.is_err());
                    }
                    Ok::<_, PyErr>(entry.map(|entry| {
                        let journal = state.index.entry(entry).journal.as_ref();
                        let missing = journal.filter(|journal| journal.is_replaying());
                        (entry, missing.map(|journal| journal.next_result()))
                    }))
                })??;
                let end = End::Told(rest);
                match ended {
                    None => Ok(()), // an abandoned one
                    Some((entry, None)) => self.key_ended(py, entry, end, outcome),
                    Some((entry, Some(missing))) => {
                        // It has ended before it came as far as it did the first time.
                        let error = self.divergence(py, entry, missing, false)?;
                        error.set_cause(py, outcome.err());
                        self.key_ended(py, entry, end, Err(error))
                    }
                }
            }
        }
    }
}

impl Lane {
    /// It speaks of a key that has no entry: an error, unless the key was abandoned.
    pub(super) fn unknown(&self, name: Name) -> PyResult<()> {
        match self.ids.is_abandoned(name.id, name.generation) {
            true => Ok(()),
            false => Err(unknown()),
        }
    }
}
