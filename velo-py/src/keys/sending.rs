//! Events on their way from the source to keys.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::index::Stage;
use super::keyed::Keys;
use super::lane::{Act, Way};
use super::routing::{AfterEnd, Routed, State};
use super::tracking::Tracked;
use crate::codec::{VecOut, codec};
use crate::errors;
use crate::ffi::iterate::next_of;

/// So many events are taken from a source before results are looked at.
const BATCH: usize = 128;
/// How many events of keys that run in this thread are taken before their functions have their turn.
const INLINE_BATCH: usize = 32;
/// The same of records, whose results go to a sink: each time it is asked costs as much as some events.
const RECORDS: usize = 256;
/// So many keys are told at a time that no more events come.
const ENDS: usize = 256;

/// The error of an event that comes after the function of its key has returned.
pub(super) fn has_returned(key: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    Ok(errors::closed(format!(
        "an event came for key {}, whose function has returned; see `finished_keys`",
        key.repr()?
    )))
}

impl Keys {
    /// Takes events from the source, as many as may be. Whether there was any.
    pub(super) fn fill(&self, py: Python<'_>) -> PyResult<bool> {
        let mut took = false;
        let most = |state: &mut State| match state.lanes.first() {
            Some(lane) if matches!(lane.way, Way::Inline(_)) => match state.tracker {
                Some(_) => RECORDS,
                None => INLINE_BATCH,
            },
            _ => BATCH,
        };
        let most = self.state.with(py, most)?;
        for _ in 0..most {
            let (source, held) = self.state.with(py, |state| {
                let room = state.pending() < state.max_pending;
                match state.held.take() {
                    Some(held) => (None, Some(held)),
                    None if room => (state.source.as_ref().map(|s| s.clone_ref(py)), None),
                    None => (None, None),
                }
            })?;
            let (event, key, hash) = match held {
                Some((event, key, hash)) => (event.into_bound(py), key.into_bound(py), hash),
                None => {
                    let Some(source) = source else { break };
                    match self.take_event(py, source.bind(py)) {
                        Ok(Some(found)) => found,
                        Ok(None) => break,
                        Err(error) => {
                            self.state.with(py, |state| state.error = Some(error))?;
                            return Ok(true);
                        }
                    }
                }
            };
            let routed = match self.route(py, &event, &key, hash, false) {
                Ok(routed) => routed,
                Err(error) => {
                    self.set_error(py, error)?;
                    return Ok(true);
                }
            };
            match routed {
                Routed::Sent(_) | Routed::Dropped => {}
                Routed::Held(_) => {
                    self.state.with(py, |state| {
                        state.held = Some((event.unbind(), key.unbind(), hash));
                    })?;
                    break;
                }
                Routed::Finished => {
                    let error = has_returned(&key)?;
                    self.state.with(py, |state| state.error = Some(error))?;
                    return Ok(true);
                }
            }
            took = true;
            if self
                .state
                .with(py, |state| state.limited && state.wanting > state.ending)?
            {
                self.make_room(py)?;
            }
        }
        self.tell_ends(py)?;
        Ok(took)
    }

