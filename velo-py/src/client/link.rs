//! What the streams between one client and one worker share.

use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_shm::{Consumer, LinkEnd, Producer, ticks};

use super::ends::{ClientEnds, Ends};
use crate::cell::GilCell;
use crate::control::{self, Control};
use crate::errors;

/// Links of this process on which streams are open: about as many workers may be busy.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// So many things that can wait are worth waking a worker for.
const MENTIONS: usize = 64;

/// A stream that was woken so recently is likely to be woken again at once.
const LATELY: Duration = Duration::from_micros(1500);

/// Naps that turn out to be too long are left out for so many waits.
const WITHOUT_NAPS: u32 = 1000;

/// Whether this process may spin without taking a core from a worker that could use it.
#[inline]
fn cores_are_free() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = CORES.get_or_init(|| available_parallelism().map_or(1, NonZero::get));
    BUSY.load(Relaxed) < *cores
}

/// The client's end of a link, shared by its streams.
pub struct Link {
    pub(super) end: Arc<LinkEnd>,
    pub(super) state: GilCell<LinkState>,
    /// Streams on which a task sleeps.
    pub(super) asleep: AtomicUsize,
    /// How many of those are patient.
    pub(super) patient: AtomicUsize,
    /// Starts a nap: a timer that ends in `nap_over`.
    pub(super) start_nap: GilCell<Option<Py<PyAny>>>,
    /// Called with the bytes of each log record.
    pub(super) deliver_log: GilCell<Option<Py<PyAny>>>,
    pub(super) napping: AtomicBool,
    /// Has `wake` called at the loop's next turn.
    pub(super) wake_soon: GilCell<Option<Py<PyAny>>>,
    pub(super) waking: AtomicBool,
    /// How often the worker was told something that can wait.
    pub(super) mentioned: AtomicUsize,
    /// When a sleeping stream was last woken, in ticks.
    pub(super) woken: AtomicU64,
    /// Waits for which no nap is tried: the worker is done before one is over.
    pub(super) no_naps: AtomicU32,
    pub(super) dead: AtomicBool,
    /// Streams are open on it, as counted in `BUSY`.
    pub(super) busy: AtomicBool,
    /// How many streams were ever opened.
    pub(super) opened: AtomicU64,
    /// A stream with limits was opened, and the supervisor does not know.
    pub(super) unwatched: AtomicBool,
    /// Called with the names of streams that hold their neighbours up.
    pub(super) tell_slow: GilCell<Option<Py<PyAny>>>,
    /// How many such streams are open.
    pub(super) slow: AtomicUsize,
}

pub struct LinkState {
    pub(super) control_out: Producer,
    pub(super) control_in: Consumer,
    pub(super) streams: HashMap<u32, Arc<ClientEnds>>,
    /// Slots of ended streams, in the order in which they ended.
    pub(super) free: VecDeque<u32>,
    pub(super) fresh: u32,
}

impl Link {
    /// Whether to look for what the worker does before sleeping: where cores are free, or where
    /// workers are done so soon that they give theirs back.
    #[inline]
    pub fn may_spin(&self) -> bool {
        cores_are_free() || self.no_naps.load(Relaxed) > 0
    }

    /// Handles what the worker told: wakes streams, reads control messages.
    pub fn process_ready(&self, py: Python<'_>) {
        self.process_woken(py, |_| ());
    }

    /// The nap is over: handles what came meanwhile.
    pub(super) fn nap_over(&self, py: Python<'_>) {
        self.napping.store(false, Relaxed);
        let (mut woken, mut idle) = (0, 0);
        self.process_woken(py, |stream| {
            woken += 1;
            idle += u32::from(stream.was_starved(py));
        });
        // A nap is only for workers that have enough to do until it is over.
        if woken > 0 && idle == woken {
            self.no_naps.store(WITHOUT_NAPS, Relaxed);
        }
        self.rearm(py);
    }

