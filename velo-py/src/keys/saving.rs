//! Snapshots for a checkpoint: when the caller asks for them, what they cover, and the cut.
//!
//! A caller that stores checkpoints asks keys for snapshots (`save_dirty`) and gets them among the
//! results (`take`): what lies before a snapshot is in it. Then it closes the **cut**: a record is
//! *absorbed* when a snapshot covers it or when the run that has handled it is over, and the position
//! of a partition is the one below its first record that is not absorbed. Records behind that one that
//! are absorbed are told one by one. A key that something has happened to since its last snapshot is
//! *late*.
//!
//! Each run of a function has a number, and counts its events, so that a record knows which snapshot
//! covers it. The marks of one key lie among its results in the order of what has happened to it.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::index::Stage;
use super::keyed::Keys;
use super::lane::Act;
use super::routing::{Out, State};
use super::runs::{Saving, beyond};
use super::saved_run::{Mark, SavedRun};
use super::tracker::{By, Late};
use crate::errors;

impl State {
    pub(super) fn saving(&mut self) -> Option<&mut Saving> {
        self.tracker.as_mut()?.saving.as_mut()
    }

    /// A key opens. The state that it begins with, if it had one.
    pub(super) fn begin_run(&mut self, py: Python<'_>, entry: u32) -> Option<Arc<[u8]>> {
        let number = self.saving()?.next_run();
        let run = self.index.entry(entry).run.get_or_insert_default();
        let restored = run.begin(number);
        self.soil(entry);
        restored.map(|state| state.as_bytes(py).into())
    }

    /// The run of a key is over, and what it has handled is absorbed.
    pub(super) fn end_run(&mut self, entry: u32) {
        if let Some(run) = &mut self.index.entry(entry).run {
            **run = SavedRun::default();
        }
    }

    /// As which event of which run the next record of a key is handled.
    pub(super) fn handled_as(&mut self, entry: u32) -> Option<By> {
        let run = self.index.entry(entry).run.as_mut()?;
        (run.number != 0).then(|| By {
            run: run.number,
            number: run.next(),
        })
    }

    /// Something happens to a key.
    #[inline]
    pub(super) fn soil(&mut self, entry: u32) {
        if let Some(run) = &mut self.index.entry(entry).run
            && run.number != 0
            && !std::mem::replace(&mut run.listed, true)
        {
            let one = (entry, run.number);
            if let Some(saving) = self.saving() {
                saving.dirty.push(one);
            }
        }
    }

    /// A result of a key has come.
    #[inline]
    pub(super) fn soil_by_result(&mut self, entry: u32) {
        if let Some(run) = &mut self.index.entry(entry).run {
            run.behind = true;
            self.soil(entry);
        }
    }

    /// Puts a mark behind the results of a key.
    pub(super) fn mark(&mut self, py: Python<'_>, entry: u32, mark: Mark) {
        if self.saving().is_some()
            && let Some(key) = &self.index.entry(entry).key
        {
            let key = key.clone_ref(py);
            self.out.push_back(Out::Mark(key, mark));
        }
    }

    /// A snapshot has come that covers this number of events of the present run.
    pub(super) fn run_saved(
        &mut self,
        py: Python<'_>,
        entry: u32,
        count: u64,
        state: &[u8],
    ) -> PyResult<()> {
        let known = self.index.entry(entry);
        if known.cancelled {
            return Ok(()); // of no interest any more
        }
        let covered = u32::try_from(count).ok();
        let covered = covered.filter(|&covered| beyond(covered, known.sent) == 0);
        let (Some(run), Some(covered)) = (&mut known.run, covered) else {
            return Err(errors::corrupted("a snapshot of events that were not sent"));
        };
        let news = run.news(covered);
        let mark = match state {
            [] => Mark::Ended, // the function is run anew
            state => Mark::Saved(PyBytes::new(py, state).unbind()),
        };
        self.tokens_done(entry, news.into());
        if let Some(run) = &mut self.index.entry(entry).run {
            run.saved(covered);
        }
        self.mark(py, entry, mark);
        self.unload(entry);
        Ok(())
    }

    fn ask(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        if let Some(run) = &mut known.run {
            run.asked = true;
            let name = known.name();
            let lane = &mut self.lanes[known.lane as usize];
            lane.outgoing.push_back(Act::Save(name));
        }
    }

    /// The input of a key ends to make room for others, or because it is idle: without an end that its
    /// function could see, where keys are unloaded.
    pub(super) fn make_leave(&mut self, py: Python<'_>, entry: u32) {
        let unloads = self.saving().is_some_and(|saving| saving.unloads);
        let known = self.index.entry(entry);
        if unloads && !known.is_ending() {
            known.run.get_or_insert_default().unloads = true;
        }
        self.end(py, entry);
    }

