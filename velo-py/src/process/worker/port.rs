//! One process-mode stream, as its function has it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use velo_shm::{Allowance, ticks};

use super::Link;
use super::slow_steps::Held;
use super::snapshot::Saving;
use crate::cell::GilCell;
use crate::codec::{VecOut, codec};
use crate::errors::{self, Thrown};
use crate::function::port::{FunctionSide, Next};
use crate::process::control::Control;
use crate::process::ring_pair::{END, ERROR, Hold, ITEM, Received, Rings, Sweep, corruption, spin};
use crate::user::channel::{Offer, Want};
use crate::wait::Wait;

/// Streams whose functions have not ended, of all links of this worker.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One more is open.
pub(super) fn one_more() {
    OPEN.fetch_add(1, Relaxed);
}

/// The function's half of a process-mode stream.
pub struct RingPort {
    pub(super) ends: GilCell<Ends>,
    pub(super) link: Arc<Link>,
    pub(super) slot: u32,
    /// The client's number of the stream.
    pub(super) number: u64,
    pub(super) function: Arc<FunctionSide>,
    /// The function is a kept stream's, and goes on without this port.
    pub(super) kept: bool,
    pub(super) event_loop: Py<PyAny>,
    pub(super) this: Weak<dyn Sweep>,
    /// Its slow steps.
    pub(super) held: GilCell<Held>,
    /// It is one of `OPEN`.
    pub(super) counted: AtomicBool,
}

pub struct Ends {
    /// None once the client has seen the end.
    pub(super) rings: Option<Rings>,
    /// The event that the function has, until it asks for the next one.
    pub(super) current: Option<Option<Arc<Hold>>>,
    pub(super) input_ended: bool,
    /// The function has asked for its first event.
    pub(super) asked: bool,
    /// The client wants neither events handled nor results sent.
    pub(super) cancelled: bool,
    /// Why somebody else than the client has ended the stream.
    pub(super) ended_by: Option<String>,
    /// The end, while there is no room for it.
    pub(super) unsent_end: Option<(u8, Vec<u8>)>,
    /// Events may become unwanted while they are queued.
    pub(super) drops: bool,
    /// Another worker takes over when this one dies.
    pub(super) recovers: bool,
    /// A snapshot comes before the first event.
    pub(super) restored: bool,
    pub(super) saving: Option<Box<Saving>>,
    /// Why no snapshot could be made while the function waited for an event.
    pub(super) unsaved: Option<PyErr>,
}

