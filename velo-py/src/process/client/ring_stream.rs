//! What the client has of one process-mode stream: its rings, where it is, and who waits for it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use super::backlog::Backlog;
use super::journal::Journal;
use super::link::Link;
use crate::cell::GilCell;
use crate::process::control::Control;
use crate::process::ring_pair::{END, ERROR, Rings, Sweep, corruption};
use crate::user::channel::Want;
use crate::wait::Waits;

/// One stream's rings as the client has them, until its end was seen.
pub struct ClientEnds {
    pub(super) ends: GilCell<Ends>,
    pub(super) waits: Arc<Waits>,
    /// Looks for another worker when this one is gone; see `Recovery`. None: the stream fails.
    pub(super) recover: Option<Py<PyAny>>,
    /// A task sleeps on this stream.
    pub(super) asleep: AtomicBool,
    /// How often it was looked at since it fell asleep; see `look_again`.
    pub(super) looks: AtomicU32,
    /// What sleeps there moves things in bulk.
    pub(super) patient: AtomicBool,
    /// There is more to send as soon as there is room.
    pub(super) sending: AtomicBool,
    /// How many events the worker had left to handle when it fell asleep, if it is patient.
    pub(super) left: AtomicU32,
    /// The user has let go of the stream: its last results are dropped.
    pub(super) orphaned: AtomicBool,
    /// Seconds of `stall_timeout` and `event_timeout`, and bytes of `max_worker_memory`, which the
    /// supervisor keeps.
    pub(super) budgets: (Option<f64>, Option<f64>, Option<u64>),
    /// The function is kept, and outlives this stream, unless its input is ended.
    pub(super) detaches: AtomicBool,
    pub(super) this: Weak<dyn Sweep>,
    pub(super) name: String,
}

/// A stream that sleeps for long has its worker look at it every so many looks of this side.
const RARELY: u32 = 64;

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
        self.link.notify(self.slot);
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

    /// Whether it is this one, and not one that had the slot before or has it now.
    pub(super) fn is_number(&self, py: Python<'_>, number: u64) -> bool {
        let known = self.ends.with(py, |ends| ends.place.number);
        known.is_ok_and(|known| known == number)
    }

    /// Whether its function has a habit of holding others up.
    pub(super) fn is_slow(&self, py: Python<'_>) -> PyResult<bool> {
        let here = |ends: &mut Ends| (ends.place.link.clone(), ends.place.slot);
        let (link, slot) = self.ends.wait_with(py, here)?;
        Ok(link.slow.with(py, |slow| slow.has(slot))?)
    }

    /// See [`Channel::may_sleep`].
    pub(super) fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        let there = |ends: &mut Ends| ends.is_there(want, &self.name);
        let sleeps = self.sleep_unless(py, want.bulk, want.space, there);
        self.after_look(py, want.space)?;
        sleeps
    }

    /// Has the waits woken when the worker does something; false if what is wanted is there.
    pub(super) fn sleep_unless(
        &self,
        py: Python<'_>,
        patient: bool,
        sending: bool,
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
        self.be_patient(&link, patient, patient && sending);
        let left = if patient { self.in_flight(py) } else { 0 };
        self.leave(&link, left);
        if patient {
            link.falls_asleep();
        }
        if link.nap() {
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

    pub(super) fn awake(&self, link: &Link) {
        if self.asleep.swap(false, Relaxed) {
            self.looks.store(0, Relaxed);
            link.asleep.fetch_sub(1, Relaxed);
            self.be_patient(link, false, false);
            self.leave(link, 0);
        }
    }

    fn in_flight(&self, py: Python<'_>) -> u32 {
        let count = |ends: &mut Ends| ends.rings.as_mut().map_or(0, |r| r.producer.in_flight());
        self.ends.with(py, count).unwrap_or(0)
    }

    /// How many events the worker has handled since this fell asleep; None if it did not, or is not
    /// patient.
    pub(super) fn handled_asleep(&self, py: Python<'_>) -> Option<u64> {
        match self.left.load(Relaxed) {
            0 => None,
            left => Some(left.saturating_sub(self.in_flight(py)).into()),
        }
    }

    /// Notes how many events the worker has left.
    fn leave(&self, link: &Link, left: u32) {
        let before = self.left.swap(left, Relaxed);
        link.left.fetch_add(left.into(), Relaxed);
        link.left.fetch_sub(before.into(), Relaxed);
    }

    /// Whether what sleeps on this stream may be woken a little late, and whether it is to send more.
    fn be_patient(&self, link: &Link, patient: bool, sending: bool) {
        count(&self.patient, &link.patient, patient);
        count(&self.sending, &link.sending, sending);
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

    /// See [`Channel::detach`](crate::user::channel::Channel::detach).
    pub(super) fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.flush_backlog(py)? {
            return Ok(false);
        }
        let place = self.ends.with(py, |ends| {
            if let Some(rings) = &mut ends.rings {
                rings.producer.publish();
            }
            let place = &ends.place;
            (place.link.clone(), place.slot, place.number)
        })?;
        let (link, slot, stream) = place;
        if !link.dead.load(Relaxed) {
            link.tell(py, &Control::Detach { slot, stream })?;
        }
        Ok(true)
    }

    /// Whether somebody has to have an eye on its worker.
    pub(super) fn is_limited(&self) -> bool {
        self.budgets != (None, None, None)
    }

    /// Gives back what the stream had of its link.
    pub(super) fn let_go(&self, py: Python<'_>, left: Option<(Rings, Arc<Link>, u32)>) {
        if let Some((rings, link, slot)) = left {
            self.awake(&link);
            drop(rings);
            if self.is_limited() {
                link.end.end_limit();
            }
            let _ = link.slow.with(py, |slow| slow.forget(slot));
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

    /// The worker is dead, or cannot be believed any more: what it has sent is still received.
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
        if self.orphaned.load(Relaxed) {
            self.drop_results(py); // nobody else will
        }
    }

    /// Wakes who sleeps here if something has come, whatever the link says; true if the worker is to
    /// look as well, which has been noted. It always is while events wait for it, and otherwise less
    /// and less often, so that thousands of idle streams cost nothing.
    pub(super) fn look_again(&self, py: Python<'_>) -> bool {
        let seen = self.ends.with(py, |ends| {
            let before = ends.progress;
            let (sent, handled) = ends.progress_now();
            let news = match &mut ends.rings {
                Some(rings) => {
                    rings.restate();
                    rings.consumer.has_data() || before.1 != handled
                }
                None => true,
            };
            let looks = self.looks.fetch_add(1, Relaxed) + 1;
            let remind = sent != handled || looks.is_power_of_two() || looks.is_multiple_of(RARELY);
            if remind {
                ends.place.link.end.note(ends.place.slot);
            }
            (news, remind, ends.place.link.clone())
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

impl Sweep for ClientEnds {
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
