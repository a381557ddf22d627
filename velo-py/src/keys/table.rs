//! A key table: a slot for each key of one function, and the queue of keys that can run.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::index::NONE;
use super::key_task::KeyTask;
use super::outlet::{News, Outlet};
use super::slot::{LIVE, QUEUED, SHARES, Slot};
use super::watched::Watching;
use crate::cell::GilCell;
use crate::function::deadline::Deadline;
use crate::function::flush_timer::FlushTimer;
use crate::lane_frames::{Name, Terms};

/// After how many events, at the latest, the table tells what was handled.
pub const TELL_EVERY: u64 = 256;
/// How many events a key may take, and how many results it may yield, before it is another's turn.
pub const BUDGET: u32 = 64;
/// The keys of one function.
pub struct KeyTable {
    pub(super) event_loop: Py<PyAny>,
    pub(super) function: Py<PyAny>,
    pub(super) has_state: bool,
    /// What tasks are called.
    pub(super) name: String,
    /// How many seconds a key may take for one event.
    pub(super) deadline: Option<f64>,
    /// How many seconds one step may take.
    pub(super) stall: Option<f64>,
    pub(super) outlet: Outlet,
    pub(super) inner: GilCell<Inner>,
    /// When results are shown to the caller while a key runs.
    pub(super) pace: FlushTimer,
    /// Its keys are saved, and taken over when this worker dies.
    pub(super) recovers: AtomicBool,
    /// The key whose generator runs now.
    pub(super) stepping: AtomicU32,
    /// The context that no key has changed.
    pub(super) context: Py<PyAny>,
    pub(super) this: Weak<KeyTable>,
    pub(super) watching: Watching,
}

/// What of a table changes.
pub struct Inner {
    pub(super) slots: Vec<Slot>,
    /// Keys that can go on, each once.
    pub(super) runnable: VecDeque<u32>,
    /// Tasks that no key is pinned to.
    pub(super) spares: Vec<Py<KeyTask>>,
    /// Keys whose snapshot found no room.
    pub(super) unsaved: Vec<Name>,
    /// Ends and the like that found no room.
    pub(super) unsent: VecDeque<(Name, News)>,
    /// There is no room for results: no key is stepped.
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
    /// The trace context of the records in hand that have one.
    pub(super) traces: HashMap<u32, Py<PyTuple>>,
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
            unsaved: Vec::new(),
            unsent: VecDeque::new(),
            blocked: false,
            terms,
            events: 0,
            bytes: 0,
            told: 0,
            shares: Vec::new(),
            live: 0,
            budget: BUDGET,
            traces: HashMap::new(),
        };
        Arc::new_cyclic(|this| KeyTable {
            event_loop,
            function,
            has_state,
            name,
            deadline,
            stall,
            outlet,
            inner: GilCell::new(inner),
            pace: FlushTimer::default(),
            recovers: AtomicBool::new(terms.recovers),
            stepping: AtomicU32::new(NONE),
            context,
            this: this.clone(),
            watching: Watching::default(),
        })
    }

    /// The terms of the lane.
    pub fn agree(&self, py: Python<'_>, terms: Terms) -> PyResult<()> {
        self.recovers.store(terms.recovers, Relaxed);
        Ok(self.inner.with(py, |inner| inner.terms = terms)?)
    }

    /// How long a key may take for its event, where that is limited.
    pub(super) fn deadline_of(&self, py: Python<'_>, id: u32) -> Option<Arc<Deadline>> {
        let deadline = self.inner.with(py, |inner| inner.at(id).deadline.clone());
        deadline.ok().flatten()
    }
}
