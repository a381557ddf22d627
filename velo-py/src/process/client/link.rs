//! What the streams between one client and one worker share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_shm::{
    Alarm, Coalesce, Consumer, LinkError, LinkLoad, Producer, Sleepers, cores_are_free, ticks,
    woke_worker,
};
use velo_supervisor::client_side::{SlotTable, Unsound, mend};
use velo_supervisor::explain;

use super::ring_stream::{ClientEnds, Ends};
use super::slow_steps::{SlowStep, SlowStreams};
use crate::cell::GilCell;
use crate::errors;
use crate::process::control::{self, Control, Unsent};
use crate::process::ring_pair::corruption;

/// So many things that can wait are worth waking a worker for.
const MENTIONS: usize = 64;

/// The client's end of a link, shared by its streams.
pub struct Link {
    pub(super) end: velo_shm::Link,
    /// Its part in the estimate of oversubscription.
    pub(super) load: LinkLoad,
    pub(super) state: GilCell<LinkState>,
    /// Streams on which a task sleeps.
    pub(super) asleep: AtomicUsize,
    /// How many of those are patient.
    pub(super) patient: AtomicUsize,
    /// And of those, how many have more to send.
    pub(super) sending: AtomicUsize,
    /// Called once when the link turns out to be broken.
    pub(super) on_broken: GilCell<Option<Py<PyAny>>>,
    /// Called with the bytes of each log record.
    pub(super) deliver_log: GilCell<Option<Py<PyAny>>>,
    pub(super) napping: AtomicBool,
    /// Has `wake` called at the loop's next turn.
    pub(super) wake_soon: GilCell<Option<Py<PyAny>>>,
    pub(super) waking: AtomicBool,
    /// How often the worker was told something that can wait.
    pub(super) mentioned: AtomicUsize,
    /// How many events the worker had left when those fell asleep that are patient.
    pub(super) left: AtomicU64,
    /// When the first of them did, or some were woken, in ticks.
    pub(super) slept: AtomicU64,
    pub(super) coalesce: Coalesce,
    /// Ends naps.
    pub(super) alarm: Alarm,
    pub(super) dead: AtomicBool,
    /// How many streams were ever opened.
    pub(super) opened: AtomicU64,
    /// A stream with limits was opened, and the supervisor does not know.
    pub(super) unwatched: AtomicBool,
    /// Called with the names of streams that hold their neighbours up.
    pub(super) tell_slow: GilCell<Option<Py<PyAny>>>,
    /// Those that are open.
    pub(super) slow: GilCell<SlowStreams>,
}

pub struct LinkState {
    pub(super) control_out: Producer,
    pub(super) control_in: Consumer,
    pub(super) streams: SlotTable<Arc<ClientEnds>>,
}

impl Link {
    /// Handles what the worker told: wakes streams, reads control messages.
    pub fn process_ready(&self, py: Python<'_>) {
        if let Some(handled) = self.process(py) {
            self.wakes_up(handled);
        }
    }

