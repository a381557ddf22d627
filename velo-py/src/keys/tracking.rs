//! Which records of a source of `velo.connect` are handled: up to which position of each partition.
//!
//! Keys handle records of one partition in any order. A position may be committed once every record up
//! to it is handled, so that each partition has a window: the records from the first one that is not
//! handled to the last one that was taken.
//!
//! A key remembers its records until they are handled ([`Entry::tokens`](super::index::Entry)). When its
//! function raises, the record that it had in hand is the one that failed; the key is held until the
//! caller has decided what becomes of that record, and then goes on with those behind it.

use pyo3::prelude::*;

use super::index::Stage;
use super::keyed::Keys;
use super::lane::Act;
use super::routing::{AfterEnd, OnError, Out, State};
use super::runs::Saving;
use super::saved_run::Mark;
use super::tracker::{KeyFailure, Tokens, Tracker};
use crate::codec::Record;
use crate::lane_frames::Rest;

/// How it came that a key has ended.
#[derive(Clone, Copy)]
pub enum End {
    /// Its table has told.
    Told(Rest),
    /// Its worker has died, which `ran` this key at the time.
    Died { ran: bool, event: u32 },
}

impl State {
    /// A record of a key is on its way.
    #[inline]
    pub(super) fn track(
        &mut self,
        py: Python<'_>,
        entry: u32,
        event: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if let Some(tracker) = &mut self.tracker
            && let Some(token) = tracker.take(py, event)?
        {
            let known = self.index.entry(entry);
            known.partition = token.partition;
            known.tokens.push(token);
            self.soil(entry);
        }
        Ok(())
    }

    /// A record that reaches no key is handled.
    pub(super) fn pass(&mut self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(tracker) = &mut self.tracker
            && let Some(token) = tracker.take(py, event)?
        {
            tracker.done(&token, None);
        }
        Ok(())
    }

    /// So many records of a key are handled, the oldest ones.
    pub(super) fn tokens_done(&mut self, entry: u32, count: u64) {
        if self.tracker.is_none() {
            return;
        }
        for _ in 0..count {
            let Some(token) = self.index.entry(entry).tokens.pop() else {
                break;
            };
            let by = self.handled_as(entry);
            let Some(tracker) = &mut self.tracker else {
                break;
            };
            tracker.done(&token, by);
            if tracker
                .saving
                .as_ref()
                .is_some_and(|saving| saving.max_restarts.is_some())
                && let Some(run) = &mut self.index.entry(entry).run
            {
                run.handled.push(token);
            }
        }
    }

    /// The table has told how many more records of a key are handled.
    pub(super) fn handled_by(&mut self, entry: u32, count: u32) {
        let known = self.index.entry(entry);
        if !known.cancelled && count > 0 {
            known.began = true;
            let news = known.run.as_mut().map_or(count, |run| run.told(count));
            self.tokens_done(entry, news.into());
        }
    }

    /// A key has ended: what becomes of its records. None: it is held.
    pub(super) fn end_tracked(
        &mut self,
        py: Python<'_>,
        entry: u32,
        end: End,
        outcome: Result<(), PyErr>,
    ) -> Option<Result<(), PyErr>> {
        if self.tracker.is_none() {
            return Some(outcome);
        }
        if let End::Told(rest) = end {
            self.handled_by(entry, rest.handled);
        }
        let known = self.index.entry(entry);
        if known.cancelled {
            self.end_run(entry);
            return Some(Ok(()));
        }
        match outcome {
            Err(error) if !self.closing => {
                let failure = self.hold(py, entry, end, error);
                self.end_run(entry);
                self.mark(py, entry, Mark::Ended);
                self.out.push_back(Out::Held(failure));
                None
            }
            outcome => {
                // The function has returned without these, and waits for no more.
                let left = known.tokens.len().saturating_sub(known.waiting.len());
                if self.after_end != AfterEnd::Raise {
                    self.tokens_done(entry, left as u64);
                }
                if self.after_end == AfterEnd::Ignore
                    && self.index.entry(entry).stage == Stage::Open
                {
                    self.tokens_done(entry, u64::MAX);
                }
                self.end_run(entry);
                Some(outcome)
            }
        }
    }

