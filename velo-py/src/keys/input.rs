//! The input of a key table: keys that open, their events, the end of their input, cancellation.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::slot::{
    CANCEL_DUE, CANCELLED, DORMANT, LAST, LIVE, STARTED, SUSPENDED, Slot, WAITS, size,
};
use super::table::{Inner, KeyTable};
use super::turn::Turn;
use crate::errors;
use crate::function::deadline::Deadline;
use crate::function::events::Events;
use crate::function::key_port::KeyPort;
use crate::function::source::Source;
use crate::lane_frames::Name;

impl KeyTable {
    /// A key opens: its function is called, and runs with its first event. `state` is the snapshot that
    /// its function has left in another worker. A key whose function is run anew when it has returned is
    /// dormant until its first event, unless there is a snapshot.
    pub fn open(&self, py: Python<'_>, name: Name, state: &[u8]) -> PyResult<()> {
        let mut waits = false;
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
                flags: LIVE | DORMANT,
                ..Slot::default()
            };
            inner.live += 1;
            waits = inner.terms.restarts && state.is_empty();
            false
        })?;
        if wrong {
            return Err(errors::corrupted("a key opens in the place of another one"));
        }
        // The function of a key that moves here may have returned, and the key has no event for the next run.
        if !waits {
            self.awake(py, name, state);
        }
        Ok(())
    }

    pub(super) fn begin(&self, py: Python<'_>, name: Name, state: &[u8]) -> PyResult<Py<PyAny>> {
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
            true => function.call1((events, self.begin_state(py, name, state)?))?,
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
        source.deadline = Deadline::new(
            py,
            self.name.clone(),
            &source.port,
            self.stall,
            self.deadline,
        );
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
        let wakes = |inner: &mut Inner| inner.slot(name).is_some_and(|slot| slot.has(DORMANT));
        if self
            .inner
            .with(py, |inner| inner.terms.restarts && wakes(inner))?
        {
            self.awake(py, name, &[]);
        }
        let goes = self.inner.with(py, |inner| {
            let blocked = inner.blocked;
            let Some(slot) = inner.slot(name) else {
                // Its function has ended, and the caller has not read that yet.
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

    /// The event that is delivered to a key next is a request.
    pub fn note_request(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        Ok(self.inner.with(py, |inner| {
            if let Some(slot) = inner.slot(name) {
                slot.note_request();
            }
        })?)
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

    /// The caller cancels a key: its function is cancelled.
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
