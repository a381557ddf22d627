//! The generators of many keys, and whose turn it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pyo3::exceptions::{PyStopAsyncIteration, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::{Allowance, Setting, ticks};

use super::frames::{Handled, Name, Terms};
use super::index::NONE;
use super::key_task::KeyTask;
use super::outlet::Outlet;
use super::turn::Turn;
use super::waiting::Waiting;
use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::function::deadline::{self, Budget};
use crate::function::events::{Events, Source};
use crate::ffi::asyncgen::AsyncGen;
use crate::ffi::send_slot::Step;
use crate::function::port::Next;
use crate::function::slow_steps;
use crate::wait::Wait;

/// What was handled is told after so many events, at the latest.
pub const TELL_EVERY: u64 = 256;
/// A key may take so many events, and yield so many results, before it is another's turn.
pub const BUDGET: u32 = 64;
/// So many tasks are kept for keys to be stepped as.
pub const SPARES: usize = 64;
/// In place of an event's length: the object is the exception that reading it has raised.
pub const UNREADABLE: u32 = u32::MAX;

/// The keys of one function.
pub struct KeyTable {
    pub(super) event_loop: Py<PyAny>,
    function: Py<PyAny>,
    has_state: bool,
    /// What tasks are called.
    pub(super) name: String,
    /// How many seconds a key may take for one event.
    deadline: Option<f64>,
    /// How long one step may take.
    stall: Option<Duration>,
    pub(super) outlet: Outlet,
    pub(super) inner: GilCell<Inner>,
    /// The key whose generator runs now.
    stepping: AtomicU32,
    /// The context that no key has changed.
    pub(super) context: Py<PyAny>,
    pub(super) this: Weak<KeyTable>,
}

/// What of a table changes.
pub struct Inner {
    slots: Vec<Slot>,
    /// Keys that can go on, each once.
    pub(super) runnable: VecDeque<u32>,
    /// Tasks that nobody is pinned to.
    pub(super) spares: Vec<Py<KeyTask>>,
    /// Ends that found no room.
    unsent: VecDeque<(Name, Result<(), PyErr>)>,
    /// There is no room for results: nobody is stepped.
    blocked: bool,
    terms: Terms,
    /// How much was handled, and how much of it was told.
    events: u64,
    bytes: u64,
    told: u64,
    /// Keys of which something has to be told.
    shares: Vec<u32>,
    live: usize,
    /// What is left of the running key's budget.
    budget: u32,
}

/// One key.
#[derive(Default)]
pub struct Slot {
    generation: u32,
    flags: u16,
    /// Its first event, while it has one that it has not taken.
    event: Option<Py<PyAny>>,
    /// How long that was.
    len: u32,
    /// Those behind it.
    more: Waiting,
    /// None while it runs, and when it is over.
    generator: Option<AsyncGen>,
    /// A result that had no room. The generator stands at its `yield`.
    result: Option<Py<PyAny>>,
    /// The task that it is pinned to.
    pub(super) task: Option<Py<KeyTask>>,
    /// How many events it has taken.
    taken: u32,
    /// The length of the event that it has at present.
    current: u32,
    /// Events that it has handled and that the caller was not told of.
    untold: u32,
    /// Where another task than its own waits for an event.
    elsewhere: Option<Box<Wait>>,
    /// How long it may take for an event.
    pub(super) deadline: Option<Arc<Budget>>,
}

/// It is open.
pub const LIVE: u16 = 1;
/// It waits for an event, and for nothing else.
pub const WAITS: u16 = 2;
/// It is one of the runnable ones.
const QUEUED: u16 = 4;
/// It gets no more events.
const LAST: u16 = 8;
/// The caller wants nothing of it any more.
const CANCELLED: u16 = 16;
/// `GeneratorExit` was thrown in.
const CLOSING: u16 = 32;
/// It has an event, until it asks for the next one.
const AT_WORK: u16 = 64;
/// It is to go on, but it is the turn of others first.
const ITS_TURN_IS_OVER: u16 = 128;
/// It has begun to run.
const STARTED: u16 = 256;
/// It has to be told that it was cancelled.
const CANCEL_DUE: u16 = 512;
/// It awaits a future, in a task.
pub const SUSPENDED: u16 = 1024;
/// It is one of those in `shares`.
const SHARES: u16 = 2048;

impl Slot {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    fn take(&mut self, flag: u16) -> bool {
        let had = self.has(flag);
        self.flags &= !flag;
        had
    }

    /// Where another task than its own waits for an event, if one does.
    #[inline]
    fn waits_elsewhere(&self, py: Python<'_>) -> Option<&Wait> {
        let wait = self.elsewhere.as_deref()?;
        wait.is_waiting(py).then_some(wait)
    }