    /// As `process_ready`. How many events the worker has handled of those who were patient, if it
    /// has told anything of one.
    fn process(&self, py: Python<'_>) -> Option<u64> {
        let mut ready = Vec::new();
        self.end.take_ready(|slot| ready.push(slot));
        let mut handled = None;
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(py);
                continue;
            }
            let Some(stream) = self.stream(py, slot) else {
                continue;
            };
            if let Some(more) = stream.handled_asleep(py) {
                handled = Some(handled.unwrap_or(0) + more);
            }
            stream.awake(self);
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
        handled
    }

    /// The nap is over: handles what came meanwhile.
    pub(super) fn nap_over(&self, py: Python<'_>) {
        self.alarm.silence();
        self.napping.store(false, Relaxed);
        match self.process(py) {
            Some(handled) => self.wakes_up(handled),
            None => self.coalesce.slept(self.asleep_for(), 0), // the next one may be too short
        }
        self.rearm(py);
    }

    pub(super) fn stream(&self, py: Python<'_>, slot: u32) -> Option<Arc<ClientEnds>> {
        self.state
            .with(py, |state| state.streams.get(slot).cloned())
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
                    held_up,
                    habit,
                    ms,
                }))) => {
                    let step = SlowStep { held_up, habit, ms };
                    self.note_slow(py, slot, stream, &step);
                }
                Ok(Ok(None)) | Err(_) => return,
                Ok(Ok(Some(_))) => {
                    return self.give_up(
                        py,
                        &errors::corrupted("the worker sent a message that only clients send"),
                    );
                }
                Ok(Err(error)) => return self.give_up(py, &error),
            }
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

    /// The link makes no sense, so nothing on it can be believed any more: every stream fails.
    pub(super) fn give_up(&self, py: Python<'_>, error: &PyErr) {
        if self.dead.swap(true, Relaxed) {
            return;
        }
        for stream in self.all(py) {
            stream.fail(py, error.clone_ref(py));
        }
        let told = self.on_broken.with(py, Option::take);
        if let Ok(Some(on_broken)) = told
            && let Err(error) = on_broken.call0(py)
        {
            error.write_unraisable(py, None);
        }
    }

    /// Whether the link still says of itself what this side knows: what it is, and how many streams
    /// this side has opened on it. It is given up if not.
    pub(super) fn is_intact(&self, py: Python<'_>) -> bool {
        let sound = self.state.with(py, |state| state.streams.check(&self.end));
        let error = match sound.unwrap_or(Ok(())) {
            Ok(()) => return true,
            Err(Unsound::Corrupted(found)) => corruption(&found),
            Err(unsound) => errors::corrupted(unsound.to_string()),
        };
        self.give_up(py, &error);
        false
    }

    /// How many streams this side has opened and not seen the end of.
    pub(super) fn streams(&self, py: Python<'_>) -> u32 {
        self.state
            .with(py, |state| state.streams.len())
            .unwrap_or(0)
    }

    /// Looks at the streams that sleep as if they had been told to, and has the worker look at those
    /// whose events wait. A side that writes over a flag or a bit cannot make the other miss more than
    /// the time between two such looks.
    pub(super) fn check_up(&self, py: Python<'_>) {
        if self.dead.load(Relaxed) || !self.is_intact(py) || self.asleep.load(Relaxed) == 0 {
            return;
        }
        let mut waiting = false;
        for stream in self.all(py) {
            if stream.asleep.load(Relaxed) {
                waiting |= stream.look_again(py);
            }
        }
        mend(&self.end, waiting);
        self.process_ready(py);
        self.rearm(py);
    }

    /// Somebody who is patient is about to sleep on this link.
    pub(super) fn falls_asleep(&self) {
        if self.asleep.load(Relaxed) <= 1 {
            self.slept.store(ticks::now(), Relaxed);
        }
    }

    /// Some of those do not sleep any more; the worker has handled so many of their events.
    fn wakes_up(&self, handled: u64) {
        self.coalesce.slept(self.asleep_for(), handled);
        self.slept.store(ticks::now(), Relaxed); // the others sleep on
    }

    fn asleep_for(&self) -> Duration {
        ticks::to_duration(ticks::now().saturating_sub(self.slept.load(Relaxed)))
    }

    /// Sleeps by the clock, whatever comes, instead of until something comes: true if so. For those
    /// that move things in bulk; see [`Coalesce`].
    pub(super) fn nap(&self) -> bool {
        let sleepers = Sleepers {
            count: self.asleep.load(Relaxed),
            batching: self.patient.load(Relaxed),
            sending: self.sending.load(Relaxed),
            left: self.left.load(Relaxed),
        };
        if sleepers.batching < sleepers.count || self.dead.load(Relaxed) {
            return false;
        }
        if self.napping.load(Relaxed) {
            return true;
        }
        let Some(length) = self.coalesce.sleep(sleepers, cores_are_free()) else {
            return false;
        };
        let naps = self.alarm.set(length).is_ok();
        self.napping.store(naps, Relaxed);
        naps
    }

    /// Notes whether streams are open on this link.
    pub(super) fn count_busy(&self, py: Python<'_>) {
        let busy = self
            .state
            .with(py, |state| !state.streams.is_empty())
            .unwrap_or(false);
        self.load.set_busy(busy);
    }

    pub(super) fn all(&self, py: Python<'_>) -> Vec<Arc<ClientEnds>> {
        self.state
            .with(py, |state| {
                state
                    .streams
                    .iter()
                    .map(|(_, stream)| stream.clone())
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Sleeps on, if anybody still does.
    pub(super) fn rearm(&self, py: Python<'_>) {
        while self.asleep.load(Relaxed) > 0 {
            if self.nap() {
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
        self.notify(control::SLOT);
        Ok(())
    }

    /// Leaves a message in the ring, of which the worker has yet to be told. On a link that turns out
    /// to be broken, nobody is left to tell.
    fn post(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        let sent = self.state.with(py, |state| {
            control::send(py, &mut state.control_out, message)
        })?;
        match sent {
            Ok(()) => Ok(()),
            Err(Unsent::Broken(error)) => {
                self.give_up(py, &error);
                Ok(())
            }
            Err(Unsent::Refused(error)) => Err(error),
        }
    }

    /// Tells something that can wait until the worker is awake, or is woken for something else.
    pub(super) fn mention(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.post(py, message)?;
        self.end.note(control::SLOT);
        if self
            .mentioned
            .fetch_add(1, Relaxed)
            .is_multiple_of(MENTIONS)
            && self.end.wake()
        {
            woke_worker();
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

    /// Wakes the worker for what it is going to be told: where it has a core of its own, it wakes up
    /// while that is made. True if it is to be told at once then.
    pub(super) fn announce(&self) -> bool {
        let free = cores_are_free();
        if free && self.end.wake() {
            woke_worker();
        }
        free
    }

    /// Now.
    pub(super) fn wake(&self) {
        self.waking.store(false, Relaxed);
        if self.end.wake() {
            woke_worker();
        }
    }

    /// Tells the worker to look at a slot.
    #[inline]
    pub(super) fn notify(&self, slot: u32) {
        if self.end.notify(slot) {
            woke_worker();
        }
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

    /// Forgets a stream that never began.
    pub(super) fn disown(&self, py: Python<'_>, slot: u32) -> PyResult<()> {
        self.state
            .with(py, |state| drop(state.streams.remove(slot)))?;
        self.count_busy(py);
        Ok(())
    }

    pub(super) fn recycle(&self, py: Python<'_>, slot: u32) {
        self.end.leave();
        let dead = self.dead.load(Relaxed);
        if !dead {
            let _ = self.mention(py, &Control::Close { slot });
        }
        let _ = self.state.with(py, |state| {
            state.streams.remove(slot);
            state.streams.give_back(slot);
        });
        self.count_busy(py);
    }

    /// Takes back what opening a stream began with.
    pub(super) fn give_back(&self, py: Python<'_>, slot: u32) {
        self.end.leave();
        let _ = self.state.with(py, |state| state.streams.give_back(slot));
    }

    /// A slot that nobody uses, made as good as new.
    pub(super) fn take_slot(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let taken = self.state.with(py, |state| state.streams.take(&self.end))?;
        taken.map_err(|error| errors::pool(cannot_open(&error)))
    }
}

/// Why a stream cannot be opened.
pub(super) fn cannot_open(error: &LinkError) -> String {
    format!("cannot open a stream: {}", explain(error))
}
