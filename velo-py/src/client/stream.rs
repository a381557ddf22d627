//! One process-mode stream, as its client has it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::backlog::Backlog;
use super::journal::{Journal, hash_of};
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
    pub(super) waits: Arc<Waits>,
    /// Looks for another worker when this one is gone; see `Recovery`. None: the stream fails.
    pub(super) recover: Option<Py<PyAny>>,
    /// A task sleeps on this stream.
    pub(super) asleep: AtomicBool,
    /// What sleeps there moves things in bulk.
    pub(super) patient: AtomicBool,
    /// How many events the worker had left to handle when a nap began.
    pub(super) left: AtomicU32,
    /// The user has let go of the stream: its last results are dropped.
    pub(super) orphaned: AtomicBool,
    /// Seconds of `stall_timeout` and `event_timeout`, which the supervisor keeps.
    pub(super) budgets: (Option<f64>, Option<f64>),
    pub(super) this: Weak<dyn Sweep>,
    pub(super) name: String,
}

/// Where a stream is.
pub struct Place {
    pub(super) link: Arc<Link>,
    pub(super) slot: u32,
    /// Tells it from other streams of the link, before and after it.
    pub(super) number: u64,
}

impl Place {
    /// Tells the worker to look at the stream.
    #[inline]
    pub(super) fn notify(&self) {
        self.link.end.notify(self.slot);
    }
}

/// What is kept beside the ring.
pub enum Kept {
    Nothing,
    /// For `full="drop_oldest"`.
    Newest(Backlog),
    /// For `recover="replay"`.
    All(Box<Journal>),
}

