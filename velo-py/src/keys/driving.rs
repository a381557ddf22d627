//! Drives a table: steps runnable keys, reports handled events, and ends.

use pyo3::prelude::*;
use velo_shm::ticks;

use super::outlet::Outlet;
use super::slot::{LIVE, QUEUED, SHARES};
use super::table::{KeyTable, TELL_EVERY};
use super::turn::Turn;
use crate::function::{deadline, slow_steps};
use crate::lane_frames::{Handled, Name};

impl KeyTable {
    /// There may be room for results again.
    pub fn unblock(&self, py: Python<'_>) -> PyResult<()> {
        while let Some((name, news)) = self.inner.with(py, |inner| inner.unsent.pop_front())? {
            if let Some(news) = self.outlet.tell(py, name, news) {
                self.inner
                    .with(py, |inner| inner.unsent.push_front((name, news)))?;
                return Ok(());
            }
        }
        self.inner.with(py, |inner| inner.blocked = false)?;
        self.save_unsaved(py)
    }

    /// Whether keys wait for their turn, and may have it.
    pub fn has_runnable(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self
            .inner
            .with(py, |inner| !inner.blocked && !inner.runnable.is_empty())?)
    }

    /// Whether keys wait for room.
    pub fn is_blocked(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner.with(py, |inner| inner.blocked)?)
    }

    /// The number of open keys.
    pub fn live(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self
            .inner
            .with(py, |inner| inner.live + inner.unsent.len())?)
    }

    /// Steps at most `most` runnable keys.
    pub fn drive(&self, turn: &mut Turn<'_, '_>, most: usize) -> PyResult<()> {
        let py = turn.py();
        for _ in 0..most {
            let next = self.inner.with(py, |inner| {
                if inner.blocked {
                    return None;
                }
                let id = inner.runnable.pop_front()?;
                let slot = &mut inner.slots[id as usize];
                let goes = slot.take(QUEUED);
                Some((id, goes))
            })?;
            match next {
                None => break,
                Some((id, true)) => turn.step(id)?,
                Some((_, false)) => {} // it has ended, or has had its turn
            }
        }
        self.tell_handled(py, false)
    }

    /// Reports handled events to the caller: all of them, or only once they are many.
    pub fn tell_handled(&self, py: Python<'_>, all: bool) -> PyResult<()> {
        let told = self.inner.with(py, |inner| {
            let much = inner.events - inner.told;
            if much == 0 || (!all && much < TELL_EVERY && inner.shares.is_empty()) {
                return None;
            }
            let shares = std::mem::take(&mut inner.shares);
            let keys = shares.iter().filter_map(|&id| {
                let slot = &mut inner.slots[id as usize];
                slot.set(SHARES, false);
                let count = std::mem::take(&mut slot.untold);
                let name = Name {
                    id,
                    generation: slot.generation,
                };
                (slot.has(LIVE) && count > 0).then_some((name, count))
            });
            let handled = Handled {
                events: inner.events,
                bytes: inner.bytes,
                keys: keys.collect(),
            };
            inner.told = inner.events;
            Some(handled)
        })?;
        let Some(handled) = told else {
            return Ok(());
        };
        if !self.outlet.handled(py, &handled)? {
            self.inner.with(py, |inner| {
                // The next time, with whatever comes until then.
                inner.told = 0;
                inner.blocked = true;
                for (name, count) in handled.keys {
                    if let Some(slot) = inner.slot(name) {
                        slot.untold += count;
                        if !slot.has(SHARES) {
                            slot.set(SHARES, true);
                            inner.shares.push(name.id);
                        }
                    }
                }
            })?;
        }
        Ok(())
    }

    /// A key has run for this number of ticks.
    #[inline]
    pub(super) fn ran(&self, py: Python<'_>, id: u32, began: u64, took: u64) {
        if took > slow_steps::limit()
            && let Some(ran) = slow_steps::without_standstill(took)
        {
            self.was_slow(py, began, ran);
        }
        deadline::ran(took);
        self.note_step(py, id, took);
        if self.deadline.is_some()
            && let Some(deadline) = self.deadline_of(py, id)
        {
            deadline.ran(py, took);
        }
    }

    #[cold]
    fn was_slow(&self, py: Python<'_>, began: u64, took: u64) {
        match &self.outlet {
            Outlet::Inline(_) => slow_steps::report(py, &self.name, began, took),
            Outlet::Ring(port) => port.was_slow(py, took),
        }
    }

    /// Runs a step of a key's own task, and notes the key and the duration.
    pub(super) fn watched<R>(&self, py: Python<'_>, id: u32, step: impl FnOnce() -> R) -> R {
        let began = ticks::now();
        let came = match &self.outlet {
            Outlet::Inline(_) => step(),
            Outlet::Ring(port) => port.observe_lane(self.allowance(), step),
        };
        let took = ticks::now().saturating_sub(began);
        self.ran(py, id, began, took);
        came
    }

    /// A key was stepped by its own task: what came of it is shown, and whoever is next has its turn.
    pub(super) fn stepped_alone(&self, py: Python<'_>) {
        if let Err(error) = self.tell_handled(py, true) {
            error.write_unraisable(py, None);
        }
        self.outlet.flush(py);
        if self.has_runnable(py).unwrap_or(false) || self.live(py).unwrap_or(1) == 0 {
            self.outlet.nudge(py);
        }
    }

    /// The table has lost its caller: generators are closed, tasks end.
    pub fn clear(&self, py: Python<'_>) {
        let left = self.inner.with(py, |inner| {
            inner.live = 0;
            let slots = std::mem::take(&mut inner.slots);
            (slots, std::mem::take(&mut inner.spares))
        });
        if let Ok((slots, spares)) = left {
            for task in spares
                .iter()
                .chain(slots.iter().filter_map(|s| s.task.as_ref()))
            {
                task.get().retire(py);
            }
            drop((slots, spares));
        }
    }
}
