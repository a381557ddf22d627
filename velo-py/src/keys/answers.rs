//! Messages of lanes about requests, and about keys that end before all of their requests were handled.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;

use super::index::{Stage, hash_of};
use super::journal::Took;
use super::keyed::Keys;
use super::lane::Act;
use super::requests::{Behind, LiveForm, Request};
use super::routing::{AfterEnd, OnError, State};
use super::sending::has_returned;
use crate::errors;
use crate::lane_frames::Name;

/// The remaining work for a key that has ended, once the index knows its end.
#[derive(Default)]
pub struct Ended {
    entry: Option<u32>,
    key: Option<Py<PyAny>>,
    /// The exception of its function was the answer to a request.
    told: bool,
    /// The error of requests that the key will not take; None if their answers are empty.
    refused: Option<PyErr>,
    /// How many requests were sent and not answered.
    unanswered: usize,
    behind: VecDeque<Behind>,
}

impl Ended {
    /// Whether the exception of the function needs no one else to be told.
    pub fn told(&self) -> bool {
        self.told
    }

    /// How many requests were sent and not answered before.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }
}

/// The oldest request of a key.
enum Oldest {
    Is(Arc<Request>),
    /// A result that came before, from a worker that has died.
    Repeated,
    /// A result that differs from the earlier one of this number.
    Differs(u32, u64),
    /// There is no request.
    Unknown,
}

impl Oldest {
    fn of(request: Option<Arc<Request>>) -> Self {
        request.map_or(Oldest::Unknown, Oldest::Is)
    }
}

impl State {
    /// The oldest request of a key; `takes` it from there.
    fn request(&mut self, entry: u32, takes: bool) -> Option<Arc<Request>> {
        let form = self.live_form.as_mut()?;
        let requests = form.requests.get_mut(&entry)?;
        if !takes {
            return requests.front().cloned();
        }
        let oldest = requests.pop_front();
        if requests.is_empty() {
            form.requests.remove(&entry);
        }
        oldest
    }
}

