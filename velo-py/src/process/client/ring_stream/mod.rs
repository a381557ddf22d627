//! The client's end of one process-mode stream: its rings, the slot where it is, and its waits.

mod cancel;
mod dropping;
mod linked;
mod recover;
mod unstarted;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use super::backlog::Backlog;
use super::blame::Death;
use super::journal::Journal;
use super::link::ClientLink;
use crate::cell::GilCell;
use crate::errors;
use crate::flow::Interest;
use crate::process::control::Control;
use crate::process::hold::Sweep;
use crate::process::ring_pair::{END, ERROR, RingPair};
use crate::wait::Waits;
pub use cancel::CancelStream;
pub use recover::{Poison, Recovery};
pub use unstarted::Origin;

/// The client's end of one stream, until its end was seen.
pub struct RingStream {
    pub(super) state: GilCell<StreamState>,
    pub(super) waits: Arc<Waits>,
    /// Looks for another worker when this one is gone; see `Recovery`. None: the stream fails.
    pub(super) recover: Option<Py<PyAny>>,
    /// A task sleeps on this stream.
    pub(super) asleep: AtomicBool,
    /// How often it was looked at since it fell asleep; see `look_again`.
    pub(super) looks: AtomicU32,
    /// The task that sleeps on it batches: it may be woken a little late.
    pub(super) batching: AtomicBool,
    /// There is more to send as soon as there is room.
    pub(super) sending: AtomicBool,
    /// How many events the worker had left to handle when it fell asleep, if it is batching.
    pub(super) left: AtomicU32,
    /// The stream has no user any more: its last results are dropped.
    pub(super) orphaned: AtomicBool,
    pub(super) limits: UsageLimits,
    /// The stream is a lane: it runs the function for many keys.
    pub(super) lane: bool,
    /// The lane is to leave its worker, if it can.
    pub(super) leaving: AtomicBool,
    /// The stream is an attachment: closing it detaches it from its session, unless its input is ended.
    pub(super) detaches: AtomicBool,
    pub(super) this: Weak<dyn Sweep>,
    pub(super) name: String,
    pub(super) origin: Origin,
}

/// The worker is asked to look at a stream that sleeps for long once per this many checks.
const RARELY: u32 = 64;

/// Where a stream is.
pub struct StreamSlot {
    pub(super) link: Arc<ClientLink>,
    pub(super) slot: u32,
    /// Tells it from other streams of the link, before and after it.
    pub(super) number: u64,
}

impl StreamSlot {
    /// Tells the worker to look at the stream.
    #[inline]
    pub(super) fn notify(&self) {
        self.link.notify(self.slot);
    }
}

/// What the client stores of a stream beside its ring.
pub enum Store {
    None,
    /// With `full="drop_oldest"`: the newest events.
    Backlog(Backlog),
    /// With `recover="replay"`: all events since the last snapshot.
    Journal(Box<Journal>),
}

/// What a stream may use up, which the supervisor watches.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct UsageLimits {
    /// Seconds.
    pub stall_timeout: Option<f64>,
    /// Seconds.
    pub event_timeout: Option<f64>,
    /// Bytes.
    pub max_worker_memory: Option<u64>,
}

pub struct StreamState {
    pub(super) at: StreamSlot,
    /// None once the end was seen, or the worker has died and everything was drained; and while a
    /// stream with a journal has no worker.
    pub(super) rings: Option<RingPair>,
    /// The worker says that the function has ended; results may still be queued.
    pub(super) ended: bool,
    /// The worker says that the function has asked for its first event.
    pub(super) asked: bool,
    pub(super) failure: Option<PyErr>,
    /// How the worker of a lane has died.
    pub(super) death: Option<Death>,
    pub(super) progress: (u64, u64),
    /// What went through rings that it does not have any more.
    pub(super) bytes: (u64, u64),
    pub(super) store: Store,
    /// Events in the ring that the worker has dropped.
    pub(super) skipped: u64,
    /// When the worker was done with the last event, by its clock; see `Producer::released_at`.
    pub(super) handled_at: u64,
    /// Its worker died before it opened the stream: another one is looked for. Until then it has the rings that
    /// it had.
    pub(super) unstarted: bool,
    /// Its function was cancelled, which the worker may not have seen.
    pub(super) cancelled: bool,
    /// How many workers died before they opened it.
    pub(super) false_starts: u32,
}