impl RingPort {
    /// See [`Port::next_event`].
    #[inline]
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        let codec = codec(py)?;
        self.ends.with(py, |ends| {
            self.ask(py, ends)?;
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(Next::Ended);
            };
            if let Some(hold) = ends.current.take() {
                rings.done(hold);
            }
            if ends.input_ended {
                return Ok(Next::Ended);
            }
            if ends.recovers {
                // Whatever ends this worker from here on, the client knows in which event.
                if let Some(error) = ends.unsaved.take() {
                    return Err(error.into());
                }
                if let Some(saving) = &mut ends.saving {
                    saving.asked(py, rings)?;
                }
                if rings.producer.publish() | rings.consumer.publish() {
                    self.link.end.notify(self.slot);
                }
            }
            if ends.drops {
                rings
                    .consumer
                    .skip_unwanted()
                    .map_err(|found| corruption(&found))?;
            }
            let Some(Received { kind, value, hold }) =
                rings.decode(py, codec, &self.this, false)?
            else {
                return Ok(Next::Empty);
            };
            match kind {
                ITEM => {
                    ends.current = Some(hold);
                    if let Some(saving) = &mut ends.saving {
                        saving.goes_on();
                    }
                    self.link.end.took_event(self.slot, ends.event());
                    Ok(Next::Event(value?.unbind()))
                }
                END => {
                    rings.done(hold);
                    ends.input_ended = true;
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
        self.ends.with(py, |ends| ends.event()).unwrap_or(0)
    }

    /// See [`Port::allow`].
    pub fn allow(&self, allowance: Option<Allowance>) {
        self.link.end.allow(self.slot, allowance);
    }

    /// Runs a step of the function with its name on the link's board.
    #[inline]
    pub fn on_board<R>(
        &self,
        py: Python<'_>,
        allowance: Option<Allowance>,
        step: impl FnOnce() -> R,
    ) -> R {
        let end = &self.link.end;
        end.begin_step(self.slot, self.number, self.event(py), allowance);
        let came = step();
        end.end_step();
        came
    }

    /// A step of the function took long: if others live here, they had to wait.
    #[cold]
    pub fn was_slow(&self, py: Python<'_>, took: u64) {
        let shared = OPEN.load(Relaxed) > 1;
        let news = self
            .held
            .with(py, |held| held.note(ticks::now(), took, shared));
        if let Ok(Some(news)) = news {
            let slow = Control::Slow {
                slot: self.slot,
                stream: self.number,
                held_up: news.held_up,
                habit: news.habit,
                ms: u64::try_from(ticks::to_duration(took).as_millis()).unwrap_or(u64::MAX),
            };
            // A client that does not read its messages learns of it from nothing.
            let _ = self.link.tell(py, &slow);
            self.link.end.ring(); // nobody may be waiting for anything else there
        }
    }

    /// See [`Port::wait_event`].
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let there = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return true;
            };
            if !self.link.end.is_oversubscribed() {
                spin(py, rings, (&self.link.end, self.slot), Want::RESULTS);
            }
            rings.consumer.has_data() || ends.input_ended
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
        self.ends.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => Ok(matches!(
                rings.push(codec, result, ITEM, true)?,
                Offer::Sent
            )),
            None => Ok(true), // the client has gone: nobody wants it
        })?
    }

    /// See [`Port::show_results`].
    #[inline]
    pub fn show_results(&self, py: Python<'_>) {
        let news = self.ends.with(py, |ends| {
            ends.rings.as_mut().is_some_and(|r| r.producer.publish())
        });
        if !news.unwrap_or(false) {
            return;
        }
        let end = &self.link.end;
        end.notify(self.slot);
        if end.shares_core() && !end.is_oversubscribed() {
            py.detach(std::thread::yield_now);
        }
    }

    /// See [`Port::flush`].
    #[inline]
    pub fn flush(&self, py: Python<'_>) {
        let news = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return false;
            };
            // Results first: who sees an event handled must see what came of it.
            let published = rings.producer.publish();
            rings.consumer.publish() || published
        });
        if news.unwrap_or(false) {
            self.link.end.notify(self.slot);
        }
    }

    /// See [`Port::wait_space`].
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let space = &self.function.space;
        let future = space.start(self.event_loop.bind(py))?;
        let there = self.ends.with(py, |ends| match ends.rings.as_mut() {
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
        self.function.forget_steps(py);
        self.end(py, outcome);
    }

    /// The client sees the end after the last result.
    pub fn end(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.uncount();
        let ended_by = self.ends.with(py, |ends| ends.ended_by.take());
        let outcome = match ended_by.ok().flatten() {
            Some(why) => Err(errors::closed(why)),
            None => outcome,
        };
        let (kind, payload) = match outcome {
            Ok(()) => (END, Vec::new()),
            Err(error) => (ERROR, self.pack_error(py, error)),
        };
        let sent = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return;
            };
            if let Some(hold) = ends.current.take() {
                rings.done(hold);
            }
            ends.unsent_end = Some((kind, payload));
            ends.send_end();
        });
        if sent.is_ok() {
            self.flush(py);
            let _ = self.link.tell(
                py,
                &Control::Ended {
                    slot: self.slot,
                    stream: self.number,
                },
            );
        }
    }

    /// The client did something: the function looks again.
    pub(super) fn wake(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| {
            ends.send_end();
            if let Some(rings) = ends.rings.as_mut()
                && !rings.consumer.has_data()
            {
                rings.restate(); // told to look and nothing new: the client may miss something
            }
            ends.send_state()
        });
        self.flush(py); // also gives back what views held that were dropped meanwhile
        self.function.space.wake(py);
        self.function.go_on(py);
    }

    /// The function's state is made of what another worker left of it, if there was one before.
    pub fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let codec = codec(py)?;
        self.ends.with(py, |ends| {
            let state = match (&mut ends.rings, ends.restored) {
                (Some(rings), true) => rings.restore(py, codec)?,
                _ => PyDict::new(py),
            };
            if ends.recovers {
                let saving = Saving::of(state.clone().unbind());
                ends.saving = Some(Box::new(saving));
            }
            Ok(state)
        })?
    }

    /// The client wants a snapshot: now, if the function waits for an event.
    pub(super) fn snapshot(&self, py: Python<'_>) -> PyResult<()> {
        let waits = self.function.event.is_waiting(py);
        let saved = self.ends.with(py, |ends| {
            let (Some(rings), Some(saving)) = (&mut ends.rings, &mut ends.saving) else {
                return Ok(());
            };
            saving.want();
            match waits {
                true => saving.asked(py, rings),
                false => Ok(()),
            }
        })?;
        self.flush(py);
        if let Err(error) = saved {
            // Whoever waits for the next event learns why there is none.
            self.ends.with(py, |ends| ends.unsaved = Some(error))?;
            self.function.event.wake(py);
        }
        Ok(())
    }

    /// What it has of its function.
    pub fn function(&self) -> &Arc<FunctionSide> {
        &self.function
    }

    /// Whether the client uses the rings no more.
    pub fn is_closed(&self, py: Python<'_>) -> bool {
        let closed = |ends: &mut Ends| ends.rings.is_none();
        self.ends.with(py, closed).unwrap_or(false)
    }

    /// Whether the function is done with all that the client has sent, and may yet be sent more.
    pub fn is_at_rest(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ends.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => {
                ends.current.is_none() && !ends.input_ended && !rings.consumer.has_data()
            }
            None => true,
        })?)
    }

    /// The function has asked for an event before this port was there.
    pub fn asked(&self, py: Python<'_>) -> PyResult<()> {
        self.ends.with(py, |ends| self.ask(py, ends))?
    }

    fn ask(&self, py: Python<'_>, ends: &mut Ends) -> PyResult<()> {
        if !std::mem::replace(&mut ends.asked, true) {
            let (slot, stream) = (self.slot, self.number);
            self.link.tell(py, &Control::Asked { slot, stream })?;
        }
        Ok(())
    }

    fn uncount(&self) {
        if self.counted.swap(false, Relaxed) {
            OPEN.fetch_sub(1, Relaxed);
        }
    }

    /// Neither events nor results are wanted any more.
    pub fn cancel(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| {
            ends.cancelled = true;
            ends.input_ended = true;
        });
    }

    /// Somebody else than the client ends the stream. False if its end was already seen.
    pub(super) fn end_for(&self, py: Python<'_>, why: String) -> bool {
        let there = self.ends.with(py, |ends| {
            let there = ends.rings.is_some() && ends.unsent_end.is_none();
            if there {
                ends.ended_by.get_or_insert(why);
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
        let ended = |ends: &mut Ends| ends.input_ended || ends.rings.is_none();
        self.ends.with(py, ended).unwrap_or(true)
    }

    /// See [`Port::is_cancelled`].
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.ends.with(py, |ends| ends.cancelled).unwrap_or(false)
    }

    /// The client has seen the end: the slot is given back once the last view of it is gone.
    pub(super) fn close(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| ends.rings = None);
        self.uncount();
        if !self.kept {
            self.function.forget_steps(py);
        }
        self.function.event.wake(py);
        self.function.space.wake(py);
    }
}

impl Ends {
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
        match (&mut self.rings, &mut self.saving) {
            (Some(rings), Some(saving)) => saving.send(rings),
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
            let _ = rings.has_space(); // asks to be told when there is room
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
        let longest = self
            .ends
            .with(py, |ends| ends.rings.as_ref().map(|r| r.producer.max_len()));
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
