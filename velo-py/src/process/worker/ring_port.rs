//! The function's half of a process-mode stream.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use velo_shm::{Allowance, LaneActivity, ticks};

use super::control_line::ControlLine;
use super::slow_steps::SlowSteps;
use super::snapshot::Snapshots;
use crate::cell::GilCell;
use crate::codec::{VecOut, codec};
use crate::errors::{self, Thrown};
use crate::flow::Next;
use crate::flow::{Interest, Offer};
use crate::function_side::FunctionSide;
use crate::process::control::Control;
use crate::process::hold::{Hold, Sweep};
use crate::process::ring_pair::{END, ERROR, ITEM, Received, RingPair, spin};
use crate::wait::Wait;

/// Streams whose functions have not ended, of all links of this worker.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A stream as the client's control message opens it.
pub struct Opening {
    pub slot: u32,
    /// The client's number of the stream.
    pub number: u64,
    /// How many events may be accepted and not handled.
    pub buffer: u32,
    /// How large the rings may grow.
    pub max_bytes: u64,
    /// Events may become unwanted while they are queued.
    pub drops: bool,
    /// Another worker takes the stream over when this one dies.
    pub recovers: bool,
    /// A snapshot of the function's state comes before the first event.
    pub restored: bool,
}

/// The function's half of a process-mode stream.
pub struct RingPort {
    pub(super) state: GilCell<State>,
    pub(super) line: Arc<ControlLine>,
    pub(super) slot: u32,
    /// The client's number of the stream.
    pub(super) number: u64,
    pub(super) function: Arc<FunctionSide>,
    /// The function is a session's, and goes on without this port.
    in_session: bool,
    pub(super) event_loop: Py<PyAny>,
    this: Weak<dyn Sweep>,
    slow_steps: GilCell<SlowSteps>,
    /// The stream is counted in `OPEN`.
    counted: AtomicBool,
}

pub(super) struct State {
    /// None once the client has seen the end.
    pub(super) rings: Option<RingPair>,
    /// The event that the function has, until it asks for the next one.
    current: Option<Option<Arc<Hold>>>,
    pub(super) input_ended: bool,
    /// The function has asked for its first event.
    asked: bool,
    /// The client wants neither events handled nor results sent.
    cancelled: bool,
    /// Why the stream was ended, if not by its client.
    pub(super) ended_by: Option<String>,
    /// The end, while there is no room for it.
    unsent_end: Option<(u8, Vec<u8>)>,
    /// See [`Opening`].
    drops: bool,
    recovers: bool,
    restored: bool,
    snapshots: Option<Box<Snapshots>>,
    /// Why no snapshot could be made while the function waited for an event.
    snapshot_failure: Option<PyErr>,
}

