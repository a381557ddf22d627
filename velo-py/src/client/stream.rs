//! One process-mode stream, as its client has it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::backlog::Backlog;
use super::link::Link;
use crate::cell::GilCell;
use crate::channel::{Offer, Take, Want};
use crate::codec::{Blank, codec};
use crate::control;
use crate::errors;
use crate::loan::{self, LEND_FROM};
use crate::rings::{END, ERROR, ITEM, Rings, Sweep, corruption, spin};
use crate::wait::Waits;

/// One stream's rings as the client has them, until its end was seen.
pub struct ClientEnds {
    pub(super) ends: GilCell<Ends>,
    pub(super) slot: u32,
    /// Tells it from other streams of the link, before and after it.
    pub(super) number: u64,
    pub(super) link: Arc<Link>,
    pub(super) waits: Arc<Waits>,
    /// A task sleeps on this stream.
    pub(super) asleep: AtomicBool,
    /// What sleeps there moves things in bulk.
    pub(super) patient: AtomicBool,
    /// How many events the worker had left to handle when a nap began.
    pub(super) left: AtomicU32,
    /// The user has let go of the stream: its last results are dropped.
    pub(super) orphaned: AtomicBool,
    /// It has limits that the supervisor keeps.
    pub(super) limited: bool,
    /// Its function has slow steps.
    pub(super) slow: AtomicBool,
    pub(super) this: Weak<dyn Sweep>,
    pub(super) name: String,
}

pub struct Ends {
    /// None once the end was seen, or the worker has died and everything was drained.
    pub(super) rings: Option<Rings>,
    /// The worker says that the function has ended; results may still be queued.
    pub(super) ended: bool,
    /// The worker says that the function has asked for its first event.
    pub(super) asked: bool,
    pub(super) failure: Option<PyErr>,
    pub(super) progress: (u64, u64),
    pub(super) bytes: (u64, u64),
    /// For `full="drop_oldest"`.
    pub(super) backlog: Option<Backlog>,
    /// Events in the ring that the worker has dropped.
    pub(super) skipped: u64,
}

/// The user's half of a process-mode stream.
pub struct RingChannel {
    pub(super) shared: Arc<ClientEnds>,
}

impl Drop for RingChannel {
    fn drop(&mut self) {
        Python::attach(|py| {
            self.shared.orphaned.store(true, Relaxed);
            self.shared.drop_results(py);
        });
    }
}

