//! Keys that open with the state that a checkpoint has of them, and those that it has and that do not run.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};

use super::index::{Entry, Stage, hash_of};
use super::keyed::Keys;
use super::routing::{AfterEnd, State};
use super::sending::has_returned;

/// Of how many keys the states are asked for at a time.
const MANY: usize = 1024;

impl State {
    /// Keys that are to open, and whose states were not asked for yet.
    fn unknown_keys(&mut self, py: Python<'_>) -> Vec<(u32, Py<PyAny>)> {
        if !self.saving().is_some_and(|saving| saving.restores) {
            return Vec::new();
        }
        let mut unknown = Vec::new();
        for &entry in self.unopened.iter().take(MANY) {
            let known = self.index.entry(entry);
            if !known.run.as_ref().is_some_and(|run| run.found)
                && let Some(key) = &known.key
            {
                unknown.push((entry, key.clone_ref(py)));
            }
        }
        unknown
    }

    /// Whether a key may open: what it begins with is known.
    pub(super) fn may_begin(&mut self, entry: u32) -> bool {
        let restores = self.saving().is_some_and(|saving| saving.restores);
        let run = &self.index.entry(entry).run;
        !restores || run.as_ref().is_some_and(|run| run.found)
    }

    /// Takes a key from those that are to open.
    pub(super) fn unqueue(&mut self, entry: u32) {
        if let Some(at) = self.unopened.iter().position(|&other| other == entry) {
            self.unopened.remove(at);
            if at >= self.reserved {
                self.wanting -= 1;
            }
        }
    }

    /// The function of a key has returned in an earlier run of the program. Gives what is to be dropped.
    fn finish_unopened(&mut self, entry: u32, now: u32) -> Option<Entry> {
        self.unqueue(entry);
        let known = self.index.entry(entry);
        self.ending -= usize::from(std::mem::take(&mut known.ends));
        let waiting = std::mem::take(&mut known.waiting);
        self.waiting -= waiting.len() as u64;
        self.counts.dropped += waiting.len() as u64;
        self.tokens_done(entry, u64::MAX);
        self.finish_key(entry, now)
    }

    /// Remembers that the function of a key has returned; and forgets another such key, if those are too
    /// many. Gives what is to be dropped.
    pub(super) fn finish_key(&mut self, entry: u32, now: u32) -> Option<Entry> {
        self.index.finish(entry, now);
        if self.index.finished() <= self.most_finished {
            return None;
        }
        if let Some(saving) = self.saving() {
            saving.restores = true; // the caller knows it still
        }
        let oldest = self.index.oldest_finished()?;
        Some(self.index.remove(oldest))
    }
}

impl Keys {
    /// Asks the host for the states of keys that are to open. Called when everything before was taken,
    /// so that the host has all snapshots. Whether there were such keys.
    pub(super) fn restore_some(&self, py: Python<'_>) -> PyResult<bool> {
        let unknown = self.state.with(py, |state| state.unknown_keys(py))?;
        let host = self.state.with(py, |state| state.host(py))?;
        let Some(host) = host.filter(|_| !unknown.is_empty()) else {
            return Ok(false);
        };
        let (entries, keys): (Vec<_>, Vec<_>) = unknown.into_iter().unzip();
        let found = host.call_method1(py, intern!(py, "restore"), (keys,));
        let found: Vec<Py<PyAny>> = match found.and_then(|found| found.extract(py)) {
            Ok(found) => found,
            Err(error) => {
                self.set_error(py, error)?;
                return Ok(true);
            }
        };
        let now = self.now();
        for (entry, found) in entries.into_iter().zip(found) {
            let found = found.into_bound(py);
            let finished = found.is_instance_of::<PyBool>();
            let refused = self.state.with(py, |state| {
                let known = state.index.entry(entry);
                if known.stage != Stage::Unopened {
                    return None;
                }
                let run = known.run.get_or_insert_default();
                run.found = true;
                run.restored = found.cast_into::<PyBytes>().ok().map(Bound::unbind);
                match (finished, state.after_end) {
                    (false, _) | (true, AfterEnd::Restart) => None,
                    (true, AfterEnd::Raise) if !known.waiting.is_empty() => {
                        let key = known.key.as_ref().map(|key| key.clone_ref(py));
                        Some(Err(key))
                    }
                    (true, _) => Some(Ok(state.finish_unopened(entry, now))),
                }
            })?;
            if let Some(Err(Some(key))) = refused {
                self.set_error(py, has_returned(key.bind(py))?)?;
            }
        }
        Ok(true)
    }
}

#[pymethods]
impl Keys {
    /// From here on the host may have states of keys.
    fn may_restore(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            if let Some(saving) = state.saving() {
                saving.restores = true;
            }
        })?)
    }

    /// Opens keys of which the host has states, and ends their input at once. Those that are known
    /// already stay as they are.
    fn recall(&self, py: Python<'_>, keys: Vec<Bound<'_, PyAny>>) -> PyResult<()> {
        for key in keys {
            let hash = hash_of(&key)?;
            self.state.with(py, |state| -> PyResult<()> {
                if state.index.find(&key, hash)?.is_none() {
                    let entry = state.index.insert(key.unbind(), hash);
                    state.unopened.push_back(entry);
                    state.wanting += 1;
                    state.end(py, entry);
                }
                Ok(())
            })??;
        }
        self.nudge(py);
        Ok(())
    }

    /// Ends the input of all keys that there are, although the source may give more events.
    fn end_keys(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| {
            state.told_end = Some(0);
            if let Some(saving) = state.saving() {
                saving.ends = true;
            }
        })?;
        self.nudge(py);
        Ok(())
    }

    /// How many keys have not ended.
    #[getter]
    fn unended(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.state.with(py, |state| state.live())?)
    }

    /// How many records lie between the first of their partition that is not handled and its last.
    #[getter]
    fn unhandled(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.state.with(py, |state| {
            let tracker = state.tracker.as_ref();
            let partitions = tracker.map_or(&[][..], |tracker| &tracker.partitions);
            partitions
                .iter()
                .map(|partition| partition.distance())
                .sum()
        })?)
    }
}