    /// What could not be sent on a lane: where records are tracked, that record has failed, and the
    /// others go on. Gives the error back where they are not.
    pub(super) fn unsendable(
        &mut self,
        py: Python<'_>,
        number: usize,
        error: PyErr,
    ) -> Option<PyErr> {
        let lane = &mut self.lanes[number];
        let Some(tracker) = &mut self.tracker else {
            return Some(error);
        };
        let Some(Act::Event(name, ..)) = lane.outgoing.front() else {
            return Some(error);
        };
        let Some(entry) = lane.ids.entry(name.id, name.generation) else {
            return Some(error);
        };
        let Some(Act::Event(_, event, _)) = lane.outgoing.pop_front() else {
            return Some(error);
        };
        lane.sent -= 1;
        let known = self.index.entry(entry);
        known.in_flight = known.in_flight.saturating_sub(1);
        known.sent = known.sent.wrapping_sub(1);
        let token = known.tokens.remove(&event);
        if let Some(token) = &token {
            tracker.done(token, None);
        }
        self.out.push_back(Out::Held(KeyFailure {
            key: known.key.as_ref().map(|key| key.clone_ref(py)),
            error: error.into_value(py).into_any(),
            record: Some(event),
            held: None,
            decoded: true,
        }));
        None
    }

    /// All events of a key that wait are those that are not handled, from the oldest one on.
    pub(super) fn requeue(&mut self, py: Python<'_>, entry: u32) {
        let known = self.index.entry(entry);
        self.waiting -= known.waiting.len() as u64;
        known.waiting = super::waiting::Waiting::default();
        for token in known.tokens.iter() {
            known.waiting.push(token.record.clone_ref(py), 0);
        }
        self.waiting += known.waiting.len() as u64;
    }

    /// The function of a key has raised: the key is held. Gives what the caller is told.
    pub(super) fn hold(
        &mut self,
        py: Python<'_>,
        entry: u32,
        end: End,
        error: PyErr,
    ) -> KeyFailure {
        let known = self.index.entry(entry);
        let was_sent = known.tokens.len() > known.waiting.len();
        let in_hand = match end {
            // A function that fails before its first event would fail for ever: each time, its next
            // record is taken for the one that failed.
            End::Told(rest) => rest.in_hand || !known.began && was_sent,
            End::Died { ran, .. } => ran,
        };
        // Those before it were not told to be handled, and come again.
        let before = match end {
            End::Died { event, .. } => {
                let told = known.sent.wrapping_sub(known.in_flight);
                let handled = known.run.as_ref().map_or(told, |run| run.done());
                let before = event.wrapping_sub(handled).wrapping_sub(1);
                if before < known.in_flight { before } else { 0 }
            }
            End::Told(_) => 0,
        };
        let record = in_hand
            .then(|| known.tokens.iter().nth(before as usize))
            .flatten();
        let record = record.map(|token| token.record.clone_ref(py));
        self.hold_for(py, entry, record, error)
    }

    /// A key is held for the caller to decide about this record of it. Gives what the caller is told.
    pub(super) fn hold_for(
        &mut self,
        py: Python<'_>,
        entry: u32,
        record: Option<Py<PyAny>>,
        error: PyErr,
    ) -> KeyFailure {
        let known = self.index.entry(entry);
        self.wanting -= usize::from(known.has_next_run());
        known.stage = Stage::Held;
        known.ends = false;
        let key = known.key.as_ref().map(|key| key.clone_ref(py));
        self.requeue(py, entry);
        KeyFailure {
            key,
            error: error.into_value(py).into_any(),
            record,
            held: Some(entry),
            decoded: true,
        }
    }
}

