//! Steps keys one after the other, each of them as a task.

use pyo3::prelude::*;

use velo_shm::ticks;

use super::key_task::{KeyTask, References};
use super::slot::{LIVE, SUSPENDED};
use super::steps::{How, Pause};
use super::table::KeyTable;
use crate::ffi::turn::TaskTurn;

/// A turn of a table. From its first step on, the task that steps its keys is the current task; when
/// the turn is dropped, the task that was current before is current again.
pub struct Turn<'a, 'py> {
    py: Python<'py>,
    table: &'a KeyTable,
    as_task: Option<(Py<KeyTask>, TaskTurn)>,
    /// The end of the last step, in ticks.
    now: u64,
}

impl<'a, 'py> Turn<'a, 'py> {
    /// Begins a turn, which costs nothing before its first step.
    pub fn of(py: Python<'py>, table: &'a KeyTable) -> Self {
        Turn {
            py,
            table,
            as_task: None,
            now: ticks::now(),
        }
    }

    /// A step has ended.
    #[inline]
    fn stepped(&mut self, id: u32) {
        let began = std::mem::replace(&mut self.now, ticks::now());
        let took = self.now.saturating_sub(began);
        self.table.ran(self.py, id, began, took);
    }

    /// The token.
    pub fn py(&self) -> Python<'py> {
        self.py
    }

    /// Steps a key until it has to wait.
    #[inline]
    pub fn step(&mut self, id: u32) -> PyResult<()> {
        let (py, table) = (self.py, self.table);
        let pinned = table.inner.with(py, |inner| {
            let slot = inner.at(id);
            match &slot.task {
                // Its own task is going to step it.
                Some(_) if slot.has(SUSPENDED) => Err(()),
                Some(task) => Ok(Some(task.clone_ref(py))),
                None => Ok(None),
            }
        })?;
        match pinned {
            Err(()) => Ok(()),
            Ok(Some(task)) => self.step_pinned(id, &task),
            Ok(None) => self.step_loose(id),
        }
    }

    /// Steps a key without a task of its own, as the current task.
    #[inline]
    fn step_loose(&mut self, id: u32) -> PyResult<()> {
        let (py, table) = (self.py, self.table);
        if self.as_task.is_none() {
            let task = table.take_task(py)?;
            let turn = task.get().enter(py)?;
            self.as_task = Some((task, turn));
        }
        let Some((task, _)) = &self.as_task else {
            return Ok(());
        };
        let before = task.get().references(py);
        let pause = table.run(py, id, How::Resume);
        self.stepped(id);
        let Some((task, _)) = &self.as_task else {
            return Ok(());
        };
        let kept = task.get().is_kept(py, before);
        if !kept && matches!(pause, Pause::Waits | Pause::Over) {
            return Ok(());
        }
        if !kept && matches!(pause, Pause::Again) {
            table.inner.with(py, |inner| inner.queue(id))?;
            return Ok(());
        }
        let after = task.get().references(py);
        self.keep(id, pause, (before, after))
    }

    /// The key that was stepped last keeps the task that stepped it.
    #[cold]
    fn keep(&mut self, id: u32, pause: Pause, held: (References, References)) -> PyResult<()> {
        let (py, table) = (self.py, self.table);
        let Some((task, turn)) = self.as_task.take() else {
            return Ok(());
        };
        turn.leave(py)?;
        task.get().pin(py, id, held)?;
        let open = table.inner.with(py, |inner| {
            let slot = inner.at(id);
            let open = slot.has(LIVE) && !matches!(pause, Pause::Over);
            if open {
                slot.task = Some(task.clone_ref(py));
            }
            open
        })?;
        if !open {
            // It is over, and the user's code knows the task: no other key can have it.
            task.get().retire(py);
            return Ok(());
        }
        self.settle(id, &task, pause)
    }

    fn step_pinned(&mut self, id: u32, task: &Py<KeyTask>) -> PyResult<()> {
        let (py, table) = (self.py, self.table);
        if let Some((task, turn)) = self.as_task.take() {
            turn.leave(py)?;
            table.give_back(py, task);
        }
        let turn = task.get().enter(py)?;
        let before = task.get().references(py);
        let pause = table.run(py, id, How::Resume);
        self.stepped(id);
        task.get().hold(py, before);
        turn.leave(py)?;
        self.settle(id, task, pause)
    }

    fn settle(&mut self, id: u32, task: &Py<KeyTask>, pause: Pause) -> PyResult<()> {
        match pause {
            Pause::Suspended(future) => self.table.hand(self.py, task, id, future),
            pause => self.table.settle(self.py, task, id, &pause),
        }
    }
}

impl Drop for Turn<'_, '_> {
    fn drop(&mut self) {
        if let Some((task, turn)) = self.as_task.take() {
            if let Err(error) = turn.leave(self.py) {
                error.write_unraisable(self.py, None);
            }
            self.table.give_back(self.py, task);
        }
    }
}