pub struct Ends {
    pub(super) place: Place,
    /// None once the end was seen, or the worker has died and everything was drained; and while a
    /// stream with a journal has no worker.
    pub(super) rings: Option<Rings>,
    /// The worker says that the function has ended; results may still be queued.
    pub(super) ended: bool,
    /// The worker says that the function has asked for its first event.
    pub(super) asked: bool,
    pub(super) failure: Option<PyErr>,
    pub(super) progress: (u64, u64),
    /// What went through rings that it does not have any more.
    pub(super) bytes: (u64, u64),
    pub(super) kept: Kept,
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
        let offer = self.with(py, |ends| {
            if ends.has_ended() {
                return Ok(Some(Offer::Full));
            }
            match (&ends.kept, ends.rings.as_mut()) {
                (Kept::Nothing, Some(rings)) => rings.push(codec, event, ITEM, true).map(Some),
                (Kept::Newest(backlog), Some(rings)) if !backlog.waits() => {
                    rings.push(codec, event, ITEM, true).map(Some)
                }
                (Kept::All(_), _) | (Kept::Newest(_), Some(_)) => Ok(None),
                (_, None) => Ok(Some(Offer::Full)),
            }
        })?;
        match offer {
            Some(offer) => Ok(offer),
            None => match self.shared.offer_journal(py, codec, event)? {
                Some(offer) => Ok(offer),
                // What was queued before goes first.
                None if self.shared.flush_backlog(py)? => self.offer(py, event),
                None => Ok(Offer::Full),
            },
        }
    }

    /// See [`Channel::loan`].
    pub fn loan(&self, py: Python<'_>, blank: &Blank) -> PyResult<Option<Py<PyAny>>> {
        // A journal keeps a copy in any case, which outlives the ring.
        let keeps = |ends: &mut Ends| Ok(matches!(ends.kept, Kept::All(_)) && !ends.has_ended());
        if self.with(py, keeps)? {
            return blank.alone(py).map(Some);
        }
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
        let (told, behind) = self.with(py, |ends| {
            if ends.rings.as_mut().is_some_and(|r| r.producer.publish()) {
                ends.place.notify();
            }
            let behind = matches!(&ends.kept, Kept::All(journal) if journal.is_behind());
            // A function that has ended takes no more events.
            let told = ends.place.link.end.is_ready(control::SLOT);
            Ok((told.then(|| ends.place.link.clone()), behind))
        })?;
        if let Some(link) = told {
            link.process_ready(py);
        }
        match behind {
            true => self.shared.catch_up(py),
            false => Ok(()),
        }
    }

    /// See [`Channel::free_events`].
    #[inline]
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        if !self.shared.flush_backlog(py)? {
            return Ok(0);
        }
        self.with(py, |ends| {
            if ends.has_ended() {
                return Ok(0);
            }
            match (&mut ends.kept, ends.rings.as_mut()) {
                (Kept::All(journal), rings) => {
                    journal.check_limit(&self.shared.name)?;
                    let room = journal.has_room();
                    Ok(if room {
                        journal.free(rings) as usize
                    } else {
                        0
                    })
                }
                (_, Some(rings)) => Ok(rings.producer.free_events() as usize),
                (_, None) => Ok(0),
            }
        })
    }

    /// See [`Channel::take`].
    #[inline]
    pub fn take(&self, py: Python<'_>, private: bool) -> PyResult<Take> {
        let codec = codec(py)?;
        let mut shorter = false;
        let taken = self.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return match (ends.failure.take(), &ends.kept) {
                    (Some(error), _) => Err(error),
                    (None, Kept::All(journal)) if journal.homeless => Ok(Taken::Take(Take::Empty)),
                    (None, _) => Ok(Taken::Take(Take::Ended)),
                };
            };
            let mut hash = 0;
            if let Kept::All(journal) = &mut ends.kept {
                let there = journal.advance(rings, &self.shared.name);
                shorter = journal.became_shorter();
                match there {
                    Ok(true) => {}
                    Ok(false) if ends.failure.is_some() => return Ok(Taken::Last(None)),
                    Ok(false) => return Ok(Taken::Take(Take::Empty)),
                    Err(error) => return Ok(Taken::Last(Some(error))),
                }
                hash = match rings.consumer.peek() {
                    Ok(Some(frame)) => hash_of(frame.payload),
                    _ => 0,
                };
            }
            let received = match rings.decode(py, codec, &self.shared.this, private) {
                Ok(Some(received)) => received,
                Ok(None) if ends.failure.is_some() => return Ok(Taken::Last(None)),
                Ok(None) => return Ok(Taken::Take(Take::Empty)),
                Err(corrupted) => return Ok(Taken::Last(Some(corrupted))),
            };
            let (kind, value) = (received.kind, received.value.map(Bound::unbind));
            rings.done(received.hold);
            if let Kept::All(journal) = &mut ends.kept {
                if kind == ITEM {
                    journal.taken(hash);
                } else if journal.is_replaying() {
                    // The function has failed before it came as far as it did the first time.
                    let error = journal.diverges(&self.shared.name);
                    if let Ok(packed) = value {
                        error.set_cause(py, Some(unpack_error(py, packed)));
                    }
                    return Ok(Taken::Last(Some(error)));
                }
                // Whoever waits for a shorter journal is not the one who looks here. What is wrong
                // with what comes next, the next look says.
                if journal.is_waited_for() {
                    let _ = journal.advance(rings, &self.shared.name);
                    shorter = journal.became_shorter();
                }
            }
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
        if shorter {
            self.shared.after_look(py, false)?;
        }
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
        let link = self.shared.link(py)?;
        if link.end.any_ready() {
            link.process_ready(py);
        }
        self.with(py, |ends| Ok(ends.is_over() || ends.has_ended()))
    }

    /// See [`Channel::is_settled`].
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        let link = self.shared.link(py)?;
        if link.end.is_ready(control::SLOT) {
            link.process_ready(py);
        }
        self.with(py, |ends| {
            let (sent, handled) = ends.progress_now();
            let settled = match (&ends.kept, ends.rings.as_mut()) {
                (Kept::All(journal), Some(rings)) => journal.is_settled(rings),
                (Kept::All(journal), None) => !journal.homeless,
                _ => sent == handled,
            };
            Ok(settled && (sent > 0 || ends.asked || ends.is_over()))
        })
    }

    /// See [`Channel::progress`].
    #[inline]
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, Ends::progress_now)
    }

    /// See [`Channel::bytes`].
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |ends| ends.bytes_now())
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
            if let Some(rings) = &ends.rings {
                ends.skipped = rings.producer.skipped();
            }
            match &ends.kept {
                Kept::Nothing => (0, ends.skipped),
                Kept::Newest(backlog) => (backlog.dropped, ends.skipped),
                Kept::All(journal) => (0, journal.left_out()),
            }
        })
    }

    /// See [`Channel::spin`].
    #[inline]
    pub fn spin(&self, py: Python<'_>, want: Want) -> PyResult<u64> {
        self.with(py, |ends| {
            if !ends.place.link.may_spin() {
                return Ok(0);
            }
            let spun = ends.rings.as_mut().map(|rings| {
                let place = (&*ends.place.link.end, ends.place.slot);
                spin(py, rings, place, want.space, want.handled)
            });
            Ok(spun.unwrap_or(0))
        })
    }

    /// See [`Channel::end_input`].
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        if !self.shared.flush_backlog(py)? {
            return Ok(Offer::Full);
        }
        let offer = self.with(py, |ends| match (&mut ends.kept, ends.rings.as_mut()) {
            (Kept::All(journal), rings) => {
                journal.end();
                rings.map_or(Ok(()), |rings| journal.push_to(rings))?;
                Ok(Offer::Sent)
            }
            (_, Some(rings)) => rings.push_bytes(&[], &[], END, false),
            (_, None) => Ok(Offer::Sent),
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

    /// Whether its last result was taken.
    pub(super) fn is_over(&self) -> bool {
        self.rings.is_none() && !matches!(&self.kept, Kept::All(journal) if journal.homeless)
    }

    pub(super) fn progress_now(&mut self) -> (u64, u64) {
        match (&mut self.kept, self.rings.as_mut()) {
            (Kept::All(journal), rings) => self.progress = journal.progress(rings),
            (Kept::Newest(backlog), Some(rings)) => {
                let sent = rings.producer.committed() + backlog.len();
                self.progress = (sent, rings.producer.released());
            }
            (Kept::Nothing, Some(rings)) => {
                self.progress = (rings.producer.committed(), rings.producer.released());
            }
            (_, None) => {}
        }
        self.progress
    }

    /// The number of the event that the worker calls the so-and-so-manieth; 0 if it has none.
    pub(super) fn begun(&self, event: u64) -> u64 {
        match (&self.kept, event) {
            (Kept::All(journal), 1..) => journal.begun(event),
            _ => event,
        }
    }

    pub(super) fn bytes_now(&self) -> (u64, u64) {
        let (out, back) = self.bytes;
        self.rings.as_ref().map_or((out, back), |rings| {
            (out + rings.bytes_out, back + rings.bytes_in)
        })
    }

    fn is_there(&mut self, want: Want, stream: &str) -> PyResult<bool> {
        let of_the_function = want.space || want.handled || want.loan > 0;
        if self.ended && of_the_function || self.failure.is_some() {
            return Ok(true);
        }
        let Some(rings) = self.rings.as_mut() else {
            return Ok(match &mut self.kept {
                Kept::All(journal) if journal.homeless => {
                    want.space && journal.free(None) > 0 && journal.has_room()
                }
                _ => true,
            });
        };
        if let Kept::All(journal) = &mut self.kept {
            let there = journal.is_there(rings, want, self.asked, stream);
            if rings.consumer.publish() {
                self.place.notify(); // it may wait for the room of what was dropped
            }
            return Ok(match there {
                Ok(there) => there,
                Err(error) => {
                    self.failure = Some(error);
                    true
                }
            });
        }
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
            let asked = self.asked || rings.producer.committed() > 0;
            return Ok(asked && rings.producer.in_flight() == 0);
        }
        Ok(false)
    }
}