impl StreamState {
    /// Whether the function takes no more events. Results may still be queued.
    pub(super) fn has_ended(&self) -> bool {
        self.ended || self.failure.is_some()
    }

    /// Whether its last result was taken.
    pub(super) fn is_over(&self) -> bool {
        self.rings.is_none() && !matches!(&self.store, Store::Journal(journal) if journal.unplaced)
    }

    pub(super) fn progress_now(&mut self) -> (u64, u64) {
        match (&mut self.store, self.rings.as_mut()) {
            (Store::Journal(journal), rings) => self.progress = journal.progress(rings),
            (Store::Backlog(backlog), Some(rings)) => {
                let sent = rings.producer.committed() + backlog.len();
                self.progress = (sent, rings.producer.released());
            }
            (Store::None, Some(rings)) => {
                self.progress = (rings.producer.committed(), rings.producer.released());
            }
            (_, None) => {}
        }
        self.progress
    }

    /// The number of the event that the worker calls the so-and-so-manieth; 0 if it has none.
    pub(super) fn begun(&self, event: u64) -> u64 {
        match (&self.store, event) {
            (Store::Journal(journal), 1..) => journal.begun(event),
            _ => event,
        }
    }

    pub(super) fn bytes_now(&self) -> (u64, u64) {
        let (out, back) = self.bytes;
        self.rings.as_ref().map_or((out, back), |rings| {
            (out + rings.bytes_out, back + rings.bytes_in)
        })
    }

    fn is_there(&mut self, interest: Interest, stream: &str) -> PyResult<bool> {
        let of_the_function = interest.space || interest.handled || interest.loan > 0;
        if self.ended && of_the_function || self.failure.is_some() {
            return Ok(true);
        }
        let Some(rings) = self.rings.as_mut() else {
            return Ok(match &mut self.store {
                Store::Journal(journal) if journal.unplaced => {
                    interest.space && journal.free(None) > 0 && journal.has_room()
                }
                _ => true,
            });
        };
        if let Store::Journal(journal) = &mut self.store {
            let there = journal.is_there(rings, interest, self.asked, stream);
            if rings.consumer.publish() {
                self.at.notify(); // it may wait for the room of dropped events
            }
            return Ok(match there {
                Ok(there) => there,
                Err(error) => {
                    self.failure = Some(error);
                    true
                }
            });
        }
        if interest.results && rings.consumer.has_data() {
            return Ok(true);
        }
        if interest.space && rings.has_space()? {
            return Ok(true);
        }
        if interest.loan > 0 && !rings.producer.wait_for_loan(interest.loan) {
            return Ok(true);
        }
        if interest.handled {
            rings
                .producer
                .watch_releases()
                .map_err(|found| errors::ring_corrupted(&found))?;
            let asked = self.asked || rings.producer.committed() > 0;
            return Ok(asked && rings.producer.in_flight() == 0);
        }
        Ok(false)
    }
}

impl StreamState {
    /// Takes the stream from its link.
    pub(super) fn leave(&mut self) -> Option<(RingPair, Arc<ClientLink>, u32)> {
        self.progress_now();
        let rings = self.rings.take()?;
        self.bytes = (
            self.bytes.0 + rings.bytes_out,
            self.bytes.1 + rings.bytes_in,
        );
        self.skipped = rings.producer.skipped();
        self.handled_at = rings.producer.released_at();
        Some((rings, self.at.link.clone(), self.at.slot))
    }
}

impl RingStream {
    /// A stream whose slot was opened just now.
    pub(super) fn new(
        (name, origin): (String, Origin),
        at: StreamSlot,
        rings: RingPair,
        store: Store,
        recover: Option<Py<PyAny>>,
        limits: UsageLimits,
        (detaches, lane): (bool, bool),
    ) -> Arc<Self> {
        let state = StreamState {
            at,
            rings: Some(rings),
            ended: false,
            asked: false,
            failure: None,
            death: None,
            progress: (0, 0),
            bytes: (0, 0),
            store,
            skipped: 0,
            handled_at: 0,
            unstarted: false,
            cancelled: false,
            false_starts: 0,
        };
        Arc::new_cyclic(|this: &Weak<RingStream>| RingStream {
            state: GilCell::new(state),
            waits: Arc::default(),
            recover,
            asleep: AtomicBool::new(false),
            looks: AtomicU32::new(0),
            batching: AtomicBool::new(false),
            sending: AtomicBool::new(false),
            left: AtomicU32::new(0),
            orphaned: AtomicBool::new(false),
            limits,
            lane,
            leaving: AtomicBool::new(false),
            detaches: AtomicBool::new(detaches),
            this: this.clone(),
            name,
            origin,
        })
    }