    /// As `process_ready`; calls `woken` with each stream on which somebody slept.
    fn process_woken(&self, py: Python<'_>, mut woken: impl FnMut(&ClientEnds)) {
        let mut ready = Vec::new();
        self.end.take_ready(|slot| ready.push(slot));
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(py);
                continue;
            }
            let Some(stream) = self.stream(py, slot) else {
                continue;
            };
            if stream.awake(self) {
                self.woken.store(ticks::now(), Relaxed);
                woken(&stream);
            }
            if stream.orphaned.load(Relaxed) {
                stream.drop_results(py);
            } else {
                stream.flush_results(py); // views may have been dropped
                let flushed = stream.flush_backlog(py).map(drop);
                if let Err(error) = flushed.and_then(|()| stream.catch_up(py)) {
                    stream.fail(py, error);
                }
                stream.waits.wake(py);
            }
        }
    }

    pub(super) fn stream(&self, py: Python<'_>, slot: u32) -> Option<Arc<ClientEnds>> {
        self.state
            .with(py, |state| state.streams.get(&slot).cloned())
            .ok()
            .flatten()
    }

    /// Notes what the worker says of a stream, unless it is about one that had the slot before.
    fn note(&self, py: Python<'_>, slot: u32, number: u64, what: impl FnOnce(&mut Ends)) {
        if let Some(stream) = self.stream(py, slot) {
            let _ = stream.ends.with(py, |ends| {
                if ends.place.number == number {
                    what(ends);
                }
            });
            stream.waits.wake(py);
        }
    }

    fn read_control(&self, py: Python<'_>) {
        loop {
            let message = self
                .state
                .with(py, |state| control::receive(py, &mut state.control_in));
            match message {
                Ok(Ok(Some(Control::Ended { slot, stream }))) => {
                    self.note(py, slot, stream, |ends| ends.ended = true);
                }
                Ok(Ok(Some(Control::Asked { slot, stream }))) => {
                    self.note(py, slot, stream, |ends| ends.asked = true);
                }
                Ok(Ok(Some(Control::Log { record }))) => self.deliver(py, &record),
                Ok(Ok(Some(Control::Slow {
                    slot,
                    stream,
                    shared,
                    ms,
                }))) => self.note_slow(py, (slot, stream), shared, ms),
                Ok(Ok(None)) | Err(_) => return,
                Ok(Ok(Some(_))) => {
                    return self.fail_all(
                        py,
                        &errors::corrupted("the worker sent a message that only clients send"),
                    );
                }
                Ok(Err(error)) => return self.fail_all(py, &error),
            }
        }
    }

    /// A stream's function has a slow step, which holds others up: new ones are better off elsewhere.
    fn note_slow(&self, py: Python<'_>, (slot, number): (u32, u64), shared: bool, ms: u64) {
        let stream = self.stream(py, slot);
        let Some(stream) = stream.filter(|stream| stream.is_number(py, number)) else {
            return;
        };
        if !stream.slow.swap(true, Relaxed) {
            self.slow.fetch_add(1, Relaxed);
        }
        if !shared {
            return; // there was nobody
        }
        let seconds = Duration::from_millis(ms).as_secs_f64();
        let tell = self
            .tell_slow
            .with(py, |tell| tell.as_ref().map(|call| call.clone_ref(py)));
        if let Ok(Some(tell)) = tell
            && let Err(error) = tell.call1(py, (&stream.name, seconds))
        {
            error.write_unraisable(py, None); // a warning made an error must not end a stream
        }
    }

    /// Hands a log record to Python.
    fn deliver(&self, py: Python<'_>, record: &[u8]) {
        let deliver = self.deliver_log.with(py, |deliver| {
            deliver.as_ref().map(|call| call.clone_ref(py))
        });
        if let Ok(Some(deliver)) = deliver
            && let Err(error) = deliver.call1(py, (PyBytes::new(py, record),))
        {
            // A loop that is closed has nobody who reads logs.
            if !error.is_instance_of::<PyRuntimeError>(py) {
                error.write_unraisable(py, None);
            }
        }
    }

    fn fail_all(&self, py: Python<'_>, error: &PyErr) {
        self.dead.store(true, Relaxed);
        for stream in self.all(py) {
            stream.fail(py, error.clone_ref(py));
        }
    }

    /// Sleeps for a moment whatever comes, instead of until something comes: true if so.
    ///
    /// Where workers could use the core, being woken for each of many results would cost them more
    /// than the results are worth. So bulk transfer that was woken just now looks again after a
    /// millisecond; if there was nothing then, it is woken as usual. Where workers were done before
    /// that, it is left out for a while.
    pub(super) fn nap(&self, py: Python<'_>) -> PyResult<bool> {
        let patient = self.asleep.load(Relaxed) <= self.patient.load(Relaxed);
        if !patient || cores_are_free() || self.dead.load(Relaxed) {
            return Ok(false);
        }
        let without = self.no_naps.load(Relaxed);
        if without > 0 {
            self.no_naps.store(without - 1, Relaxed);
            return Ok(false);
        }
        let since = ticks::now().saturating_sub(self.woken.load(Relaxed));
        if ticks::to_duration(since) > LATELY {
            return Ok(false);
        }
        if !self.napping.swap(true, Relaxed) {
            let start = self
                .start_nap
                .with(py, |start| start.as_ref().map(|s| s.clone_ref(py)))?;
            let Some(start) = start else {
                self.napping.store(false, Relaxed);
                return Ok(false);
            };
            start.call0(py)?;
        }
        Ok(true)
    }

    /// Notes whether streams are open on this link.
    pub(super) fn count_busy(&self, py: Python<'_>) {
        let busy = self
            .state
            .with(py, |state| !state.streams.is_empty())
            .unwrap_or(false);
        if self.busy.swap(busy, Relaxed) != busy {
            match busy {
                true => BUSY.fetch_add(1, Relaxed),
                false => BUSY.fetch_sub(1, Relaxed),
            };
        }
    }

    pub(super) fn all(&self, py: Python<'_>) -> Vec<Arc<ClientEnds>> {
        self.state
            .with(py, |state| state.streams.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Sleeps on, if anybody still does.
    pub(super) fn rearm(&self, py: Python<'_>) {
        while self.asleep.load(Relaxed) > 0 {
            if self.nap(py).unwrap_or(false) {
                return;
            }
            self.end.arm();
            if !self.end.any_ready() {
                return;
            }
            self.process_ready(py);
        }
    }

    pub(super) fn tell(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.post(py, message)?;
        self.end.notify(control::SLOT);
        Ok(())
    }

    /// Leaves a message in the ring, of which the worker has yet to be told.
    fn post(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.state.with(py, |state| {
            control::send(py, &mut state.control_out, message)
        })?
    }

    /// Tells something that can wait until the worker is awake, or is woken for something else.
    fn mention(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.post(py, message)?;
        self.end.note(control::SLOT);
        if self
            .mentioned
            .fetch_add(1, Relaxed)
            .is_multiple_of(MENTIONS)
        {
            self.end.wake();
        }
        Ok(())
    }

    /// Tells something that can wait until the running task has given up its turn.
    ///
    /// What opens a stream is about to send to it. A worker that is woken before may take over the
    /// very core, only to find nothing to work on.
    pub(super) fn tell_soon(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.mention(py, message)?;
        if self.waking.swap(true, Relaxed) {
            return Ok(());
        }
        let soon = self
            .wake_soon
            .with(py, |soon| soon.as_ref().map(|soon| soon.clone_ref(py)))?;
        match soon {
            Some(soon) => soon.call0(py).map(drop),
            None => {
                self.wake();
                Ok(())
            }
        }
    }

    /// Now.
    pub(super) fn wake(&self) {
        self.waking.store(false, Relaxed);
        self.end.wake();
    }

    /// A stream is open in this slot from now on.
    pub(super) fn adopt(
        &self,
        py: Python<'_>,
        slot: u32,
        stream: &Arc<ClientEnds>,
    ) -> PyResult<()> {
        self.state
            .with(py, |state| state.streams.insert(slot, stream.clone()))?;
        self.count_busy(py);
        if stream.is_limited() && self.end.begin_limit() {
            self.unwatched.store(true, Relaxed);
        }
        Ok(())
    }

    pub(super) fn recycle(&self, py: Python<'_>, slot: u32) {
        self.end.leave();
        let dead = self.dead.load(Relaxed);
        if !dead {
            let _ = self.mention(py, &Control::Close { slot });
        }
        let _ = self.state.with(py, |state| {
            state.streams.remove(&slot);
            state.free.push_back(slot);
        });
        self.count_busy(py);
    }

    /// A slot that nobody uses, made as good as new.
    pub(super) fn take_slot(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let slots = self.end.slots();
        Ok(self.state.with(py, |state| {
            // A slot is idle once the worker has let go of it too, and the last view of its memory
            // is gone on both sides. The one that was freed first is the likeliest.
            let looks = if state.fresh < slots {
                LOOKS
            } else {
                state.free.len()
            };
            for _ in 0..looks.min(state.free.len()) {
                let slot = state.free.pop_front()?;
                if self.end.reset_slot(slot) {
                    return Some(slot);
                }
                state.free.push_back(slot);
            }
            let slot = (state.fresh < slots).then_some(state.fresh)?;
            state.fresh += 1;
            self.end.reset_slot(slot).then_some(slot)
        })?)
    }
}

/// How many freed slots are looked at before a fresh one is taken.
const LOOKS: usize = 4;