    /// Goes on with a key that is to be unloaded: a snapshot, and once that covers all, its end.
    pub(super) fn unload(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        let Some(run) = &known.run else {
            return;
        };
        let due = run.unloads && known.stage == Stage::Ending && !known.cancelled;
        if !due || run.asked {
            return;
        }
        if run.kept && !run.is_dirty(known.sent) {
            known.cancelled = true;
            let name = known.name();
            let lane = &mut self.lanes[known.lane as usize];
            lane.outgoing.push_back(Act::Cancel(name));
            if let Some(saving) = self.saving() {
                saving.restores = true;
            }
        } else if known.in_flight == 0 {
            self.ask(entry);
        }
    }

    /// Whether the function of a key has ended by itself that was to be unloaded.
    pub(super) fn forestalls_unloading(&mut self, entry: u32) -> bool {
        let known = self.index.entry(entry);
        let forestalls = !known.cancelled && known.run.as_ref().is_some_and(|run| run.unloads);
        if forestalls {
            // As if nothing had been planned with it.
            self.wanting -= usize::from(known.has_next_run());
            known.stage = Stage::Open;
            known.ends = false;
        }
        forestalls
    }

    /// The keys that something has happened to since their last snapshots. With `ask`, those are asked
    /// for one: each at `once`, or when it has nothing to do.
    fn dirty(&mut self, ask: bool, once: bool) -> Vec<(u32, u32)> {
        let Some(saving) = self.saving() else {
            return Vec::new();
        };
        let mut dirty = std::mem::take(&mut saving.dirty);
        let mut asks = Vec::new();
        dirty.retain(|&(entry, number)| {
            let Some(known) = self.index.get(entry) else {
                return false;
            };
            let sent = known.sent;
            let Some(run) = known.run.as_mut().filter(|run| run.number == number) else {
                return false;
            };
            if known.cancelled || !run.is_dirty(sent) {
                run.listed = false;
                return false;
            }
            if ask && !run.asked && (once || known.in_flight == 0) {
                asks.push(entry);
            }
            true
        });
        asks.into_iter().for_each(|entry| self.ask(entry));
        dirty
    }
}

/// Pairs of a partition and of something about it.
type Of<T> = Vec<(Py<PyAny>, T)>;
/// Positions, those ahead of them, and the keys that are late.
type Cut = (Of<Py<PyAny>>, Of<Vec<Py<PyAny>>>, Vec<Py<PyAny>>);

#[pymethods]
impl Keys {
    /// Asks keys for snapshots that something has happened to since their last ones: each at `once`, or
    /// when it has nothing to do. How many such keys there are.
    fn save_dirty(&self, py: Python<'_>, once: bool) -> PyResult<usize> {
        Ok(self.state.with(py, |state| {
            let dirty = state.dirty(true, once);
            let count = dirty.len();
            if let Some(saving) = state.saving() {
                saving.dirty = dirty;
            }
            count
        })?)
    }

    /// How many keys something may have happened to since their last snapshots.
    #[getter]
    fn dirty(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.state.with(py, |state| {
            state.saving().map_or(0, |saving| saving.dirty.len())
        })?)
    }

    /// Closes the cut: the highest absorbed position of each partition for which it has changed, the
    /// absorbed positions behind that, and the keys that are late. With `all`, those behind it include the
    /// ones that were absorbed since the last cut. None while there are results, failures or marks that
    /// were not taken, and after `clear` unless all keys had ended.
    fn cut(&self, py: Python<'_>, all: bool) -> PyResult<Option<Cut>> {
        self.state.with(py, |state| {
            // What keys are late is not known any more once those are let go that have not ended.
            let let_go = state.over && !state.counts.exact;
            if let_go || !state.out.is_empty() {
                return Ok(None);
            }
            let dirty = state.dirty(false, false);
            let (mut late, mut keys) = (Late::new(), Vec::new());
            for &(entry, number) in &dirty {
                let known = state.index.entry(entry);
                if let (Some(run), Some(key)) = (&known.run, &known.key) {
                    late.insert(number, run.covered);
                    keys.push(key.clone_ref(py));
                }
            }
            if let Some(saving) = state.saving() {
                saving.dirty = dirty;
            }
            let (mut positions, mut ahead) = (Vec::new(), Vec::new());
            let tracker = state.tracker.iter_mut();
            for partition in tracker.flat_map(|tracker| &mut tracker.partitions) {
                let (last, absorbed) = partition.cut(py, &late, all)?;
                positions.extend(last.map(|last| (partition.name.clone_ref(py), last)));
                if !absorbed.is_empty() {
                    ahead.push((partition.name.clone_ref(py), absorbed));
                }
            }
            Ok(Some((positions, ahead, keys)))
        })?
    }
}