    #[allow(clippy::type_complexity)]
    #[inline]
    pub(super) fn take_event<'py>(
        &self,
        py: Python<'py>,
        source: &Bound<'py, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>, u64)>> {
        loop {
            let Some(event) = next_of(source)? else {
                let live = self.state.with(py, |state| state.live)?;
                if !live || source.getattr(intern!(py, "exhausted"))?.is_truthy()? {
                    self.state.with(py, |state| {
                        state.told_end = Some(0);
                        state.source.take()
                    })?;
                }
                return Ok(None);
            };
            let (key, hash) = match self.tracked_key(py, &event)? {
                Tracked::Key(key) => key,
                Tracked::Failed => continue,
                Tracked::No => self.key_of.key(&event)?,
            };
            return Ok(Some((event, key, hash)));
        }
    }

    /// Gives an event to its key.
    #[inline]
    pub(super) fn route(
        &self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        key: &Bound<'_, PyAny>,
        hash: u64,
        request: bool,
    ) -> PyResult<Routed> {
        let (ordered, kept) = self
            .state
            .with(py, |state| (state.ordered, state.keep.is_some()))?;
        let event = &match kept {
            true => encoded(event)?.into_any(),
            false => event.clone(),
        };
        let now = if ordered { self.now() } else { 0 };
        self.state.with(py, |state| -> PyResult<Routed> {
            let now = now + state.aged;
            let mut entry = match state.index.find(key, hash)? {
                Some(entry) => entry,
                None => {
                    let entry = state.index.insert(key.clone().unbind(), hash);
                    state.unopened.push_back(entry);
                    state.wanting += 1;
                    entry
                }
            };
            let (window, number) = (state.window, u32::from(request));
            let known = state.index.entry(entry);
            match known.stage {
                Stage::Finished => match state.after_end {
                    AfterEnd::Ignore => {
                        state.counts.dropped += 1;
                        state.pass(py, event)?;
                        return Ok(Routed::Dropped);
                    }
                    AfterEnd::Raise => return Ok(Routed::Finished),
                    AfterEnd::Restart => {
                        drop(state.index.remove(entry));
                        entry = state.index.insert(key.clone().unbind(), hash);
                        state.unopened.push_back(entry);
                        state.wanting += 1;
                        let known = state.index.entry(entry);
                        known.waiting.push(event.clone().unbind(), number);
                        state.waiting += 1;
                    }
                },
                _ if known.ends => return Ok(Routed::Held(entry)),
                // What tasks send and end meanwhile keeps its order in one queue.
                _ if state.live_form.is_some() && known.is_ending() => {
                    return Ok(Routed::Held(entry));
                }
                Stage::Open if kept => {
                    known.waiting.push(event.clone().unbind(), number);
                    state.waiting += 1;
                    state.send_waiting(py, entry);
                }
                Stage::Open if known.in_flight < window && known.waiting.is_empty() => {
                    known.in_flight += 1;
                    known.sent = known.sent.wrapping_add(1);
                    let name = known.name();
                    let lane = &mut state.lanes[known.lane as usize];
                    lane.sent += 1;
                    let act = Act::Event(name, event.clone().unbind(), request);
                    lane.outgoing.push_back(act);
                }
                stage => {
                    let ended = stage == Stage::Ending || known.is_ending();
                    if ended && known.waiting.is_empty() {
                        state.wanting += 1;
                    }
                    known.waiting.push(event.clone().unbind(), number);
                    state.waiting += 1;
                }
            }
            state.counts.events += 1;
            state.track(py, entry, event)?;
            if state.ordered {
                state.index.touch(entry, now);
            }
            Ok(Routed::Sent(entry))
        })?
    }

    /// Once the source is exhausted, keys are told so, some at a time.
    pub(super) fn tell_ends(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            let Some(from) = state.told_end else {
                return;
            };
            let outgoing: usize = state.lanes.iter().map(|lane| lane.outgoing.len()).sum();
            if state.held.is_some() || outgoing > ENDS {
                return;
            }
            let some: Vec<u32> = state.index.from(from).take(ENDS).collect();
            state.told_end = some.last().map(|last| last + 1);
            some.into_iter().for_each(|entry| state.end(py, entry));
        })?)
    }

    /// Opens keys that wait for it, and asks the host for what they lack.
    pub(super) fn open_some(&self, py: Python<'_>) -> PyResult<bool> {
        let lacks = self.state.with(py, |state| {
            let has = state.open_lanes() + state.opening;
            let lacks = !state.unopened.is_empty() && has < state.wanted_lanes();
            if lacks {
                state.opening += 1;
                return state.host(py);
            }
            None
        })?;
        if let Some(host) = lacks {
            host.call_method0(py, intern!(py, "open_lane"))?;
        }
        if self.state.with(py, |state| state.limited)? {
            self.make_room(py)?;
        }
        let mut opened = false;
        while self.state.with(py, |state| state.open_next(py))?? {
            opened = true;
        }
        Ok(opened)
    }

    /// Takes permits for keys that want one. Where there is none, one of our own keys ends, or the permit
    /// of another stream is waited for.
    pub(super) fn make_room(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let host = self.state.with(py, |state| {
                let wants = state.reserved < state.unopened.len();
                wants.then(|| state.host(py)).flatten()
            })?;
            let Some(host) = host else { break };
            let permit = host.call_method0(py, intern!(py, "take_permit"))?;
            if !permit.is_truthy(py)? {
                break;
            }
            self.state.with(py, |state| {
                state.reserved += 1;
                state.wanting -= 1;
            })?;
        }
        let waits = self.state.with(py, |state| {
            if state.live() + state.reserved > state.unopened.len() {
                state.evict(py);
                return None;
            }
            let waits = state.wanting > 0 && !std::mem::replace(&mut state.in_line, true);
            waits.then(|| state.host(py)).flatten()
        })?;
        match waits {
            Some(host) => host.call_method0(py, intern!(py, "await_permit")).map(drop),
            None => Ok(()),
        }
    }

    /// Does what was decided, as far as there is room. Whether anything was.
    pub(super) fn act(&self, py: Python<'_>) -> PyResult<bool> {
        let mut progress = false;
        let lanes = self.state.with(py, |state| state.ways())?;
        for (number, way) in lanes {
            let (mut acts, room) = self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                let pending = lane.sent_bytes.saturating_sub(lane.handled_bytes);
                let room = state.max_bytes.saturating_sub(pending);
                (std::mem::take(&mut lane.outgoing), room)
            })?;
            if acts.is_empty() && !way.may_go_on(py)? {
                continue;
            }
            let done = way.act(py, &mut acts, room);
            let unsent = self.state.with(py, |state| {
                let lane = &mut state.lanes[number];
                // Nothing was added meanwhile, unless Python code that ran has done so.
                acts.append(&mut lane.outgoing);
                lane.outgoing = acts;
                match done {
                    Ok(done) => {
                        lane.sent_bytes += done.bytes;
                        progress |= done.acts > 0;
                        None
                    }
                    Err(error) => {
                        progress = true;
                        state.fails_unsent(py, number);
                        state.unsendable(py, number, error)
                    }
                }
            })?;
            if let Some(error) = unsent {
                self.cannot_send(py, number, error)?;
            }
        }
        Ok(progress)
    }
}

/// An event as it travels.
fn encoded<'py>(event: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = event.py();
    let mut out = VecOut::default();
    codec(py)?.encode(py, event, &mut out)?;
    Ok(PyBytes::new(py, &out.into_vec()))
}
