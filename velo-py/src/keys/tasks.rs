//! The tasks of a key table: spare ones, and those that a key is pinned to.

use pyo3::prelude::*;

use super::key_task::{KeyTask, PinnedKeys};
use super::steps::{How, Pause};
use super::table::KeyTable;

/// Maximum number of spare tasks.
const SPARES: usize = 64;

impl KeyTable {
    /// A task to which no key is pinned.
    pub(super) fn take_task(&self, py: Python<'_>) -> PyResult<Py<KeyTask>> {
        match self.inner.with(py, |inner| inner.spares.pop())? {
            Some(spare) => Ok(spare),
            None => KeyTask::start(
                py,
                self.this.clone(),
                (&self.event_loop, &self.name),
                &self.context,
            ),
        }
    }

    /// Keeps a task to which no key is pinned as a spare one, or ends it.
    pub(super) fn give_back(&self, py: Python<'_>, task: Py<KeyTask>) {
        let spoiled = task.get().is_spoiled(py);
        let kept = self.inner.with(py, |inner| {
            let kept = !spoiled && inner.spares.len() < SPARES;
            if kept {
                inner.spares.push(task.clone_ref(py));
            }
            kept
        });
        if !kept.unwrap_or(false) {
            task.get().retire(py);
        }
    }

    /// A key awaits `future`: the task that it is pinned to has to await it.
    pub(super) fn hand(
        &self,
        py: Python<'_>,
        task: &Py<KeyTask>,
        id: u32,
        future: Py<PyAny>,
    ) -> PyResult<()> {
        if let Some(deadline) = self.deadline_of(py, id) {
            deadline.set_task(task.get().task(py)?.bind(py))?;
        }
        self.suspends(py, id)?;
        task.get().hand(py, future)
    }

    /// The key of a task waits for an event or for its turn, or has ended: unpins it if it has no more
    /// use of the task.
    pub(super) fn settle(
        &self,
        py: Python<'_>,
        task: &Py<KeyTask>,
        id: u32,
        pause: &Pause,
    ) -> PyResult<()> {
        let loose = task.get().is_loose(py)?;
        if loose || matches!(pause, Pause::Over) {
            let unpinned = self.inner.with(py, |inner| {
                let slot = inner.at(id);
                // The slot may belong to another key by now, which has a task of its own.
                match &slot.task {
                    Some(pinned) if pinned.is(task) => slot.task.take(),
                    _ => None,
                }
            })?;
            drop(unpinned);
            task.get().unpin(py, loose)?;
            self.give_back(py, task.clone_ref(py));
        }
        if matches!(pause, Pause::Again) {
            self.inner.with(py, |inner| inner.queue(id))?;
        }
        Ok(())
    }
}

impl PinnedKeys for KeyTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn context(&self) -> &Py<PyAny> {
        &self.context
    }

    fn generator(&self, py: Python<'_>, id: u32) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.inner.with(py, |inner| {
            let generator = inner.slots.get(id as usize)?.generator.as_ref()?;
            Some(generator.object().clone_ref(py))
        })?)
    }

    fn step_as(
        &self,
        task: &Bound<'_, KeyTask>,
        id: u32,
        error: Option<PyErr>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let (py, this) = (task.py(), task.get());
        let how = error.map_or(How::Resume, How::Throw);
        let before = this.references(py);
        let pause = self.watched(py, id, || self.run(py, id, how));
        this.hold(py, before);
        let future = match pause {
            Pause::Suspended(future) => {
                self.suspends(py, id)?;
                Some(future)
            }
            pause => {
                self.settle(py, &task.clone().unbind(), id, &pause)?;
                None
            }
        };
        self.stepped_alone(py);
        Ok(future)
    }

    fn forget(&self, task: &Bound<'_, KeyTask>) -> PyResult<()> {
        Ok(self.inner.with(task.py(), |inner| {
            inner.spares.retain(|spare| !spare.is(task));
        })?)
    }
}