impl RingChannel {
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Ends) -> PyResult<R>) -> PyResult<R> {
        self.shared.ends.with(py, f)?
    }

    /// As `with`, for what may be asked from any thread.
    fn look<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Ends) -> R) -> PyResult<R> {
        Ok(self.shared.ends.wait_with(py, f)?)
    }

    /// See [`Channel::offer`].
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        let codec = codec(py)?;
        let offer = self.with(py, |ends| match ends.rings.as_mut() {
            Some(_) if ends.backlog.as_ref().is_some_and(Backlog::waits) => Ok(None),
            Some(rings) if !(ends.ended || ends.failure.is_some()) => {
                rings.push(codec, event, ITEM, true).map(Some)
            }
            _ => Ok(Some(Offer::Full)),
        })?;
        match offer {
            Some(offer) => Ok(offer),
            None if self.shared.flush_backlog(py)? => self.offer(py, event),
            None => Ok(Offer::Full),
        }
    }

    /// See [`Channel::loan`].
    pub fn loan(&self, py: Python<'_>, blank: &Blank) -> PyResult<Option<Py<PyAny>>> {
        let loan = self.with(py, |ends| match ends.rings.as_mut() {
            Some(_) if ends.ended || ends.failure.is_some() => Ok(None),
            Some(_) if blank.len() < LEND_FROM => Ok(Some(None)),
            Some(rings) => Ok(rings.lend(blank.len())?.map(Some)),
            None => Ok(None),
        })?;
        match loan {
            Some(Some(loan)) => loan::array(py, loan, blank).map(Some),
            Some(None) => blank.alone(py).map(Some),
            None => Ok(None),
        }
    }

    /// See [`Channel::flush_events`].
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        let published = self.with(py, |ends| {
            Ok(ends.rings.as_mut().is_some_and(|r| r.producer.publish()))
        })?;
        let link = &self.shared.link;
        if published {
            link.end.notify(self.shared.slot);
        }
        if link.end.is_ready(control::SLOT) {
            link.process_ready(py); // a function that has ended takes no more events
        }
        Ok(())
    }

    /// See [`Channel::free_events`].
    #[inline]
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        let waits = |ends: &mut Ends| Ok(ends.backlog.as_ref().is_some_and(Backlog::waits));
        if self.with(py, waits)? && !self.shared.flush_backlog(py)? {
            return Ok(0);
        }
        self.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) if !(ends.ended || ends.failure.is_some()) => {
                Ok(rings.producer.free_events() as usize)
            }
            _ => Ok(0),
        })
    }

    /// See [`Channel::take`].
    #[inline]
    pub fn take(&self, py: Python<'_>, private: bool) -> PyResult<Take> {
        let codec = codec(py)?;
        let taken = self.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return match ends.failure.take() {
                    Some(error) => Err(error),
                    None => Ok(Taken::Take(Take::Ended)),
                };
            };
            let received = match rings.decode(py, codec, &self.shared.this, private) {
                Ok(Some(received)) => received,
                Ok(None) if ends.failure.is_some() => return Ok(Taken::Last(None)),
                Ok(None) => return Ok(Taken::Take(Take::Empty)),
                Err(corrupted) => return Ok(Taken::Last(Some(corrupted))),
            };
            let (kind, value) = (received.kind, received.value.map(Bound::unbind));
            rings.done(received.hold);
            match (kind, value) {
                (ITEM, Ok(value)) => Ok(Taken::Take(Take::Item(value))),
                (ITEM, Err(error)) => Err(error),
                (END, _) => Ok(Taken::Last(None)),
                (ERROR, Ok(packed)) => Ok(Taken::Last(Some(unpack_error(py, packed)))),
                (ERROR, Err(error)) => Ok(Taken::Last(Some(error))),
                (other, _) => {
                    let what = format!("the worker sent a frame of unknown kind {other}");
                    Ok(Taken::Last(Some(errors::corrupted(what))))
                }
            }
        })?;
        match taken {
            Taken::Take(take) => Ok(take),
            Taken::Last(error) => {
                let failure = self.shared.finish(py)?;
                error.or(failure).map_or(Ok(Take::Ended), Err)
            }
        }
    }

    /// See [`Channel::flush_results`].
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.flush_results(py);
        Ok(())
    }

    /// See [`Channel::is_finished`].
    pub fn is_finished(&self, py: Python<'_>) -> PyResult<bool> {
        if self.shared.link.end.any_ready() {
            self.shared.link.process_ready(py);
        }
        self.with(py, |ends| Ok(ends.rings.is_none() || ends.has_ended()))
    }

    /// See [`Channel::is_settled`].
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        if self.shared.link.end.is_ready(control::SLOT) {
            self.shared.link.process_ready(py);
        }
        self.with(py, |ends| {
            let (sent, handled) = ends.progress_now();
            Ok(sent == handled && (sent > 0 || ends.asked || ends.rings.is_none()))
        })
    }

    /// See [`Channel::progress`].
    #[inline]
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, Ends::progress_now)
    }

    /// See [`Channel::bytes`].
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |ends| {
            ends.rings
                .as_ref()
                .map_or(ends.bytes, |rings| (rings.bytes_out, rings.bytes_in))
        })
    }

    /// See [`Channel::may_sleep`].
    pub fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        self.shared.may_sleep(py, want)
    }

    /// See [`Channel::offer_newest`].
    pub fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.shared.offer_newest(py, event)
    }

    /// See [`Channel::dropped`].
    pub fn dropped(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |ends| {
            let here = ends.backlog.as_ref().map_or(0, |backlog| backlog.dropped);
            if let Some(rings) = &ends.rings {
                ends.skipped = rings.producer.skipped();
            }
            (here, ends.skipped)
        })
    }

    /// See [`Channel::spin`].
    #[inline]
    pub fn spin(&self, py: Python<'_>, want: Want) -> PyResult<u64> {
        if !self.shared.link.may_spin() {
            return Ok(0);
        }
        let place = (&*self.shared.link.end, self.shared.slot);
        self.with(py, |ends| {
            let spun = ends
                .rings
                .as_mut()
                .map(|rings| spin(py, rings, place, want.space, want.handled));
            Ok(spun.unwrap_or(0))
        })
    }

    /// See [`Channel::end_input`].
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        if !self.shared.flush_backlog(py)? {
            return Ok(Offer::Full);
        }
        let offer = self.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => rings.push_bytes(&[], &[], END, false),
            None => Ok(Offer::Sent),
        })?;
        self.flush_events(py)?;
        Ok(offer)
    }
}

enum Taken {
    Take(Take),
    /// The stream is over, for this reason.
    Last(Option<PyErr>),
}

impl Ends {
    /// Whether the function takes no more events. Results may still be queued.
    pub(super) fn has_ended(&self) -> bool {
        self.ended || self.failure.is_some()
    }

    pub(super) fn progress_now(&mut self) -> (u64, u64) {
        if let Some(rings) = self.rings.as_mut() {
            let waiting = self.backlog.as_ref().map_or(0, Backlog::len);
            let sent = rings.producer.committed() + waiting;
            self.progress = (sent, rings.producer.released());
        }
        self.progress
    }
}