    /// Where the user's tasks wait.
    pub fn waits(&self) -> &Arc<Waits> {
        &self.waits
    }

    /// Where the stream is at present.
    pub(super) fn link(&self, py: Python<'_>) -> PyResult<Arc<ClientLink>> {
        Ok(self.state.with(py, |state| state.at.link.clone())?)
    }

    /// See [`Channel::may_sleep`].
    pub(super) fn may_sleep(&self, py: Python<'_>, interest: Interest) -> PyResult<bool> {
        let there = |state: &mut StreamState| state.is_there(interest, &self.name);
        let sleeps = self.sleep_unless(py, interest.throughput, interest.space, there);
        self.after_look(py, interest.space)?;
        sleeps
    }

    /// Asks for a wake-up of the waits when the worker makes progress. False: the awaited thing is there.
    pub(super) fn sleep_unless(
        &self,
        py: Python<'_>,
        batching: bool,
        sending: bool,
        there: impl Fn(&mut StreamState) -> PyResult<bool>,
    ) -> PyResult<bool> {
        let look = |state: &mut StreamState| -> PyResult<_> {
            let there = there(state)?;
            let unplaced = matches!(&state.store, Store::Journal(journal) if journal.unplaced);
            Ok((there, unplaced, state.at.link.clone()))
        };
        let (is_there, unplaced, link) = self.state.with(py, look)??;
        if is_there || unplaced {
            return Ok(!is_there); // the new worker wakes the waits
        }
        if !self.asleep.swap(true, Relaxed) {
            link.asleep.fetch_add(1, Relaxed);
        }
        self.set_batching(&link, batching, batching && sending);
        let left = if batching { self.in_flight(py) } else { 0 };
        self.leave(&link, left);
        if batching {
            link.falls_asleep();
        }
        if link.coalesce() {
            return Ok(true);
        }
        link.end.arm();
        if link.end.any_ready() {
            link.process_ready(py);
            link.rearm(py);
        }
        let is_there = self.state.with(py, there)??;
        if is_there {
            self.awake(&link);
        }
        Ok(!is_there)
    }

    pub(super) fn awake(&self, link: &ClientLink) {
        if self.asleep.swap(false, Relaxed) {
            self.looks.store(0, Relaxed);
            link.asleep.fetch_sub(1, Relaxed);
            self.set_batching(link, false, false);
            self.leave(link, 0);
        }
    }

    fn in_flight(&self, py: Python<'_>) -> u32 {
        let count =
            |state: &mut StreamState| state.rings.as_mut().map_or(0, |r| r.producer.in_flight());
        self.state.with(py, count).unwrap_or(0)
    }

    /// How many events the worker has handled since this fell asleep; None if it did not, or is not
    /// batching.
    pub(super) fn handled_asleep(&self, py: Python<'_>) -> Option<u64> {
        match self.left.load(Relaxed) {
            0 => None,
            left => Some(left.saturating_sub(self.in_flight(py)).into()),
        }
    }

    /// Notes how many events the worker has left.
    fn leave(&self, link: &ClientLink, left: u32) {
        let before = self.left.swap(left, Relaxed);
        link.left.fetch_add(left.into(), Relaxed);
        link.left.fetch_sub(before.into(), Relaxed);
    }

    /// Whether what sleeps on this stream may be woken a little late, and whether it is to send more.
    fn set_batching(&self, link: &ClientLink, batching: bool, sending: bool) {
        count(&self.batching, &link.batching, batching);
        count(&self.sending, &link.sending, sending);
    }

    pub(super) fn flush_results(&self, py: Python<'_>) {
        let _ = self.state.with(py, |state| {
            if state.rings.as_mut().is_some_and(|r| r.consumer.publish()) {
                state.at.notify();
            }
        });
    }

