//! The events that the function of a key takes from its table.

use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use velo_shm::Allowance;

use super::outlet::{News, Outlet};
use super::slot::{
    ANSWERS, AT_WORK, CANCELLED, ITS_TURN_IS_OVER, LAST, NOTED, Slot, TOOK, UNREADABLE, WAITS, size,
};
use super::table::{Inner, KeyTable};
use crate::errors::{self, Thrown};
use crate::ffi::send_slot::Step;
use crate::flow::Next;
use crate::function::key_port::KeyEvents;
use crate::lane_frames::Name;

impl KeyTable {
    /// The answer to an event comes before a snapshot that makes up for the event. False as in
    /// `answered`.
    fn answered_before_snapshot(&self, py: Python<'_>, name: Name) -> PyResult<bool> {
        Ok(self.inner.with(py, |inner| {
            let Some(slot) = inner.slot(name) else {
                return true;
            };
            let told = !slot.has(ANSWERS) || self.answered(py, name, slot);
            inner.blocked |= !told;
            told
        })?)
    }

    /// A key asks for its next event, so that the answer to its last one is complete. False when there
    /// is no room to say so: the key looks again when it is its turn.
    #[cold]
    fn answered(&self, py: Python<'_>, name: Name, slot: &mut Slot) -> bool {
        let told = self.outlet.tell(py, name, News::Answered).is_none();
        slot.set(ANSWERS, !told);
        slot.set(ITS_TURN_IS_OVER, !told);
        told
    }
}

impl KeyEvents for KeyTable {
    /// The loop that keys run in.
    fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// A step of a key's `async for`.
    #[inline]
    fn step_events(&self, py: Python<'_>, name: Name) -> Result<Step, Thrown> {
        loop {
            match self.next_event(py, name)? {
                Next::Event(event) => return Ok(Step::Return(event)),
                Next::Ended => return Err(PyStopAsyncIteration::new_err(()).into()),
                Next::Empty => {
                    if let Some(waiting) = self.wait_event(py, name)? {
                        return Ok(Step::Yield(waiting));
                    }
                }
            }
        }
    }

    fn allow(&self, allowance: Option<Allowance>) {
        if let Outlet::Ring(port) = &self.outlet {
            port.allow(allowance);
        }
    }

    /// A key ends for its caller, although its function goes on.
    fn give_up(&self, py: Python<'_>, name: Name, outcome: Result<(), PyErr>) {
        if self
            .inner
            .with(py, |inner| inner.slot(name).is_some())
            .unwrap_or(false)
        {
            self.finish(py, name.id, outcome);
        }
    }

    /// The next event of a key.
    #[inline]
    fn next_event(&self, py: Python<'_>, name: Name) -> Result<Next, Thrown> {
        if self.outlet.is_of_parent() {
            return Err(errors::of_worker().into());
        }
        if self.has_state {
            if !self.answered_before_snapshot(py, name)? {
                return Ok(Next::Empty);
            }
            self.save_if_due(py, name)?;
        }
        let next = self.inner.with(py, |inner| {
            let Some(slot) = inner.slot(name) else {
                return Ok(Next::Ended);
            };
            if slot.take(AT_WORK) {
                let bytes = size(slot.current);
                inner.handled(name.id, 1, bytes);
            }
            let slot = &mut inner.slots[name.id as usize];
            if slot.has(ANSWERS) && !self.answered(py, name, slot) {
                inner.blocked = true;
                return Ok(Next::Empty);
            }
            if slot.event.is_none() {
                self.is_at(name.id, slot.taken, false);
                return Ok(match slot.has(LAST) {
                    true => Next::Ended,
                    false => Next::Empty,
                });
            }
            if inner.budget == 0 && self.stepping.load(Relaxed) == name.id {
                slot.set(ITS_TURN_IS_OVER, true);
                return Ok(Next::Empty);
            }
            inner.budget = inner.budget.saturating_sub(1);
            let Some((event, len)) = slot.pop() else {
                return Ok(Next::Empty);
            };
            slot.set(NOTED, false);
            slot.set(AT_WORK, true);
            slot.current = len;
            slot.taken = slot.taken.wrapping_add(1);
            slot.set(TOOK, true);
            self.is_at(name.id, slot.taken, true);
            if slot.requests.is_some() {
                slot.take_request();
            }
            if len == UNREADABLE {
                return Err(event);
            }
            inner.note_trace(py, name.id, &event);
            Ok(Next::Event(event))
        })?;
        next.map_err(|error| PyErr::from_value(error.into_bound(py)).into())
    }

    /// What a key that waits for an event is to wait on; None when one has come meanwhile. Its own
    /// generator, running in its own turn, waits for the table; another task for a future.
    fn wait_event(&self, py: Python<'_>, name: Name) -> PyResult<Option<Py<PyAny>>> {
        let own = self.stepping.load(Relaxed) == name.id;
        let waits = self.inner.with(py, |inner| {
            let Some(slot) = inner.slot(name) else {
                return Ok(Waits::No);
            };
            if slot.has(ITS_TURN_IS_OVER) {
                return Ok(Waits::Here);
            }
            if slot.event.is_some() || slot.has(LAST) {
                return Ok(Waits::No);
            }
            if let Some(wait) = &slot.elsewhere
                && wait.is_waiting(py)
            {
                return Err(errors::busy(
                    "two tasks wait for the next event of one key; let one of them do it",
                ));
            }
            if own {
                slot.set(WAITS, true);
                return Ok(Waits::Here);
            }
            let wait = slot.elsewhere.get_or_insert_default();
            wait.start(self.event_loop.bind(py)).map(Waits::There)
        })??;
        Ok(match waits {
            Waits::No => None,
            Waits::Here => Some(py.None()),
            Waits::There(future) => Some(future),
        })
    }

    /// Whether another task than the key's own waits for an event of it.
    fn waits_elsewhere(&self, py: Python<'_>, name: Name) -> bool {
        let waits = |inner: &mut Inner| {
            inner
                .slot(name)
                .is_some_and(|slot| slot.waits_elsewhere(py).is_some())
        };
        self.inner.with(py, waits).unwrap_or(false)
    }

    /// A wait for an event was given up.
    fn stop_waiting(&self, py: Python<'_>, name: Name) {
        let _ = self.inner.with(py, |inner| {
            if let Some(slot) = inner.slot(name) {
                slot.set(WAITS, false);
                slot.elsewhere = None;
            }
        });
    }

    /// Has a key look again, although no event came.
    fn wake(&self, py: Python<'_>, name: Name) {
        let woken = self.inner.with(py, |inner| {
            let slot = inner.slot(name)?;
            if let Some(wait) = slot.waits_elsewhere(py) {
                wait.wake(py);
            } else if slot.has(WAITS) {
                inner.queue(name.id);
                return Some(());
            }
            None
        });
        if let Ok(Some(())) = woken {
            self.outlet.nudge(py);
        }
    }

    /// Which event a key took last, counted from 1; 0 before the first.
    fn event(&self, py: Python<'_>, name: Name) -> u64 {
        let taken = |inner: &mut Inner| inner.slot(name).map_or(0, |slot| slot.taken);
        self.inner.with(py, taken).unwrap_or(0).into()
    }

    /// Whether the caller wants nothing of a key any more.
    fn is_cancelled(&self, py: Python<'_>, name: Name) -> bool {
        let cancelled = |inner: &mut Inner| inner.slot(name).is_none_or(|s| s.has(CANCELLED));
        self.inner.with(py, cancelled).unwrap_or(false)
    }
}

enum Waits {
    No,
    Here,
    There(Py<PyAny>),
}