/// What the key of an event comes to where records are tracked.
pub enum Tracked<'py> {
    /// They are not.
    No,
    /// The key, and its hash.
    Key((Bound<'py, PyAny>, u64)),
    /// It has none: the caller is told, and the others go on.
    Failed,
}

impl Keys {
    /// The key of a record. What is no record is a pair of one and why it cannot be decoded; None: it was
    /// handled before, and counts as that.
    #[inline]
    pub(super) fn tracked_key<'py>(
        &self,
        py: Python<'py>,
        event: &Bound<'py, PyAny>,
    ) -> PyResult<Tracked<'py>> {
        let by_record_key = self.state.with(py, |state| {
            let tracker = state.tracker.as_ref();
            tracker.map(|tracker| tracker.by_record_key)
        })?;
        let Some(by_record_key) = by_record_key else {
            return Ok(Tracked::No);
        };
        let decoded = event.is_exact_instance_of::<Record>();
        let failed = match event.cast_exact::<Record>() {
            Ok(record) => {
                let record = record.get();
                let found = match by_record_key {
                    true => {
                        let key = record.key.bind(py).clone();
                        super::index::hash_of(&key).map(|hash| (key, hash))
                    }
                    false => self.key_of.key(record.value.bind(py)),
                };
                match found {
                    Ok(key) => return Ok(Tracked::Key(key)),
                    Err(error) => (event.clone(), error.into_value(py).into_any()),
                }
            }
            Err(_) => event.extract()?,
        };
        let (record, error): (Bound<'py, PyAny>, Py<PyAny>) = failed;
        self.state.with(py, |state| -> PyResult<()> {
            state.pass(py, &record)?;
            if error.is_none(py) {
                return Ok(()); // a checkpoint has absorbed it
            }
            state.out.push_back(Out::Held(KeyFailure {
                key: None,
                error,
                record: Some(record.unbind()),
                held: None,
                decoded,
            }));
            Ok(())
        })??;
        Ok(Tracked::Failed)
    }
}

/// Results, failures, marks, and whether that was all.
type Taken = (
    Vec<Py<PyAny>>,
    Vec<KeyFailure>,
    Vec<(usize, Py<PyAny>, Py<PyAny>)>,
    bool,
);

#[pymethods]
impl Keys {
    /// Gives results the trace context of the records that they are made from.
    fn trace(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.traces = true)?)
    }

    /// Tracks the records of the source. What fails is told as a `KeyFailure`, among the results. With
    /// `saves`, states are saved when `save_dirty` asks for it; with `unloads`, keys that make room for
    /// others or are idle are unloaded, and not ended; with `max_restarts`, keys whose worker dies go on from
    /// their last snapshots, so often in a row.
    fn track(
        &self,
        py: Python<'_>,
        by_record_key: bool,
        saves: bool,
        unloads: bool,
        max_restarts: Option<u32>,
    ) -> PyResult<()> {
        let saving = saves.then(|| Saving::new(unloads, max_restarts));
        Ok(self.state.with(py, |state| {
            state.tracker = Some(Tracker::new(py, by_record_key, saving));
            state.on_error = OnError::Hold;
        })?)
    }

    /// Takes results with their keys, `most` of them, what has failed, and what has become of keys: before
    /// which result, the key, and a snapshot, None for one that has ended, or False for one whose function
    /// has returned. The last one tells whether that was all: what `handled` then says has its results among
    /// those that were taken.
    fn take(&self, py: Python<'_>, most: usize) -> PyResult<Taken> {
        Ok(self.state.with(py, |state| {
            let (mut items, mut failures, mut marks) = (Vec::new(), Vec::new(), Vec::new());
            while items.len() < most {
                match state.out.pop_front() {
                    Some(Out::Item(item)) => items.push(item),
                    Some(Out::Held(failure)) => failures.push(failure),
                    Some(Out::Mark(key, mark)) => {
                        marks.push((items.len(), key, mark.into_object(py)));
                    }
                    Some(Out::Failed(..)) => {}
                    None => break,
                }
            }
            (items, failures, marks, state.out.is_empty())
        })?)
    }

    /// The highest handled position of each partition for which it has changed, as pairs. Everything up
    /// to it is handled, and results of that have been taken or are there to be taken.
    fn handled(&self, py: Python<'_>) -> PyResult<Vec<(Py<PyAny>, Py<PyAny>)>> {
        self.state.with(py, |state| {
            let partitions = state.tracker.iter_mut();
            let partitions = partitions.flat_map(|tracker| tracker.partitions.iter_mut());
            partitions
                .filter_map(|partition| {
                    let position = partition.handled.take()?;
                    let position = position.object(py);
                    Some(position.map(|position| (partition.name.clone_ref(py), position)))
                })
                .collect()
        })?
    }

    /// Whether all results and failures that have arrived were taken.
    fn drained(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| state.out.is_empty())?)
    }

    /// How many records of a partition lie between the first that is not handled and the last that was
    /// taken from the source.
    fn distance(&self, py: Python<'_>, partition: &Bound<'_, PyAny>) -> PyResult<usize> {
        let places = self.state.with(py, |state| {
            let tracker = state.tracker.as_ref();
            tracker.map(|tracker| tracker.places.clone_ref(py))
        })?;
        let Some(place) = places.and_then(|p| p.bind(py).get_item(partition).transpose()) else {
            return Ok(0);
        };
        let place: usize = place?.extract()?;
        Ok(self.state.with(py, |state| {
            let tracker = state.tracker.as_ref();
            tracker.map_or(0, |tracker| tracker.partitions[place].distance())
        })?)
    }

    /// Forgets a partition that another program has: nothing of it will be told as handled. Its keys
    /// are cancelled, and begin anew with their next record.
    fn leave(&self, py: Python<'_>, partition: &Bound<'_, PyAny>) -> PyResult<()> {
        let places = self.state.with(py, |state| {
            let tracker = state.tracker.as_ref();
            tracker.map(|tracker| tracker.places.clone_ref(py))
        })?;
        let Some(place) = places.and_then(|p| p.bind(py).get_item(partition).transpose()) else {
            return Ok(());
        };
        let place: u32 = place?.extract()?;
        let dropped = self.state.with(py, |state| state.leave(place))?;
        drop(dropped);
        self.nudge(py);
        Ok(())
    }

    /// Lets a held key go on. With `skip`, the record that failed counts as handled; without it, that
    /// record comes again.
    fn release(&self, py: Python<'_>, held: u32, skip: Option<Py<PyAny>>) -> PyResult<()> {
        let gone = self.state.with(py, |state| match state.over {
            true => None, // there are no entries any more
            false => state.release(py, held, skip.as_ref()),
        })?;
        drop(gone);
        self.nudge(py);
        Ok(())
    }
}