impl ClientEnds {
    /// See [`Channel::may_sleep`].
    pub(super) fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        let link = &self.link;
        if self.is_there(py, want)? {
            return Ok(false);
        }
        if !self.asleep.swap(true, Relaxed) {
            link.asleep.fetch_add(1, Relaxed);
        }
        // Only bulk transfer wants room, or everything handled, besides results.
        let patient = want.results && (want.space || want.handled);
        self.be_patient(patient);
        if link.nap(py)? {
            self.left.store(self.in_flight(py), Relaxed);
            return Ok(true);
        }
        link.end.arm();
        if link.end.any_ready() {
            link.process_ready(py);
            link.rearm(py);
        }
        let there = self.is_there(py, want)?;
        if there {
            self.awake();
        }
        Ok(!there)
    }

    fn is_there(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        self.ends.with(py, |ends| {
            let of_the_function = want.space || want.handled || want.loan > 0;
            if ends.ended && of_the_function || ends.failure.is_some() {
                return Ok(true);
            }
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(true);
            };
            if want.results && rings.consumer.has_data() {
                return Ok(true);
            }
            if want.space && rings.has_space()? {
                return Ok(true);
            }
            if want.loan > 0 && !rings.producer.wait_for_loan(want.loan) {
                return Ok(true);
            }
            if want.handled {
                rings
                    .producer
                    .watch_releases()
                    .map_err(|found| corruption(&found))?;
                let asked = ends.asked || rings.producer.committed() > 0;
                return Ok(asked && rings.producer.in_flight() == 0);
            }
            Ok(false)
        })?
    }

    pub(super) fn awake(&self) -> bool {
        let slept = self.asleep.swap(false, Relaxed);
        if slept {
            self.link.asleep.fetch_sub(1, Relaxed);
            self.be_patient(false);
        }
        slept
    }

    fn in_flight(&self, py: Python<'_>) -> u32 {
        let count = |ends: &mut Ends| ends.rings.as_mut().map_or(0, |r| r.producer.in_flight());
        self.ends.with(py, count).unwrap_or(0)
    }

    /// Whether the worker got through more than half of what it had left when the nap began: a
    /// little longer, and it would have had nothing to do.
    pub(super) fn was_starved(&self, py: Python<'_>) -> bool {
        2 * self.in_flight(py) < self.left.load(Relaxed)
    }

    /// Whether what sleeps on this stream may be woken a little late.
    fn be_patient(&self, patient: bool) {
        if self.patient.swap(patient, Relaxed) != patient {
            match patient {
                true => self.link.patient.fetch_add(1, Relaxed),
                false => self.link.patient.fetch_sub(1, Relaxed),
            };
        }
    }

    pub(super) fn flush_results(&self, py: Python<'_>) {
        let wanted = self.ends.with(py, |ends| {
            ends.rings
                .as_mut()
                .is_some_and(|rings| rings.consumer.publish())
        });
        if wanted.unwrap_or(false) {
            self.link.end.notify(self.slot);
        }
    }

    /// The end was seen: the slot goes back. Gives what made the stream fail, if its worker did.
    pub(super) fn finish(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        let (rings, failure) = self.ends.with(py, |ends| {
            ends.progress_now();
            let rings = ends.rings.take();
            if let Some(rings) = &rings {
                ends.bytes = (rings.bytes_out, rings.bytes_in);
                ends.skipped = rings.producer.skipped();
            }
            ends.ended = true;
            (rings, ends.failure.take())
        })?;
        if let Some(rings) = rings {
            self.awake();
            drop(rings);
            if self.limited {
                self.link.end.end_limit();
            }
            if self.slow.swap(false, Relaxed) {
                self.link.slow.fetch_sub(1, Relaxed);
            }
            self.link.recycle(py, self.slot);
        }
        self.waits.wake(py);
        Ok(failure)
    }

    /// Nobody wants the results: drops them up to the end, so that the slot comes back.
    pub(super) fn drop_results(&self, py: Python<'_>) {
        let over = self.ends.wait_with(py, |ends| {
            let failed = ends.failure.is_some();
            let Some(rings) = ends.rings.as_mut() else {
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

    pub(super) fn fail(&self, py: Python<'_>, error: PyErr) {
        let _ = self.ends.with(py, |ends| ends.failure = Some(error));
        self.waits.wake(py);
    }
}

impl Sweep for ClientEnds {
    fn sweep(&self, py: Python<'_>) {
        self.flush_results(py);
    }
}

fn unpack_error(py: Python<'_>, packed: Py<PyAny>) -> PyErr {
    static UNPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let unpacked = UNPACK
        .import(py, "velo._remote", "unpack")
        .and_then(|f| f.call1((packed,)));
    unpacked.map_or_else(|error| error, PyErr::from_value)
}
