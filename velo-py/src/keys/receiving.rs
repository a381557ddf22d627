//! What lanes say: results, what was handled, and ends.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::index::Stage;
use super::keyed::Keys;
use super::routing::{AfterEnd, OnError, Out};
use crate::errors;
use crate::lane_frames::Message;
use crate::lane_frames::Name;
use crate::process::client::lane::Told;

/// So many messages of a lane are read before it is another's turn.
const BATCH: usize = 128;

/// What is to be done about a key once the state is left.
enum After {
    Nothing,
    /// A place came back.
    Place,
}

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
                    Ok(Told::Over(error)) => {
                        self.lane_is_over(py, number, error)?;
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

    pub(super) fn lane_is_over(
        &self,
        py: Python<'_>,
        number: usize,
        error: Option<PyErr>,
    ) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.lanes[number].over = true;
            if !state.closing {
                let error = error.unwrap_or_else(|| errors::closed("a lane has ended"));
                state.error.get_or_insert(error);
            }
        })?)
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
                        if !known.waiting.is_empty() && known.stage == Stage::Open {
                            state.send_waiting(entry);
                        }
                    }
                }
            })?),
            Message::Ended(name, outcome) => {
                let after = self.ended(py, number, name, outcome)?;
                if let After::Place = after
                    && let Some(host) = self.state.with(py, |state| state.host(py))?
                {
                    host.call_method0(py, intern!(py, "give_place"))?;
                }
                Ok(())
            }
        }
    }

    /// A key has ended.
    fn ended(
        &self,
        py: Python<'_>,
        number: usize,
        name: Name,
        outcome: Result<(), PyErr>,
    ) -> PyResult<After> {
        let now = self.now();
        let (limited, gone, failed) = self.state.with(py, |state| {
            let ids = &mut state.lanes[number].ids;
            let Some(entry) = ids.entry(name.id, name.generation) else {
                return Err(unknown());
            };
            ids.give_back(name.id);
            state.counts.ended += 1;
            let known = state.index.entry(entry);
            let asked = known.ends || known.stage == Stage::Ending;
            if asked {
                state.ending -= 1;
            }
            let known = state.index.entry(entry);
            let key = known.key.as_ref().map(|key| key.clone_ref(py));
            let failed = outcome.err().map(|error| (key, error));
            let waits = !known.waiting.is_empty();
            let again = waits && (known.stage == Stage::Ending || failed.is_some());
            let restarts = waits && !asked && state.after_end == AfterEnd::Restart;
            let gone = if again || restarts {
                // What came since opens it anew.
                if !(known.stage == Stage::Ending) {
                    state.wanting += 1;
                }
                known.stage = Stage::Unopened;
                known.ends = false;
                state.unopened.push_back(entry);
                None
            } else if asked || failed.is_some() || state.after_end == AfterEnd::Restart {
                Some(state.forget(entry))
            } else {
                let known = state.index.entry(entry);
                let waiting = std::mem::take(&mut known.waiting);
                state.waiting -= waiting.len() as u64;
                state.counts.dropped += waiting.len() as u64;
                state.index.finish(entry, now);
                if state.index.finished() > state.most_finished
                    && let Some(oldest) = state.index.oldest_finished()
                {
                    Some(state.index.remove(oldest))
                } else {
                    None
                }
            };
            if state.told_end.is_none() && state.source.is_none() && !state.unopened.is_empty() {
                state.told_end = Some(0); // what opens anew is to be told as well
            }
            Ok((state.limited, gone, failed))
        })??;
        drop(gone);
        if let Some((key, error)) = failed {
            self.failed(py, key, error)?;
        }
        Ok(if limited {
            After::Place
        } else {
            After::Nothing
        })
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
            OnError::Raise => None,
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
                self.state
                    .with(py, |state| state.error = state.error.take().or(Some(error)))?;
            }
            Some(false) => {}
            Some(true) => {
                note()?;
                self.state
                    .with(py, |state| state.out.push_back(Out::Failed(key, error)))?;
            }
        }
        Ok(())
    }
}

fn unknown() -> PyErr {
    errors::corrupted("a worker speaks of a key that it was not given")
}