impl RingPort {
    /// The port of a stream that the client has opened.
    pub(super) fn new(
        line: Arc<ControlLine>,
        event_loop: Py<PyAny>,
        opening: &Opening,
        rings: RingPair,
        function: Arc<FunctionSide>,
        in_session: bool,
    ) -> Arc<Self> {
        let state = State {
            rings: Some(rings),
            current: None,
            input_ended: false,
            asked: false,
            cancelled: false,
            ended_by: None,
            unsent_end: None,
            drops: opening.drops,
            recovers: opening.recovers,
            restored: opening.restored,
            snapshots: None,
            snapshot_failure: None,
        };
        OPEN.fetch_add(1, Relaxed);
        Arc::new_cyclic(|this: &Weak<RingPort>| RingPort {
            state: GilCell::new(state),
            line,
            slot: opening.slot,
            number: opening.number,
            function,
            in_session,
            event_loop,
            this: this.clone(),
            slow_steps: GilCell::default(),
            counted: AtomicBool::new(true),
        })
    }
    /// See [`Port::next_event`].
    #[inline]
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        if self.line.is_of_parent() {
            return Err(errors::of_worker().into());
        }
        let codec = codec(py)?;
        self.state.with(py, |state| {
            self.ask(py, state)?;
            let Some(rings) = state.rings.as_mut() else {
                return Ok(Next::Ended);
            };
            if let Some(hold) = state.current.take() {
                rings.done(hold);
            }
            if state.input_ended {
                return Ok(Next::Ended);
            }
            if state.recovers {
                // Published at once: if this worker dies from here on, the client knows at which event.
                if let Some(error) = state.snapshot_failure.take() {
                    return Err(error.into());
                }
                if let Some(snapshots) = &mut state.snapshots {
                    snapshots.asked(py, rings)?;
                }
                if rings.producer.publish() | rings.consumer.publish() {
                    self.line.end.notify(self.slot);
                }
            }
            if state.drops {
                rings
                    .consumer
                    .skip_unwanted()
                    .map_err(|found| errors::ring_corrupted(&found))?;
            }
            let Some(Received { kind, value, hold }) =
                rings.decode(py, codec, &self.this, false)?
            else {
                return Ok(Next::Empty);
            };
            match kind {
                ITEM => {
                    state.current = Some(hold);
                    if let Some(snapshots) = &mut state.snapshots {
                        snapshots.resumed();
                    }
                    self.line.end.took_event(self.slot, state.event());
                    Ok(Next::Event(value?.unbind()))
                }
                END => {
                    rings.done(hold);
                    state.input_ended = true;
                    Ok(Next::Ended)
                }
                other => Err(
                    errors::corrupted(format!("the client sent a frame of kind {other}")).into(),
                ),
            }
        })?
    }

    /// See [`Port::event`].
    #[inline]
    pub fn event(&self, py: Python<'_>) -> u64 {
        self.state.with(py, |state| state.event()).unwrap_or(0)
    }

    /// See [`Port::allow`].
    pub fn allow(&self, allowance: Option<Allowance>) {
        self.line.end.allow(self.slot, allowance);
    }

    /// Runs a step of the function with its name on the link's board.
    #[inline]
    pub fn observe_step<R>(
        &self,
        py: Python<'_>,
        allowance: Option<Allowance>,
        step: impl FnOnce() -> R,
    ) -> R {
        let end = &self.line.end;
        end.begin_step(self.slot, self.number, self.event(py), allowance);
        let came = step();
        end.end_step();
        came
    }

    /// Runs a step of a lane, which tells by [`runs_key`](Self::runs_key) whose function it runs.
    #[inline]
    pub fn observe_lane<R>(&self, allowance: Option<Allowance>, step: impl FnOnce() -> R) -> R {
        let end = &self.line.end;
        end.begin_step(self.slot, self.number, LaneActivity::NONE, allowance);
        let came = step();
        end.end_step();
        came
    }

    /// A step of a lane goes on with this key, or with none.
    #[inline]
    pub fn runs_key(&self, at: u64) {
        self.line.end.took_event(self.slot, at);
    }

    /// The same, and the key may take this long from now on.
    #[inline]
    pub fn runs_key_within(&self, at: u64, allowance: Option<Allowance>) {
        let end = &self.line.end;
        end.begin_step(self.slot, self.number, at, allowance);
    }

    /// Whether this is a process that a function has forked.
    #[inline]
    pub fn is_of_parent(&self) -> bool {
        self.line.is_of_parent()
    }

    /// A step of the function took long: if others live here, they had to wait.
    #[cold]
    pub fn was_slow(&self, py: Python<'_>, took: u64) {
        let shared = OPEN.load(Relaxed) > 1;
        let news = self
            .slow_steps
            .with(py, |slow| slow.note(ticks::now(), took, shared));
        if let Ok(Some(news)) = news {
            let slow = Control::Slow {
                slot: self.slot,
                stream: self.number,
                held_up: news.held_up,
                habit: news.habit,
                ms: u64::try_from(ticks::to_duration(took).as_millis()).unwrap_or(u64::MAX),
            };
            // A client that does not read its messages misses the report.
            let _ = self.line.send(py, &slow);
            self.line.end.ring(); // the client may wait for nothing else on this link
        }
    }

    /// See [`Port::wait_event`].
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let there = self.state.with(py, |state| {
            let Some(rings) = state.rings.as_mut() else {
                return true;
            };
            if !self.line.end.is_oversubscribed() {
                spin(py, rings, (&self.line.end, self.slot), Interest::RESULTS);
            }
            rings.consumer.has_data() || state.input_ended
        })?;
        if there {
            return Ok(None);
        }
        self.function.wait_event(py, &self.event_loop).map(Some)
    }

    /// The loop that the function runs in.
    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// Where the function waits for an event.
    pub fn event_wait(&self) -> &Wait {
        &self.function.event
    }

    /// See [`Port::push`].
    #[inline]
    pub fn push(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        let codec = codec(py)?;
        self.state.with(py, |state| match state.rings.as_mut() {
            Some(rings) => Ok(matches!(
                rings.push(codec, result, ITEM, true)?,
                Offer::Sent
            )),
            None => Ok(true), // the client has gone: the result is dropped
        })?
    }

    /// See [`Port::flush_results`].
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) {
        let news = self.state.with(py, |state| {
            state.rings.as_mut().is_some_and(|r| r.producer.publish())
        });
        if !news.unwrap_or(false) {
            return;
        }
        let end = &self.line.end;
        end.notify(self.slot);
        if end.shares_core() && !end.is_oversubscribed() {
            py.detach(std::thread::yield_now);
        }
    }

    /// See [`Port::flush`].
    #[inline]
    pub fn flush(&self, py: Python<'_>) {
        let news = self.state.with(py, |state| {
            let Some(rings) = state.rings.as_mut() else {
                return false;
            };
            // Results first: a client that sees an event handled must see its results, too.
            let published = rings.producer.publish();
            rings.consumer.publish() || published
        });
        if news.unwrap_or(false) {
            self.line.end.notify(self.slot);
        }
    }

    /// See [`Port::wait_space`].
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let space = &self.function.space;
        let future = space.start(self.event_loop.bind(py))?;
        let there = self.state.with(py, |state| match state.rings.as_mut() {
            Some(rings) => rings.has_space(),
            None => Ok(true),
        })??;
        if there {
            space.clear(py);
        }
        Ok((!there).then_some(future))
    }

    /// Where the function waits for room.
    pub fn space_wait(&self) -> &Wait {
        &self.function.space
    }

    /// See [`Port::finish`].
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.function.forget_runner(py);
        self.end(py, outcome);
    }

    /// The client sees the end after the last result.
    pub fn end(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.uncount();
        let ended_by = self.state.with(py, |state| state.ended_by.take());
        let outcome = match ended_by.ok().flatten() {
            Some(why) => Err(errors::closed(why)),
            None => outcome,
        };
        let (kind, payload) = match outcome {
            Ok(()) => (END, Vec::new()),
            Err(error) => (ERROR, self.pack_error(py, error)),
        };
        let sent = self.state.with(py, |state| {
            let Some(rings) = state.rings.as_mut() else {
                return;
            };
            if let Some(hold) = state.current.take() {
                rings.done(hold);
            }
            state.unsent_end = Some((kind, payload));
            state.send_end();
        });
        if sent.is_ok() {
            self.flush(py);
            let _ = self.line.send(
                py,
                &Control::Ended {
                    slot: self.slot,
                    stream: self.number,
                },
            );
        }
    }

    /// The client has changed a ring: wakes the function.
    pub fn wake(&self, py: Python<'_>) {
        let _ = self.state.with(py, |state| {
            state.send_end();
            if let Some(rings) = state.rings.as_mut()
                && !rings.consumer.has_data()
            {
                rings.restate(); // told to look and nothing new: the client may miss something
            }
            state.send_state()
        });
        self.flush(py); // also gives back what views held that were dropped meanwhile
        self.function.space.wake(py);
        self.function.resume(py);
    }

    /// The function's state: the last snapshot of it, if another worker ran the stream before.
    pub fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let codec = codec(py)?;
        self.state.with(py, |state| {
            let values = match (&mut state.rings, state.restored) {
                (Some(rings), true) => rings.restore(py, codec)?,
                _ => PyDict::new(py),
            };
            if state.recovers {
                let snapshots = Snapshots::of(values.clone().unbind());
                state.snapshots = Some(Box::new(snapshots));
            }
            Ok(values)
        })?
    }

    /// The client wants a snapshot: now, if the function waits for an event.
    pub fn snapshot(&self, py: Python<'_>) -> PyResult<()> {
        let waits = self.function.event.is_waiting(py);
        let saved = self.state.with(py, |state| {
            let (Some(rings), Some(snapshots)) = (&mut state.rings, &mut state.snapshots) else {
                return Ok(());
            };
            snapshots.want();
            match waits {
                true => snapshots.asked(py, rings),
                false => Ok(()),
            }
        })?;
        self.flush(py);
        if let Err(error) = saved {
            // The function, which waits for its next event, gets the reason instead.
            self.state
                .with(py, |state| state.snapshot_failure = Some(error))?;
            self.function.event.wake(py);
        }
        Ok(())
    }

    /// What the port has of its function.
    pub fn function(&self) -> &Arc<FunctionSide> {
        &self.function
    }

    /// Whether the client uses the rings no more.
    pub fn is_closed(&self, py: Python<'_>) -> bool {
        let closed = |state: &mut State| state.rings.is_none();
        self.state.with(py, closed).unwrap_or(false)
    }

    /// Whether the function is done with all that the client has sent, and may yet be sent more.
    pub fn is_at_rest(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |state| match state.rings.as_mut() {
            Some(rings) => {
                state.current.is_none() && !state.input_ended && !rings.consumer.has_data()
            }
            None => true,
        })?)
    }

    /// The function has asked for an event before this port was there.
    pub fn asked(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| self.ask(py, state))?
    }

    fn ask(&self, py: Python<'_>, state: &mut State) -> PyResult<()> {
        if !std::mem::replace(&mut state.asked, true) {
            let (slot, stream) = (self.slot, self.number);
            self.line.send(py, &Control::Asked { slot, stream })?;
        }
        Ok(())
    }

    fn uncount(&self) {
        if self.counted.swap(false, Relaxed) {
            OPEN.fetch_sub(1, Relaxed);
        }
    }

    pub fn cancel(&self, py: Python<'_>) {
        let _ = self.state.with(py, |state| {
            state.cancelled = true;
            state.input_ended = true;
        });
    }

    /// Ends the stream for the client, which gets `why`. False if its end was already seen.
    pub fn end_for(&self, py: Python<'_>, why: String) -> bool {
        let there = self.state.with(py, |state| {
            let there = state.rings.is_some() && state.unsent_end.is_none();
            if there {
                state.ended_by.get_or_insert(why);
            }
            there
        });
        let there = there.unwrap_or(false);
        if there {
            self.cancel(py);
        }
        there
    }

    /// Whether no more events come.
    pub fn has_input_ended(&self, py: Python<'_>) -> bool {
        let ended = |state: &mut State| state.input_ended || state.rings.is_none();
        self.state.with(py, ended).unwrap_or(true)
    }

    /// See [`Port::is_cancelled`].
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.state
            .with(py, |state| state.cancelled)
            .unwrap_or(false)
    }

    /// The client has seen the end: the slot is given back once the last view of it is gone.
    pub(super) fn close(&self, py: Python<'_>) {
        let _ = self.state.with(py, |state| state.rings = None);
        self.uncount();
        if !self.in_session {
            self.function.forget_runner(py);
        }
        self.function.event.wake(py);
        self.function.space.wake(py);
    }
}