impl State {
    fn release(
        &mut self,
        py: Python<'_>,
        entry: u32,
        skip: Option<&Py<PyAny>>,
    ) -> Option<super::index::Entry> {
        if self.index.entry(entry).stage != Stage::Held {
            return None;
        }
        if let Some(record) = skip
            && let Some(tracker) = &mut self.tracker
            && let Some(token) = self.index.entry(entry).tokens.remove(record)
        {
            tracker.done(&token, None);
        }
        self.requeue(py, entry);
        let known = self.index.entry(entry);
        if known.waiting.is_empty() {
            if known.ends {
                self.ending -= 1;
            }
            return Some(self.forget(entry));
        }
        known.stage = Stage::Unopened;
        self.unopened.push_back(entry);
        self.wanting += 1;
        self.tell_end_to(entry);
        None
    }

    /// Returns what is to be dropped once the state is left: that may run Python code.
    fn leave(&mut self, place: u32) -> Vec<super::index::Entry> {
        if let Some(tracker) = &mut self.tracker {
            tracker.partitions[place as usize].leave();
        }
        let of_it = |(entry, known): (u32, &super::index::Entry)| {
            let live = !matches!(known.stage, Stage::Finished | Stage::Free);
            (known.partition == place && live).then_some(entry)
        };
        let entries: Vec<u32> = self.index.all().filter_map(of_it).collect();
        let mut dropped = Vec::new();
        for entry in entries {
            let known = self.index.entry(entry);
            self.waiting -= known.waiting.len() as u64;
            self.wanting -= usize::from(known.has_next_run());
            known.waiting = super::waiting::Waiting::default();
            known.tokens = Tokens::default();
            match known.stage {
                Stage::Held => dropped.push(self.forget(entry)),
                Stage::Unopened => {
                    self.unqueue(entry);
                    dropped.push(self.forget(entry));
                }
                _ => self.cancel_key(entry),
            }
        }
        dropped
    }
}