impl Keys {
    /// Whether events come from tasks, and not from a source.
    pub(super) fn is_live_form(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| state.live_form.is_some())?)
    }

    /// The oldest request of a key of a lane, for one that lives. Its journal may know that this is a
    /// repetition.
    fn oldest(
        &self,
        py: Python<'_>,
        number: usize,
        name: Name,
        takes: impl FnOnce(&mut State, u32) -> Oldest,
    ) -> PyResult<Oldest> {
        self.state.with(py, |state| {
            let ids = &state.lanes[number].ids;
            match ids.entry(name.id, name.generation) {
                Some(entry) => Ok(takes(state, entry)),
                None => state.lanes[number].unknown(name).map(|()| Oldest::Repeated),
            }
        })?
    }

    pub(super) fn answer(
        &self,
        py: Python<'_>,
        number: usize,
        name: Name,
        result: Py<PyAny>,
        hash: u64,
    ) -> PyResult<()> {
        let found = self.oldest(py, number, name, |state, entry| {
            if let Some(journal) = &mut state.index.entry(entry).journal
                && let Some(keep) = state.keep
            {
                match journal.takes(hash, keep) {
                    Took::New => {}
                    Took::Repeated => return Oldest::Repeated,
                    Took::Differs(number) => return Oldest::Differs(entry, number),
                }
            }
            state.counts.results += 1;
            Oldest::of(state.request(entry, false))
        })?;
        match found {
            Oldest::Is(request) => request.add(py, result),
            Oldest::Repeated => Ok(()),
            Oldest::Differs(entry, number) => self.diverges(py, entry, number),
            Oldest::Unknown => Err(unknown()),
        }
    }

    pub(super) fn answered(&self, py: Python<'_>, number: usize, name: Name) -> PyResult<()> {
        let found = self.oldest(py, number, name, |state, entry| {
            let journal = state.index.entry(entry).journal.as_mut();
            if journal.is_some_and(|journal| !journal.answers()) {
                return Oldest::Repeated;
            }
            Oldest::of(state.request(entry, true))
        })?;
        match found {
            Oldest::Is(request) => request.complete(py, Ok(())),
            Oldest::Repeated | Oldest::Differs(..) => Ok(()),
            Oldest::Unknown => Err(unknown()),
        }
    }

    pub(super) fn at_fault(&self, py: Python<'_>, number: usize, name: Name) -> PyResult<()> {
        let found = self.oldest(py, number, name, |state, entry| {
            Oldest::of(state.request(entry, false))
        })?;
        match found {
            Oldest::Is(request) => request.blame(py),
            Oldest::Repeated | Oldest::Differs(..) => Ok(()),
            Oldest::Unknown => Err(unknown()),
        }
    }

    /// An event of a key has ended too many workers, and is left out. If it is a request, this is its
    /// answer.
    pub(super) fn left_out(
        &self,
        py: Python<'_>,
        entry: u32,
        event: u64,
        error: &PyErr,
    ) -> PyResult<()> {
        let request = self.state.with(py, |state| {
            let known = state.index.entry(entry);
            let behind = known.journal.as_ref()?.requests_behind(event)?;
            let behind = behind + known.waiting.numbered();
            let requests = state.live_form.as_mut()?.requests.get_mut(&entry)?;
            requests.remove(requests.len().checked_sub(behind + 1)?)
        })?;
        match request {
            Some(request) => request.complete(py, Err(error.clone_ref(py))),
            None => Ok(()),
        }
    }

    /// Ends the requests that a key had when its function ended.
    pub(super) fn requests_of_ended(
        &self,
        py: Python<'_>,
        entry: u32,
        outcome: &Result<(), PyErr>,
    ) -> PyResult<Ended> {
        let found = self.state.with(py, |state| {
            let form = state.live_form.as_mut()?;
            let known = state.index.entry(entry);
            let dead = state.lanes[known.lane as usize].over;
            let key = known.key.as_ref()?.clone_ref(py);
            let mut sent = Vec::new();
            if let Some(requests) = form.requests.get_mut(&entry) {
                let gone = requests.len().saturating_sub(known.waiting.numbered());
                sent = requests.drain(..gone).collect();
                if requests.is_empty() {
                    form.requests.remove(&entry);
                }
            }
            let mut behind = form.behind.remove(&entry).unwrap_or_default();
            form.held -= Behind::events(&behind);
            let known = state.index.entry(entry);
            if outcome.is_err() && known.ends && !known.evicted && !known.waiting.is_empty() {
                behind.push_front(Behind::End); // the function has failed before it was told
            }
            Some((key, dead, sent, behind, state.after_end))
        })?;
        let Some((key, dead, sent, behind, after_end)) = found else {
            return Ok(Ended::default());
        };
        let mut ended = Ended {
            entry: Some(entry),
            unanswered: sent.len(),
            behind,
            ..Ended::default()
        };
        let shown = key.bind(py).repr()?.to_string();
        let refused = match outcome {
            Err(error) => Some(failed_before(py, &shown, error)),
            Ok(()) if after_end == AfterEnd::Raise => Some(has_returned(key.bind(py))?),
            Ok(()) => None,
        };
        for request in sent {
            let outcome = match outcome {
                Err(error) if dead || (!ended.told && request.is_at_fault(py)?) => {
                    let note = format!("in the stream of key {shown}");
                    error
                        .value(py)
                        .call_method1(intern!(py, "add_note"), (note,))?;
                    ended.told = !dead;
                    Err(error.clone_ref(py))
                }
                _ => as_outcome(py, refused.as_ref()),
            };
            request.complete(py, outcome)?;
        }
        (ended.key, ended.refused) = (Some(key), refused);
        Ok(ended)
    }

    /// Sends what opens a key anew that has ended.
    pub(super) fn requests_after_end(&self, py: Python<'_>, ended: Ended) -> PyResult<()> {
        let (Some(entry), Some(key)) = (ended.entry, ended.key) else {
            return Ok(());
        };
        let left = self.state.with(py, |state| {
            // The waiting events open the key again, or are dropped with it.
            let again = state.index.entry(entry).stage == Stage::Unopened;
            let form = state.live_form.as_mut();
            form.filter(|_| !again)?.requests.remove(&entry)
        })?;
        for request in left.into_iter().flatten() {
            request.complete(py, as_outcome(py, ended.refused.as_ref()))?;
        }
        if ended.behind.is_empty() {
            return Ok(());
        }
        let (key, hash) = (key.bind(py), hash_of(key.bind(py))?);
        for item in ended.behind {
            let Behind::Event(event, request) = item else {
                self.end_key(py, key)?;
                continue;
            };
            let sent = self.submit(py, event.bind(py), (key, hash), request.clone());
            match (sent, request) {
                (Ok(()), _) => {}
                (Err(error), Some(request)) => request.complete(py, Err(error))?,
                (Err(error), None) => self
                    .state
                    .with(py, |state| state.error = state.error.take().or(Some(error)))?,
            }
        }
        self.state.with(py, |state| -> PyResult<()> {
            if let Some(entry) = state.index.find(key, hash)? {
                state.tell_end_to(entry);
            }
            Ok(())
        })?
    }

    /// What is next on a lane cannot be sent. In the live form its task hears of it, or else whoever
    /// hears of errors of its key, and everything else goes on.
    pub(super) fn cannot_send(&self, py: Python<'_>, number: usize, error: PyErr) -> PyResult<()> {
        if !self.is_live_form(py)? {
            return self.set_error(py, error);
        }
        let kept = self.state.with(py, |state| {
            let lane = &mut state.lanes[number];
            let Some(Act::Encoded(name, ..)) = lane.outgoing.front() else {
                return None;
            };
            let entry = lane.ids.entry(name.id, name.generation);
            lane.outgoing.pop_front();
            entry
        })?;
        if let Some(entry) = kept {
            return self.drop_key(py, entry, error); // its journal has the event
        }
        let found = self.state.with(py, |state| {
            let lane = &mut state.lanes[number];
            let Some(Act::Event(name, ..)) = lane.outgoing.front() else {
                return None;
            };
            let (name, entry) = (*name, lane.ids.entry(name.id, name.generation)?);
            let Some(Act::Event(_, event, asks)) = lane.outgoing.pop_front() else {
                return None;
            };
            lane.sent -= 1;
            let behind = lane.outgoing.iter();
            let behind = behind.filter(|act| matches!(act, Act::Event(n, _, true) if *n == name));
            let behind = behind.count();
            let known = state.index.entry(entry);
            known.in_flight = known.in_flight.saturating_sub(1);
            known.sent = known.sent.wrapping_sub(1);
            let key = known.key.as_ref()?.clone_ref(py);
            let form = state.live_form.as_mut()?;
            if !asks {
                let own = form.sending.as_ref().is_some_and(|own| own.is(&event));
                return Some((event, key, None, own));
            }
            let behind = behind + known.waiting.numbered();
            let requests = form.requests.get_mut(&entry)?;
            let request = requests.remove(requests.len().checked_sub(behind + 1)?);
            if requests.is_empty() {
                form.requests.remove(&entry);
            }
            Some((event, key, request, false))
        })?;
        match found {
            None => self.set_error(py, error),
            Some((_, _, Some(request), _)) => request.complete(py, Err(error)),
            Some((_, _, None, true)) => Ok(self.state.with(py, |state| {
                if let Some(form) = &mut state.live_form {
                    form.unsent = Some(error);
                }
            })?),
            Some((_, key, None, false)) => self.failed(py, Some(key), error),
        }
    }

    /// A task has sent an event, if nothing was wrong with that.
    pub(super) fn sent(&self, py: Python<'_>) -> PyResult<()> {
        let (event, error) = self.state.with(py, |state| match &mut state.live_form {
            Some(form) => (form.sending.take(), form.unsent.take()),
            None => (None, None),
        })?;
        drop(event);
        error.map_or(Ok(()), Err)
    }

    /// Calls `on_error` for a key whose function has raised.
    pub(super) fn call_on_error(
        &self,
        py: Python<'_>,
        key: Py<PyAny>,
        error: &PyErr,
    ) -> PyResult<()> {
        let call = self.state.with(py, |state| match &state.on_error {
            OnError::Call(call) => Some(call.clone_ref(py)),
            _ => None,
        })?;
        if let Some(call) = call
            && let Err(raised) = call.call1(py, (key, error.value(py)))
        {
            self.state.with(py, |state| {
                state.error = state.error.take().or(Some(raised))
            })?;
        }
        Ok(())
    }

    /// Ends all requests and all waits, for this reason.
    pub(super) fn refuse_all(&self, py: Python<'_>, reason: &PyErr) -> PyResult<()> {
        let all = |state: &mut State| {
            let form: &mut LiveForm = state.live_form.as_mut()?;
            form.held = 0;
            let behind = std::mem::take(&mut form.behind);
            let behind = behind.into_values().flatten();
            let requests = std::mem::take(&mut form.requests).into_values().flatten();
            let requests = requests.chain(behind.filter_map(|item| match item {
                Behind::Event(_, request) => request,
                Behind::End => None,
            }));
            Some((requests.collect::<Vec<_>>(), std::mem::take(&mut form.line)))
        };
        let Some((requests, line)) = self.state.with(py, all)? else {
            return Ok(());
        };
        for request in requests {
            request.complete(py, Err(reason.clone_ref(py)))?;
        }
        line.iter().for_each(|ticket| ticket.wake(py));
        Ok(())
    }
}

pub(super) fn unknown() -> PyErr {
    errors::corrupted("a worker speaks of a key that it was not given")
}

fn as_outcome(py: Python<'_>, refused: Option<&PyErr>) -> Result<(), PyErr> {
    match refused {
        None => Ok(()),
        Some(error) => Err(error.clone_ref(py)),
    }
}

/// The error of a request that the function has not come to.
fn failed_before(py: Python<'_>, key: &str, error: &PyErr) -> PyErr {
    let refused = errors::closed(format!(
        "the function of key {key} has failed before it took this event: {error}"
    ));
    refused.set_cause(py, Some(error.clone_ref(py)));
    refused
}