impl State {
    /// Which event the function took last, counted from 1; 0 before the first, and once the
    /// client has seen the end.
    #[inline]
    fn event(&self) -> u64 {
        let taken = u64::from(self.current.is_some());
        self.rings
            .as_ref()
            .map_or(0, |rings| rings.consumer.released() + taken)
    }

    fn send_state(&mut self) -> PyResult<()> {
        match (&mut self.rings, &mut self.snapshots) {
            (Some(rings), Some(snapshots)) => snapshots.send(rings),
            _ => Ok(()),
        }
    }

    fn send_end(&mut self) {
        let (Some(rings), Some((kind, payload))) = (self.rings.as_mut(), self.unsent_end.take())
        else {
            return;
        };
        if !matches!(
            rings.push_bytes(&payload, &[], kind, false),
            Ok(Offer::Sent)
        ) {
            let _ = rings.has_space(); // asks for a wake-up when there is room
            self.unsent_end = Some((kind, payload));
        }
    }
}

impl Sweep for RingPort {
    fn sweep(&self, py: Python<'_>) {
        self.flush(py);
    }
}

impl RingPort {
    /// The exception as it travels; in short when it is larger than anything that may be sent.
    pub(super) fn pack_error(&self, py: Python<'_>, error: PyErr) -> Vec<u8> {
        static PACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let longest = self.state.with(py, |state| {
            state.rings.as_ref().map(|r| r.producer.max_len())
        });
        let longest = longest.ok().flatten().unwrap_or(u64::MAX);
        let pack = |error: &Py<PyAny>| -> PyResult<Vec<u8>> {
            let packed = PACK
                .import(py, "velo._function.exceptions", "pack")?
                .call1((error, longest))?;
            let mut out = VecOut::default();
            codec(py)?.encode(py, &packed, &mut out)?;
            Ok(out.into_vec())
        };
        let value = error.into_value(py).into_any();
        pack(&value)
            .or_else(|failed| pack(&failed.into_value(py).into_any()))
            .unwrap_or_default()
    }
}