    /// The end was seen: the slot goes back. Gives what made the stream fail, if its worker did.
    pub(super) fn finish(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        let (left, failure) = self.state.with(py, |state| {
            let left = state.leave();
            state.ended = true;
            state.unstarted = false;
            if let Store::Journal(journal) = &mut state.store {
                journal.close();
            }
            (left, state.failure.take())
        })?;
        self.let_go(py, left);
        self.waits.wake(py);
        Ok(failure)
    }

    /// See [`Channel::detach`](crate::user::channel::Channel::detach).
    pub(super) fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.flush_backlog(py)? {
            return Ok(false);
        }
        let (link, slot, stream) = self.state.with(py, |state| {
            if let Some(rings) = &mut state.rings {
                rings.producer.publish();
            }
            let at = &state.at;
            (at.link.clone(), at.slot, at.number)
        })?;
        if !link.is_dead() {
            link.send(py, &Control::Detach { slot, stream })?;
        }
        Ok(true)
    }

    /// Whether the supervisor has to watch its worker.
    fn has_limits(&self) -> bool {
        self.limits != UsageLimits::default()
    }

    /// Gives back what the stream had of its link.
    pub(super) fn let_go(&self, py: Python<'_>, left: Option<(RingPair, Arc<ClientLink>, u32)>) {
        if let Some((rings, link, slot)) = left {
            self.awake(&link);
            drop(rings);
            if self.has_limits() {
                link.end.end_limit();
            }
            let _ = link.slow.with(py, |slow| slow.forget(slot));
            link.recycle(py, slot);
        }
    }

    /// Drops the results of a stream that has no user any more, up to its end, so that the slot comes
    /// back.
    pub(super) fn drop_results(&self, py: Python<'_>) {
        let over = self.state.wait_with(py, |state| {
            let failed = state.failure.is_some() || state.unstarted;
            let Some(rings) = state.rings.as_mut() else {
                return false;
            };
            loop {
                match rings.consumer.peek() {
                    Ok(Some(frame)) => {
                        let kind = frame.kind;
                        rings.consumer.release();
                        if kind == END || kind == ERROR {
                            return true;
                        }
                    }
                    Ok(None) => return failed,
                    Err(_) => return true,
                }
            }
        });
        match over {
            Ok(true) => drop(self.finish(py)),
            _ => self.flush_results(py),
        }
    }

    /// See [`LinkedStream::fail`](super::link::LinkedStream::fail).
    pub(super) fn fail_with(&self, py: Python<'_>, error: PyErr) {
        let _ = self.state.wait_with(py, |state| {
            state.failure = Some(error);
            state.unstarted = false;
            if let Store::Journal(journal) = &mut state.store
                && journal.unplaced
            {
                state.ended = true;
                journal.close();
            }
        });
        self.waits.wake(py);
        if self.orphaned.load(Relaxed) {
            self.drop_results(py); // its user is gone
        }
    }

    /// Wakes the tasks that sleep here if something has come, whatever the link says; true if the worker is to
    /// look as well, which has been noted. It always is while events wait for it, and otherwise less
    /// and less often, so that thousands of idle streams cost nothing.
    pub(super) fn look_again(&self, py: Python<'_>) -> bool {
        let seen = self.state.with(py, |state| {
            let before = state.progress;
            let (sent, handled) = state.progress_now();
            let news = match &mut state.rings {
                Some(rings) => {
                    rings.restate();
                    rings.consumer.has_data() || before.1 != handled
                }
                None => true,
            };
            let looks = self.looks.fetch_add(1, Relaxed) + 1;
            let remind = sent != handled || looks.is_power_of_two() || looks.is_multiple_of(RARELY);
            if remind {
                state.at.link.end.note(state.at.slot);
            }
            (news, remind, state.at.link.clone())
        });
        let Ok((news, remind, link)) = seen else {
            return false;
        };
        if news {
            self.awake(&link);
            self.waits.wake(py);
        }
        remind
    }
}

impl Sweep for RingStream {
    fn sweep(&self, py: Python<'_>) {
        self.flush_results(py);
    }
}

/// Has a link count those of its streams that have this flag.
fn count(flag: &AtomicBool, those: &AtomicUsize, on: bool) {
    if flag.swap(on, Relaxed) != on {
        match on {
            true => those.fetch_add(1, Relaxed),
            false => those.fetch_sub(1, Relaxed),
        };
    }
}
