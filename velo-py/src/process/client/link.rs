//! The client's end of a link, which all streams between one client and one worker share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_shm::{
    Alarm, Coalesce, Consumer, LinkError, LinkLoad, Producer, Running, Sleepers, cores_are_free,
    fork, ticks, woke_worker,
};
use velo_supervisor::client_side::{SlotTable, Unsound, mend};
use velo_supervisor::explain;

use super::slow_steps::{SlowStep, SlowStreams};
use crate::cell::GilCell;
use crate::errors;
use crate::process::control::{self, Control, Unsent};

/// Every this many posted messages, the worker is woken for them.
const POSTS_PER_WAKE: usize = 64;

/// A stream on a link, as the link uses it.
pub trait LinkedStream: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;

    /// Whether it is the stream of this number, and not one that had the slot before or has it now.
    fn is_number(&self, py: Python<'_>, number: u64) -> bool;

    /// The worker did something for the stream of this slot: lets the stream's tasks look again. How
    /// many events the worker has handled since a batching task fell asleep on it; None if none did.
    fn on_ready(&self, py: Python<'_>, link: &ClientLink) -> Option<u64>;

    /// The worker says that the function of the stream of this number has ended.
    fn on_ended(&self, py: Python<'_>, number: u64);

    /// The worker says that the function of the stream of this number has asked for its first event.
    fn on_asked(&self, py: Python<'_>, number: u64);

    /// Wakes the tasks that sleep on it if something has come, whatever the link says. True if the
    /// worker is to look at the stream as well.
    fn check_up(&self, py: Python<'_>) -> bool;

    /// The worker is dead, or what it writes makes no sense: results that it has sent before can still
    /// be received.
    fn fail(&self, py: Python<'_>, error: PyErr);

    /// Whether the supervisor has to watch the stream's worker.
    fn is_limited(&self) -> bool;

    /// Whether its function makes a habit of slow steps.
    fn is_slow(&self, py: Python<'_>) -> PyResult<bool>;

    /// The number of the event that the worker was at, if it ran this stream when it died.
    fn event_in_worker(&self, py: Python<'_>, running: Running) -> Option<u64>;

    /// The worker has died, or does no more for the link: has another worker take the stream over, or
    /// lets it fail with what `make(name, number, in_flight)` returns. `replace(recovery, error)` is called for
    /// a stream that the worker had not opened.
    fn on_worker_gone(
        self: Arc<Self>,
        py: Python<'_>,
        running: Option<Running>,
        calls: (&Bound<'_, PyAny>, &Bound<'_, PyAny>),
    ) -> PyResult<()>;

    /// Has another worker take the stream over, if one can. True: it is to go.
    fn send_away(self: Arc<Self>, py: Python<'_>) -> PyResult<bool>;
}

/// The client's end of a link, shared by its streams.
pub struct ClientLink {
    pub(super) end: velo_shm::Link,
    /// Its part in the estimate of oversubscription.
    pub(super) load: LinkLoad,
    pub(super) state: GilCell<LinkState>,
    /// Streams on which a task sleeps.
    pub(super) asleep: AtomicUsize,
    /// How many of those streams have tasks that batch: they may be woken a little late.
    pub(super) batching: AtomicUsize,
    /// And how many of those have more to send.
    pub(super) sending: AtomicUsize,
    /// Called once when the link turns out to be broken.
    pub(super) on_broken: GilCell<Option<Py<PyAny>>>,
    /// Called with the bytes of each log record.
    pub(super) on_log: GilCell<Option<Py<PyAny>>>,
    /// The alarm is set: until it goes off, nothing wakes the streams.
    pub(super) coalescing: AtomicBool,
    /// Schedules `wake` for the loop's next turn.
    pub(super) wake_soon: GilCell<Option<Py<PyAny>>>,
    /// `wake` is going to be called.
    pub(super) waking: AtomicBool,
    /// How many messages were posted that can wait.
    pub(super) posted: AtomicUsize,
    /// How many events the worker had left when the batching tasks fell asleep.
    pub(super) left: AtomicU64,
    /// When the first of those tasks fell asleep, or some were woken last, in ticks.
    pub(super) slept: AtomicU64,
    pub(super) coalescer: Coalesce,
    /// Goes off when the streams are to be woken.
    pub(super) alarm: Alarm,
    pub(super) dead: AtomicBool,
    /// In which generation of forks it was made.
    pub(super) born: u32,
    /// How many streams were ever opened.
    pub(super) opened: AtomicU64,
    /// A stream with limits was opened, and the supervisor does not watch the worker yet.
    pub(super) unwatched: AtomicBool,
    /// Called for each slow step that held up other streams, or is one of many.
    pub(super) on_slow: GilCell<Option<Py<PyAny>>>,
    /// The open streams that make a habit of slow steps.
    pub(super) slow: GilCell<SlowStreams>,
}

pub struct LinkState {
    pub(super) control_out: Producer,
    pub(super) control_in: Consumer,
    pub(super) streams: SlotTable<Arc<dyn LinkedStream>>,
}

impl ClientLink {
    /// Whether nothing can be sent on it any more: it was given up, or belongs to the process that this
    /// one was forked from.
    #[inline]
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed) || self.born != fork::generation()
    }

    /// Handles what the worker has set ready: wakes streams, reads control messages.
    pub fn process_ready(&self, py: Python<'_>) {
        if let Some(handled) = self.process(py) {
            self.wakes_up(handled);
        }
    }

    /// As `process_ready`. How many events of batching streams the worker has handled; None if it has
    /// set none of those ready.
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
            if let Some(more) = stream.on_ready(py, self) {
                handled = Some(handled.unwrap_or(0) + more);
            }
        }
        handled
    }

    /// The alarm went off: handles what came while the streams slept.
    pub(super) fn on_alarm(&self, py: Python<'_>) {
        self.alarm.silence();
        self.coalescing.store(false, Relaxed);
        match self.process(py) {
            Some(handled) => self.wakes_up(handled),
            None => self.coalescer.slept(self.asleep_for(), 0), // the next one may be too short
        }
        self.rearm(py);
    }

    pub(super) fn stream(&self, py: Python<'_>, slot: u32) -> Option<Arc<dyn LinkedStream>> {
        self.state
            .with(py, |state| state.streams.get(slot).cloned())
            .ok()
            .flatten()
    }

    fn read_control(&self, py: Python<'_>) {
        loop {
            let message = self
                .state
                .with(py, |state| control::receive(py, &mut state.control_in));
            match message {
                Ok(Ok(Some(Control::Ended { slot, stream }))) => {
                    if let Some(known) = self.stream(py, slot) {
                        known.on_ended(py, stream);
                    }
                }
                Ok(Ok(Some(Control::Asked { slot, stream }))) => {
                    if let Some(known) = self.stream(py, slot) {
                        known.on_asked(py, stream);
                    }
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

    /// Whether a stream is open whose function makes a habit of slow steps.
    pub fn has_slow_stream(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.slow.with(py, |slow| slow.any(ticks::now))?)
    }

    /// A step of a stream's function was slow. While that is a habit, other streams move to other workers.
    fn note_slow(&self, py: Python<'_>, slot: u32, number: u64, step: &SlowStep) {
        let stream = self.stream(py, slot);
        let Some(stream) = stream.filter(|stream| stream.is_number(py, number)) else {
            return;
        };
        if step.habit {
            let _ = self.slow.with(py, |slow| slow.note(slot, ticks::now()));
        }
        let seconds = Duration::from_millis(step.ms).as_secs_f64();
        let tell = self
            .on_slow
            .with(py, |tell| tell.as_ref().map(|call| call.clone_ref(py)));
        if let Ok(Some(tell)) = tell
            && let Err(error) = tell.call1(py, (stream.name(), seconds, step.held_up, step.habit))
        {
            error.write_unraisable(py, None);
        }
    }

    /// Hands a log record to Python.
    fn deliver(&self, py: Python<'_>, record: &[u8]) {
        let deliver = self.on_log.with(py, |deliver| {
            deliver.as_ref().map(|call| call.clone_ref(py))
        });
        if let Ok(Some(deliver)) = deliver
            && let Err(error) = deliver.call1(py, (PyBytes::new(py, record),))
        {
            // A closed loop delivers no logs.
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

    /// Whether the link still holds the values that this side knows: its version and sizes, and how many streams
    /// this side has opened on it. It is given up if not.
    pub(super) fn is_intact(&self, py: Python<'_>) -> bool {
        let sound = self.state.with(py, |state| state.streams.check(&self.end));
        let error = match sound.unwrap_or(Ok(())) {
            Ok(()) => return true,
            Err(Unsound::Corrupted(found)) => errors::ring_corrupted(&found),
            Err(unsound) => errors::corrupted(unsound.to_string()),
        };
        self.give_up(py, &error);
        false
    }

    /// How many streams this side has opened and not seen the end of.
    pub fn streams(&self, py: Python<'_>) -> u32 {
        self.state
            .with(py, |state| state.streams.len())
            .unwrap_or(0)
    }

    /// Checks the streams that sleep as if the worker had set them ready, and has the worker check those
    /// whose events wait. So a side that writes over a flag or a bit delays the other by no more than the
    /// time between two checks.
    pub(super) fn check_up(&self, py: Python<'_>) {
        if self.is_dead() || !self.is_intact(py) || self.asleep.load(Relaxed) == 0 {
            return;
        }
        let mut waiting = false;
        for stream in self.all(py) {
            waiting |= stream.check_up(py);
        }
        mend(&self.end, waiting);
        self.process_ready(py);
        self.rearm(py);
    }

    /// A batching task is about to sleep on this link.
    pub(super) fn falls_asleep(&self) {
        if self.asleep.load(Relaxed) <= 1 {
            self.slept.store(ticks::now(), Relaxed);
        }
    }

    /// Some batching tasks were woken; the worker has handled this many of their events.
    fn wakes_up(&self, handled: u64) {
        self.coalescer.slept(self.asleep_for(), handled);
        self.slept.store(ticks::now(), Relaxed); // the others sleep on
    }

    fn asleep_for(&self) -> Duration {
        ticks::to_duration(ticks::now().saturating_sub(self.slept.load(Relaxed)))
    }

    /// Sleeps by the clock, whatever comes, instead of until something comes: true if so. For those
    /// that move things in bulk; see [`Coalesce`].
    pub(super) fn coalesce(&self) -> bool {
        let sleepers = Sleepers {
            count: self.asleep.load(Relaxed),
            batching: self.batching.load(Relaxed),
            sending: self.sending.load(Relaxed),
            left: self.left.load(Relaxed),
        };
        if sleepers.batching < sleepers.count || self.is_dead() {
            return false;
        }
        if self.coalescing.load(Relaxed) {
            return true;
        }
        let Some(length) = self.coalescer.sleep(sleepers, cores_are_free()) else {
            return false;
        };
        let coalescer = self.alarm.set(length).is_ok();
        self.coalescing.store(coalescer, Relaxed);
        coalescer
    }

    /// Notes whether streams are open on this link.
    pub(super) fn count_busy(&self, py: Python<'_>) {
        let busy = self
            .state
            .with(py, |state| !state.streams.is_empty())
            .unwrap_or(false);
        self.load.set_busy(busy);
    }

    pub(super) fn all(&self, py: Python<'_>) -> Vec<Arc<dyn LinkedStream>> {
        self.state
            .with(py, |state| {
                let streams = state.streams.iter();
                streams.map(|(_, stream)| stream.clone()).collect()
            })
            .unwrap_or_default()
    }

    /// Has the doorbell or the alarm wake the streams that still sleep.
    pub(super) fn rearm(&self, py: Python<'_>) {
        while self.asleep.load(Relaxed) > 0 {
            if self.coalesce() {
                return;
            }
            self.end.arm();
            if !self.end.any_ready() {
                return;
            }
            self.process_ready(py);
        }
    }

    pub(super) fn send(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.write(py, message)?;
        self.notify(control::SLOT);
        Ok(())
    }

    /// Writes a message without notifying the worker. A link that turns out to be broken fails its
    /// streams here, and that is not an error of the caller.
    fn write(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
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

    /// Posts a message that can wait until the worker is awake, or is woken for another reason.
    pub(super) fn post(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.write(py, message)?;
        self.end.note(control::SLOT);
        if self
            .posted
            .fetch_add(1, Relaxed)
            .is_multiple_of(POSTS_PER_WAKE)
            && self.end.wake()
        {
            woke_worker();
        }
        Ok(())
    }

    /// Posts a message, and wakes the worker once the running task has given up its turn.
    ///
    /// A task that opens a stream is about to send to it. A worker that is woken before that may take
    /// the task's core, and find no event to work on.
    pub(super) fn post_deferred(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.post(py, message)?;
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

    /// Wakes the worker ahead of a message, if a core is free for it: it wakes up while the message is
    /// made. True if the message is to be sent at once then.
    pub(super) fn prewake(&self) -> bool {
        let free = cores_are_free();
        if free && self.end.wake() {
            woke_worker();
        }
        free
    }

    /// Wakes the worker now.
    pub(super) fn wake(&self) {
        self.waking.store(false, Relaxed);
        if self.end.wake() {
            woke_worker();
        }
    }

    /// Sets a slot's ready bit, and rings the worker's doorbell if it sleeps.
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
        stream: &Arc<dyn LinkedStream>,
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
        let dead = self.is_dead();
        if !dead {
            let _ = self.post(py, &Control::Close { slot });
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

    /// A free slot, reset.
    pub(super) fn take_slot(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let taken = self.state.with(py, |state| state.streams.take(&self.end))?;
        taken.map_err(|error| errors::pool(cannot_open(&error)))
    }
}

/// Why a stream cannot be opened.
pub(super) fn cannot_open(error: &LinkError) -> String {
    format!("cannot open a stream: {}", explain(error))
}
