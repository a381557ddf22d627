//! What lanes say: results, what was handled, and ends.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answers::unknown;
use super::index::Stage;
use super::keyed::Keys;
use super::routing::Out;
use super::tracking::End;
use crate::errors;
use crate::lane_frames::Message;
use crate::process::client::blame::Death;
use crate::process::client::lane::Told;

/// So many messages of a lane are read before it is another's turn.
const BATCH: usize = 128;

impl Keys {
    /// Reads what lanes say. Whether there was anything.
    pub(super) fn read(&self, py: Python<'_>) -> PyResult<bool> {
        let lanes = self.state.with(py, |state| state.ways())?;
        let mut progress = false;
        for (number, way) in lanes {
            let mut results = 0;
            while results < BATCH {
                match way.told(py) {
                    Ok(Told::Message(message)) => {
                        results += 1;
                        self.take_message(py, number, message)?;
                        if self.has_failed(py)? {
                            break;
                        }
                    }
                    Ok(Told::Nothing) => break,
                    Ok(Told::Over(error, death)) => {
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
                way.read(py)?;
            }
        }
        Ok(progress)
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
            state.lanes[number].over = true;
            state.closing
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
            Message::Result(name, result) => self.state.with(py, |state| {
                let Some(entry) = state.lanes[number].ids.entry(name.id, name.generation) else {
                    return Err(unknown());
                };
                let known = state.index.entry(entry);
                let Some(key) = &known.key else {
                    return Err(unknown());
                };
                let item = PyTuple::new(py, [key.bind(py), result.bind(py)])?;
                state.out.push_back(Out::Item(item.into_any().unbind()));
                state.counts.results += 1;
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
                        state.handled_by(entry, count);
                        let known = state.index.entry(entry);
                        if !known.waiting.is_empty() && known.stage == Stage::Open {
                            state.send_waiting(entry);
                        }
                    }
                }
            })?),
            Message::Answer(name, result) => self.answer(py, number, name, result),
            Message::Answered(name) => self.answered(py, number, name),
            Message::AtFault(name) => self.at_fault(py, number, name),
            Message::Returned(name, taken) => Ok(self.state.with(py, |state| {
                let ids = &state.lanes[number].ids;
                if let Some(entry) = ids.entry(name.id, name.generation) {
                    let known = state.index.entry(entry);
                    // Otherwise the function runs anew by now.
                    if known.sent == taken && known.waiting.is_empty() {
                        state.end(entry);
                    }
                }
            })?),
            Message::Ended(name, rest, outcome) => {
                let entry = self.state.with(py, |state| {
                    let ids = &mut state.lanes[number].ids;
                    let entry = ids.entry(name.id, name.generation);
                    if entry.is_some() {
                        ids.give_back(name.id);
                    }
                    entry
                })?;
                self.key_ended(py, entry.ok_or_else(unknown)?, End::Told(rest), outcome)
            }
        }
    }
}
