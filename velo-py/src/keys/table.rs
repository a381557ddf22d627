//! The generators of many keys, and whose turn it is.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::index::NONE;
use super::key_task::KeyTask;
use super::outlet::Outlet;
use super::slot::{
    CANCEL_DUE, CANCELLED, LAST, LIVE, QUEUED, SHARES, STARTED, SUSPENDED, Slot, WAITS, size,
};
use super::turn::Turn;
use crate::cell::GilCell;
use crate::errors;
use crate::ffi::asyncgen::AsyncGen;
use crate::function::deadline::Deadline;
use crate::function::events::Events;
use crate::function::key_port::KeyPort;
use crate::function::source::Source;
use crate::lane_frames::{Name, Terms};

/// What was handled is told after so many events, at the latest.
pub const TELL_EVERY: u64 = 256;
/// A key may take so many events, and yield so many results, before it is another's turn.
pub const BUDGET: u32 = 64;
/// So many tasks are kept for keys to be stepped as.
pub const SPARES: usize = 64;
/// The keys of one function.
pub struct KeyTable {
    pub(super) event_loop: Py<PyAny>,
    pub(super) function: Py<PyAny>,
    pub(super) has_state: bool,
    /// What tasks are called.
    pub(super) name: String,
    /// How many seconds a key may take for one event.
    pub(super) deadline: Option<f64>,
    /// How long one step may take.
    pub(super) stall: Option<Duration>,
    pub(super) outlet: Outlet,
    pub(super) inner: GilCell<Inner>,
    /// The key whose generator runs now.
    pub(super) stepping: AtomicU32,
    /// The context that no key has changed.
    pub(super) context: Py<PyAny>,
    pub(super) this: Weak<KeyTable>,
}

/// What of a table changes.
pub struct Inner {
    pub(super) slots: Vec<Slot>,
    /// Keys that can go on, each once.
    pub(super) runnable: VecDeque<u32>,
    /// Tasks that nobody is pinned to.
    pub(super) spares: Vec<Py<KeyTask>>,
    /// Ends that found no room.
    pub(super) unsent: VecDeque<(Name, Result<(), PyErr>)>,
    /// There is no room for results: nobody is stepped.
    pub(super) blocked: bool,
    pub(super) terms: Terms,
    /// How much was handled, and how much of it was told.
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) told: u64,
    /// Keys of which something has to be told.
    pub(super) shares: Vec<u32>,
    pub(super) live: usize,
    /// What is left of the running key's budget.
    pub(super) budget: u32,
}
impl Inner {
    /// The key of this name, if it is open.
    #[inline]
    pub(super) fn slot(&mut self, name: Name) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(name.id as usize)?;
        (slot.generation == name.generation && slot.has(LIVE)).then_some(slot)
    }

    pub(super) fn at(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    pub(super) fn name(&self, id: u32) -> Name {
        Name {
            id,
            generation: self.slots[id as usize].generation,
        }
    }

    pub(super) fn queue(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        if slot.has(LIVE) && !slot.has(QUEUED) {
            slot.set(QUEUED, true);
            self.runnable.push_back(id);
        }
    }

    /// A key is done with events.
    #[inline]
    pub(super) fn handled(&mut self, id: u32, events: u32, bytes: u64) {
        self.events += u64::from(events);
        self.bytes += bytes;
        let slot = &mut self.slots[id as usize];
        slot.untold += events;
        let due = self.terms.tells_all || slot.untold * 2 >= self.terms.window;
        if due && !slot.has(SHARES) {
            slot.set(SHARES, true);
            self.shares.push(id);
        }
    }
}
impl KeyTable {
    /// A table of `function`, whose tasks run in `event_loop`.
    pub fn new(
        event_loop: Py<PyAny>,
        context: Py<PyAny>,
        (function, has_state): (Py<PyAny>, bool),
        name: String,
        (terms, stall, deadline): (Terms, Option<f64>, Option<f64>),
        outlet: Outlet,
    ) -> Arc<Self> {
        let inner = Inner {
            slots: Vec::new(),
            runnable: VecDeque::new(),
            spares: Vec::new(),
            unsent: VecDeque::new(),
            blocked: false,
            terms,
            events: 0,
            bytes: 0,
            told: 0,
            shares: Vec::new(),
            live: 0,
            budget: BUDGET,
        };
        Arc::new_cyclic(|this| KeyTable {
            event_loop,
            function,
            has_state,
            name,
            deadline,
            stall: stall.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            outlet,
            inner: GilCell::new(inner),
            stepping: AtomicU32::new(NONE),
            context,
            this: this.clone(),
        })
    }
    /// The terms of the lane.
    pub fn agree(&self, py: Python<'_>, terms: Terms) -> PyResult<()> {
        Ok(self.inner.with(py, |inner| inner.terms = terms)?)
    }