    fn push(&mut self, event: Py<PyAny>, len: u32) {
        if self.event.is_none() {
            (self.event, self.len) = (Some(event), len);
        } else {
            self.more.push(event, len);
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<(Py<PyAny>, u32)> {
        let event = self.event.take()?;
        let len = self.len;
        if let Some((next, len)) = self.more.pop() {
            (self.event, self.len) = (Some(next), len);
        }
        Some((event, len))
    }
}

/// Why a key does not run.
pub enum Pause {
    /// It waits for an event.
    Waits,
    /// It awaits something else, which its task has to see.
    Suspended(Py<PyAny>),
    /// It can go on once it is its turn again.
    Again,
    /// It is over, or was not to run at all.
    Over,
}

/// How a generator is to go on.
pub enum How {
    Resume,
    Throw(PyErr),
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
    fn handled(&mut self, id: u32, events: u32, bytes: u64) {
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

    // What the caller says.

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
        let events = match self.deadline {
            None => Events::of_key(this, name),
            Some(_) => Events::new(self.within_deadline(py, this, name)?),
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

    /// What the events of a key come from that may not take too long for one.
    fn within_deadline(&self, py: Python<'_>, this: Arc<Self>, name: Name) -> PyResult<Source> {
        let mut source = Source::of_key(this, name);
        source.budget = Budget::new(self.name.clone(), &source.port, None, self.deadline);
        let budget = source.budget.clone();
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

    // What a key asks.

    /// The loop that keys run in.
    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// A step of a key's `async for`.
    #[inline]
    pub fn step_events(&self, py: Python<'_>, name: Name) -> Result<Step, Thrown> {
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

    /// A key ends for its caller, although its function goes on.
    pub fn give_up(&self, py: Python<'_>, name: Name, outcome: Result<(), PyErr>) {
        if self.inner.with(py, |inner| inner.slot(name).is_some()).unwrap_or(false) {
            self.finish(py, name.id, outcome);
        }
    }

    /// The next event of a key.
    #[inline]
    pub fn next_event(&self, py: Python<'_>, name: Name) -> Result<Next, Thrown> {
        let next = self.inner.with(py, |inner| {
            let Some(slot) = inner.slot(name) else {
                return Ok(Next::Ended);
            };
            if slot.take(AT_WORK) {
                let bytes = size(slot.current);
                inner.handled(name.id, 1, bytes);
            }
            let slot = &mut inner.slots[name.id as usize];
            if slot.event.is_none() {
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
            slot.set(AT_WORK, true);
            slot.current = len;
            slot.taken = slot.taken.wrapping_add(1);
            if len == UNREADABLE {
                return Err(event);
            }
            Ok(Next::Event(event))
        })?;
        next.map_err(|error| PyErr::from_value(error.into_bound(py)).into())
    }

    /// What a key that waits for an event is to wait on; None when one has come meanwhile. Its own
    /// generator, running in its own turn, waits for the table; another task for a future.
    pub fn wait_event(&self, py: Python<'_>, name: Name) -> PyResult<Option<Py<PyAny>>> {
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
    pub fn waits_elsewhere(&self, py: Python<'_>, name: Name) -> bool {
        let waits = |inner: &mut Inner| {
            inner.slot(name).is_some_and(|slot| slot.waits_elsewhere(py).is_some())
        };
        self.inner.with(py, waits).unwrap_or(false)
    }

    /// A wait for an event was given up.
    pub fn stop_waiting(&self, py: Python<'_>, name: Name) {
        let _ = self.inner.with(py, |inner| {
            if let Some(slot) = inner.slot(name) {
                slot.set(WAITS, false);
                slot.elsewhere = None;
            }
        });
    }

    /// Has a key look again, although no event came.
    pub fn wake(&self, py: Python<'_>, name: Name) {
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

    /// The generator of a key, unless it runs right now.
    pub(super) fn generator(&self, py: Python<'_>, id: u32) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.inner.with(py, |inner| {
            let generator = inner.slots.get(id as usize)?.generator.as_ref()?;
            Some(generator.object().clone_ref(py))
        })?)
    }

    /// Which event a key took last, counted from 1; 0 before the first.
    pub fn event(&self, py: Python<'_>, name: Name) -> u64 {
        let taken = |inner: &mut Inner| inner.slot(name).map_or(0, |slot| slot.taken);
        self.inner.with(py, taken).unwrap_or(0).into()
    }

    /// Whether the caller wants nothing of a key any more.
    pub fn is_cancelled(&self, py: Python<'_>, name: Name) -> bool {
        let cancelled = |inner: &mut Inner| inner.slot(name).is_none_or(|s| s.has(CANCELLED));
        self.inner.with(py, cancelled).unwrap_or(false)
    }

    // Steps.

    /// Runs a key until it has to wait. The caller has made its task the current one.
    #[inline]
    pub(super) fn run(&self, py: Python<'_>, id: u32, how: How) -> Pause {
        let begun = self.inner.with(py, |inner| {
            inner.budget = BUDGET;
            let slot = &mut inner.slots[id as usize];
            let name = Name {
                id,
                generation: slot.generation,
            };
            slot.flags |= STARTED;
            slot.flags &= !(WAITS | QUEUED | ITS_TURN_IS_OVER | SUSPENDED);
            let cancel = slot.take(CANCEL_DUE);
            let generator = slot.generator.take()?;
            Some((name, generator, slot.result.take(), cancel))
        });
        let Ok(Some((name, mut generator, result, cancel))) = begun else {
            return Pause::Over;
        };
        let how = match how {
            How::Resume if cancel => How::Throw(cancelled()),
            how => how,
        };
        let before = self.stepping.swap(id, Relaxed);
        let stepped = self.advance(py, name, &mut generator, result, how);
        self.stepping.store(before, Relaxed);
        match stepped {
            Ok(pause) => {
                let kept = self.inner.with(py, |inner| {
                    if let Some(slot) = inner.slot(name) {
                        slot.generator = Some(generator);
                    }
                });
                debug_assert!(kept.is_ok());
                pause
            }
            Err(outcome) => {
                self.finish(py, id, outcome);
                Pause::Over
            }
        }
    }

    /// Err: what the function came to.
    fn advance(
        &self,
        py: Python<'_>,
        name: Name,
        generator: &mut AsyncGen,
        mut result: Option<Py<PyAny>>,
        how: How,
    ) -> Result<Pause, Result<(), PyErr>> {
        let none = py.None();
        let none = none.bind(py);
        let mut came = match how {
            How::Resume => None,
            // At a `yield` nothing is awaited that could be cancelled: the generator is closed.
            How::Throw(error) => Some(match result.take() {
                Some(_) if is_cancellation(py, &error) => {
                    self.mark(py, name, CLOSING);
                    generator.close(py)
                }
                _ => generator.throw(py, error),
            }),
        };
        loop {
            let step = match came.take() {
                Some(step) => step,
                None => {
                    if let Some(made) = result.take() {
                        match self.outlet.result(py, name, &made) {
                            Ok(true) => {
                                if self.yielded(py, name) {
                                    return Ok(Pause::Again);
                                }
                            }
                            Ok(false) => {
                                let _ = self.inner.with(py, |inner| {
                                    inner.blocked = true;
                                    inner.at(name.id).result = Some(made);
                                });
                                return Ok(Pause::Again);
                            }
                            // What cannot be sent fails at the `yield` that made it.
                            Err(error) => {
                                came = Some(generator.throw(py, error));
                                continue;
                            }
                        }
                    }
                    generator.resume(py, none)
                }
            };
            match step {
                Ok(crate::ffi::asyncgen::Resumed::Yielded(made)) => {
                    let flags = self.flags(py, name);
                    if flags & CLOSING != 0 {
                        let what = "async generator ignored GeneratorExit";
                        let error = pyo3::exceptions::PyRuntimeError::new_err(what);
                        return Err(Err(error));
                    }
                    if flags & CANCELLED != 0 || self.has_expired(py, name) {
                        self.mark(py, name, CLOSING);
                        came = Some(generator.close(py));
                        continue;
                    }
                    result = Some(made);
                }
                Ok(crate::ffi::asyncgen::Resumed::Awaiting(waiting)) => {
                    if waiting.is_none(py) {
                        let flags = self.flags(py, name);
                        if flags & WAITS != 0 {
                            return Ok(Pause::Waits);
                        }
                        if flags & ITS_TURN_IS_OVER != 0 {
                            return Ok(Pause::Again);
                        }
                    }
                    return Ok(Pause::Suspended(waiting));
                }
                Ok(crate::ffi::asyncgen::Resumed::Finished) => return Err(Ok(())),
                Err(error)
                    if self.flags(py, name) & CLOSING != 0
                        && error.is_instance_of::<pyo3::exceptions::PyGeneratorExit>(py) =>
                {
                    return Err(Ok(()));
                }
                Err(error) => return Err(Err(error.into())),
            }
        }
    }

    /// A result of the running key was sent. Whether its turn is over.
    #[inline]
    fn yielded(&self, py: Python<'_>, _name: Name) -> bool {
        let spend = |inner: &mut Inner| {
            inner.budget = inner.budget.saturating_sub(1);
            inner.budget == 0
        };
        self.inner.with(py, spend).unwrap_or(true)
    }

    #[inline]
    fn flags(&self, py: Python<'_>, name: Name) -> u16 {
        let flags = |inner: &mut Inner| inner.at(name.id).flags;
        self.inner.with(py, flags).unwrap_or(0)
    }

    fn mark(&self, py: Python<'_>, name: Name, flag: u16) {
        let _ = self
            .inner
            .with(py, |inner| inner.at(name.id).set(flag, true));
    }

    /// Whether the time of a key for its event is up.
    #[inline]
    fn has_expired(&self, py: Python<'_>, name: Name) -> bool {
        let deadline = self.deadline.and_then(|_| self.deadline_of(py, name.id));
        deadline.is_some_and(|deadline| deadline.has_expired(py))
    }

    pub(super) fn deadline_of(&self, py: Python<'_>, id: u32) -> Option<Arc<Budget>> {
        let deadline = self.inner.with(py, |inner| inner.at(id).deadline.clone());
        deadline.ok().flatten()
    }

    /// The function of a key has ended.
    fn finish(&self, py: Python<'_>, id: u32, outcome: Result<(), PyErr>) {
        let outcome = match self.deadline.and_then(|_| self.deadline_of(py, id)) {
            None => outcome,
            Some(deadline) => deadline.outcome(py, outcome).unwrap_or(Ok(())),
        };
        let outcome = outcome.map_err(|error| match is_cancellation(py, &error) {
            true => errors::closed("the stream function was cancelled"),
            false => error,
        });
        let ended = self.inner.with(py, |inner| {
            let name = inner.name(id);
            let slot = &mut inner.slots[id as usize];
            let at_work = slot.take(AT_WORK);
            let mut bytes = if at_work { size(slot.current) } else { 0 };
            let mut over = std::mem::take(slot);
            slot.generation = name.generation;
            slot.set(SHARES, over.has(SHARES));
            // What it has not taken counts as handled: nobody waits for it any more.
            let mut left = Vec::new();
            while let Some((event, len)) = over.pop() {
                bytes += size(len);
                left.push(event);
            }
            inner.events += left.len() as u64 + u64::from(at_work);
            inner.bytes += bytes;
            inner.live -= 1;
            (name, (over, left))
        });
        let Ok((name, over)) = ended else { return };
        drop(over);
        if let Some(outcome) = self.outlet.ended(py, name, outcome) {
            let _ = self.inner.with(py, |inner| {
                inner.blocked = true;
                inner.unsent.push_back((name, outcome));
            });
        }
    }

    /// There may be room for results again.
    pub fn unblock(&self, py: Python<'_>) -> PyResult<()> {
        while let Some((name, outcome)) = self.inner.with(py, |inner| inner.unsent.pop_front())? {
            if let Some(outcome) = self.outlet.ended(py, name, outcome) {
                self.inner
                    .with(py, |inner| inner.unsent.push_front((name, outcome)))?;
                return Ok(());
            }
        }
        Ok(self.inner.with(py, |inner| inner.blocked = false)?)
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

    /// How many keys are open.
    pub fn live(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self
            .inner
            .with(py, |inner| inner.live + inner.unsent.len())?)
    }

    /// Steps keys whose turn it is, `most` of them.
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

    /// Tells the caller what was handled: all of it, or if there is much.
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

    /// A key has run for so many ticks.
    #[inline]
    pub(super) fn ran(&self, py: Python<'_>, id: u32, began: u64, took: u64) {
        if took > slow_steps::limit() {
            self.was_slow(py, began, took);
        }
        deadline::ran(took);
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

    /// Runs a step of a key's own task where it can be seen who does it, and for how long.
    pub(super) fn watched<R>(&self, py: Python<'_>, id: u32, step: impl FnOnce() -> R) -> R {
        let began = ticks::now();
        let came = match &self.outlet {
            Outlet::Inline(_) => step(),
            Outlet::Ring(port) => port.on_board(py, self.allowance(), step),
        };
        let took = ticks::now().saturating_sub(began);
        self.ran(py, id, began, took);
        came
    }

    /// For how long a step may go on.
    pub fn allowance(&self) -> Option<Allowance> {
        self.stall.map(|time| Allowance {
            time,
            setting: Setting::Stall,
        })
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

    /// Nobody is left who could have use of it: generators are closed, tasks end.
    pub fn clear(&self, py: Python<'_>) {
        let left = self.inner.with(py, |inner| {
            inner.live = 0;
            let slots = std::mem::take(&mut inner.slots);
            (slots, std::mem::take(&mut inner.spares))
        });
        if let Ok((slots, spares)) = left {
            for task in spares.iter().chain(slots.iter().filter_map(|s| s.task.as_ref())) {
                task.get().retire(py);
            }
            drop((slots, spares));
        }
    }
}

enum Waits {
    No,
    Here,
    There(Py<PyAny>),
}

fn size(len: u32) -> u64 {
    if len == UNREADABLE { 0 } else { len.into() }
}

fn cancelled() -> PyErr {
    pyo3::exceptions::asyncio::CancelledError::new_err(())
}

fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<pyo3::exceptions::asyncio::CancelledError>(py)
}