impl Ends {
    /// Takes the stream from its link.
    pub(super) fn leave(&mut self) -> Option<(Rings, Arc<Link>, u32)> {
        self.progress_now();
        let rings = self.rings.take()?;
        self.bytes = (
            self.bytes.0 + rings.bytes_out,
            self.bytes.1 + rings.bytes_in,
        );
        self.skipped = rings.producer.skipped();
        Some((rings, self.place.link.clone(), self.place.slot))
    }
}

impl ClientEnds {
    /// Where the stream is at present.
    pub(super) fn link(&self, py: Python<'_>) -> PyResult<Arc<Link>> {
        Ok(self.ends.with(py, |ends| ends.place.link.clone())?)
    }

    /// See [`Channel::may_sleep`].
    pub(super) fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        // Only bulk transfer wants room, or everything handled, besides results.
        let patient = want.results && (want.space || want.handled);
        let sleeps = self.sleep_unless(py, patient, |ends| ends.is_there(want, &self.name));
        self.after_look(py, want.space)?;
        sleeps
    }

    /// Has the waits woken when the worker does something; false if what is wanted is there.
    pub(super) fn sleep_unless(
        &self,
        py: Python<'_>,
        patient: bool,
        there: impl Fn(&mut Ends) -> PyResult<bool>,
    ) -> PyResult<bool> {
        let look = |ends: &mut Ends| -> PyResult<_> {
            let there = there(ends)?;
            let homeless = matches!(&ends.kept, Kept::All(journal) if journal.homeless);
            Ok((there, homeless, ends.place.link.clone()))
        };
        let (is_there, homeless, link) = self.ends.with(py, look)??;
        if is_there || homeless {
            return Ok(!is_there); // whoever finds a new worker wakes the waits
        }
        if !self.asleep.swap(true, Relaxed) {
            link.asleep.fetch_add(1, Relaxed);
        }
        self.be_patient(&link, patient);
        if link.nap(py)? {
            self.left.store(self.in_flight(py), Relaxed);
            return Ok(true);
        }
        link.end.arm();
        if link.end.any_ready() {
            link.process_ready(py);
            link.rearm(py);
        }
        let is_there = self.ends.with(py, there)??;
        if is_there {
            self.awake(&link);
        }
        Ok(!is_there)
    }

    pub(super) fn awake(&self, link: &Link) -> bool {
        let slept = self.asleep.swap(false, Relaxed);
        if slept {
            link.asleep.fetch_sub(1, Relaxed);
            self.be_patient(link, false);
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
    fn be_patient(&self, link: &Link, patient: bool) {
        if self.patient.swap(patient, Relaxed) != patient {
            match patient {
                true => link.patient.fetch_add(1, Relaxed),
                false => link.patient.fetch_sub(1, Relaxed),
            };
        }
    }

    pub(super) fn flush_results(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| {
            if ends.rings.as_mut().is_some_and(|r| r.consumer.publish()) {
                ends.place.notify();
            }
        });
    }

    /// The end was seen: the slot goes back. Gives what made the stream fail, if its worker did.
    pub(super) fn finish(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        let (left, failure) = self.ends.with(py, |ends| {
            let left = ends.leave();
            ends.ended = true;
            if let Kept::All(journal) = &mut ends.kept {
                journal.close();
            }
            (left, ends.failure.take())
        })?;
        self.let_go(py, left);
        self.waits.wake(py);
        Ok(failure)
    }

    /// Whether somebody has to have an eye on its worker.
    pub(super) fn is_limited(&self) -> bool {
        self.budgets != (None, None)
    }

    /// Gives back what the stream had of its link.
    pub(super) fn let_go(&self, py: Python<'_>, left: Option<(Rings, Arc<Link>, u32)>) {
        if let Some((rings, link, slot)) = left {
            self.awake(&link);
            drop(rings);
            if self.is_limited() {
                link.end.end_limit();
            }
            link.recycle(py, slot);
        }
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
        let _ = self.ends.wait_with(py, |ends| {
            ends.failure = Some(error);
            if let Kept::All(journal) = &mut ends.kept
                && journal.homeless
            {
                ends.ended = true;
                journal.close();
            }
        });
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