    /// A key opens: its function is called, and runs with its first event.
    pub fn open(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        let wrong = self.inner.with(py, |inner| {
            let id = name.id as usize;
            if id > inner.slots.len() {
                return true; // ids are dense
            }
            if id == inner.slots.len() {
                inner.slots.push(Slot::default());
            }
            let slot = &mut inner.slots[id];
            if slot.has(LIVE) {
                return true;
            }
            *slot = Slot {
                generation: name.generation,
                flags: LIVE,
                ..Slot::default()
            };
            inner.live += 1;
            false
        })?;
        if wrong {
            return Err(errors::corrupted("a key opens in the place of another one"));
        }
        match self.begin(py, name) {
            Ok(generator) => {
                let generator = AsyncGen::of_owner(py, generator);
                self.inner.with(py, |inner| {
                    if let Some(slot) = inner.slot(name) {
                        slot.generator = Some(generator);
                    }
                })?;
                Ok(())
            }
            Err(error) => {
                self.finish(py, name.id, Err(error));
                Ok(())
            }
        }
    }

    fn begin(&self, py: Python<'_>, name: Name) -> PyResult<Py<PyAny>> {
        let Some(this) = self.this.upgrade() else {
            return Err(errors::velo("the keys of this function are gone"));
        };
        let port = KeyPort { table: this, name };
        let events = match self.deadline {
            None => Events::of_key(port),
            Some(_) => Events::new(self.within_deadline(py, port)?),
        };
        let function = self.function.bind(py);
        let made = match self.has_state {
            true => function.call1((events, PyDict::new(py)))?,
            false => function.call1((events,))?,
        };
        // SAFETY: only the type pointer of a live object is read.
        let plain = unsafe { pyo3::ffi::PyAsyncGen_CheckExact(made.as_ptr()) } != 0;
        if plain || made.hasattr(intern!(py, "__anext__"))? {
            return Ok(made.unbind());
        }
        Err(PyTypeError::new_err(format!(
            "a stream function must return an async iterator, not {}",
            made.get_type().name()?
        )))
    }

    /// The source of a key's events, under a deadline that its slot knows too.
    fn within_deadline(&self, py: Python<'_>, port: KeyPort) -> PyResult<Source> {
        let name = port.name;
        let mut source = Source::of_key(port);
        source.deadline = Deadline::new(self.name.clone(), &source.port, None, self.deadline);
        let budget = source.deadline.clone();
        self.inner.with(py, |inner| {
            if let Some(slot) = inner.slot(name) {
                slot.deadline = budget;
            }
        })?;
        Ok(source)
    }

    /// An event of a key, `len` bytes long. The key is stepped at once if that is what it waits for.
    #[inline]
    pub fn deliver(
        &self,
        turn: &mut Turn<'_, '_>,
        name: Name,
        event: Py<PyAny>,
        len: u32,
    ) -> PyResult<()> {
        let py = turn.py();
        let goes = self.inner.with(py, |inner| {
            let blocked = inner.blocked;
            let Some(slot) = inner.slot(name) else {
                // Its function has ended, which the caller did not know yet.
                inner.events += 1;
                inner.bytes += size(len);
                return (false, Some(event));
            };
            slot.push(event, len);
            let ready = slot.has(WAITS) || !slot.has(STARTED);
            if let Some(wait) = slot.waits_elsewhere(py) {
                wait.wake(py);
                (false, None)
            } else if ready && blocked {
                inner.queue(name.id);
                (false, None)
            } else {
                (ready, None)
            }
        })?;
        drop(goes.1);
        match goes.0 {
            true => turn.step(name.id),
            false => Ok(()),
        }
    }

    /// A key gets no more events.
    pub fn last(&self, turn: &mut Turn<'_, '_>, name: Name) -> PyResult<()> {
        let py = turn.py();
        self.inner.with(py, |inner| {
            let Some(slot) = inner.slot(name) else {
                return;
            };
            slot.set(LAST, true);
            if let Some(wait) = slot.waits_elsewhere(py) {
                wait.wake(py);
            }
            if slot.has(WAITS) || !slot.has(STARTED) {
                inner.queue(name.id);
            }
        })?;
        Ok(())
    }

    /// A key is not wanted any more: its function is cancelled.
    pub fn cancel(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        let task = self.inner.with(py, |inner| {
            let slot = inner.slot(name)?;
            slot.set(CANCELLED | LAST, true);
            if slot.has(SUSPENDED) {
                return slot.task.as_ref().map(|task| task.clone_ref(py));
            }
            slot.set(CANCEL_DUE, true);
            inner.queue(name.id);
            None
        })?;
        match task {
            Some(task) => task.get().cancel(py),
            None => Ok(()),
        }
    }

    /// Cancels every key.
    pub fn cancel_all(&self, py: Python<'_>) -> PyResult<()> {
        let names: Vec<Name> = self.inner.with(py, |inner| {
            let ids = 0..inner.slots.len() as u32;
            let live = ids.filter(|id| inner.slots[*id as usize].has(LIVE));
            live.map(|id| inner.name(id)).collect()
        })?;
        names.into_iter().try_for_each(|name| self.cancel(py, name))
    }
}
