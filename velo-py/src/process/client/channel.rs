//! The user's half of a process-mode stream.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::cores_are_free;

use super::journal::hash_of;
use super::ring_stream::{ClientEnds, Ends, Kept};
use crate::codec::{Blank, codec};
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::process::control;
use crate::process::loan::{self, LEND_FROM};
use crate::process::ring_pair::{END, ERROR, ITEM, spin};
use crate::user::channel::{Offer, Take, Want};

/// The user's half of a process-mode stream.
pub struct RingChannel {
    pub(super) shared: Arc<ClientEnds>,
}

impl Drop for RingChannel {
    fn drop(&mut self) {
        destroy(|py| {
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
    pub fn take(&self, py: Python<'_>, private: bool) -> Result<Take, Thrown> {
        let codec = codec(py)?;
        let mut shorter = false;
        let taken = self.shared.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return match (ends.failure.take(), &ends.kept) {
                    (Some(error), _) => Err(Thrown::from(error)),
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
                    Err(error) => return Ok(Taken::Last(Some(error.into()))),
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
                    return Ok(Taken::Last(Some(error.into())));
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
                (ERROR, Ok(packed)) => Ok(Taken::Last(Some(unpack_error(py, packed).into()))),
                (ERROR, Err(error)) => Ok(Taken::Last(Some(error))),
                (other, _) => {
                    let what = format!("the worker sent a frame of unknown kind {other}");
                    Ok(Taken::Last(Some(errors::corrupted(what).into())))
                }
            }
        })??;
        if shorter {
            self.shared.after_look(py, false)?;
        }
        match taken {
            Taken::Take(take) => Ok(take),
            Taken::Last(error) => {
                let failure = self.shared.finish(py)?;
                error
                    .or(failure.map(Thrown::from))
                    .map_or(Ok(Take::Ended), Err)
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

    /// See [`Channel::show_latencies`].
    pub fn show_latencies(&self, py: Python<'_>, median: u64, p99: u64) -> PyResult<()> {
        self.look(py, |ends| {
            if let Some(rings) = &ends.rings {
                rings.producer.show_latencies(median, p99);
            }
        })
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
            if !cores_are_free() {
                return Ok(0);
            }
            let spun = ends.rings.as_mut().map(|rings| {
                let place = (&ends.place.link.end, ends.place.slot);
                spin(py, rings, place, want)
            });
            Ok(spun.unwrap_or(0))
        })
    }

    /// See [`Channel::detach`].
    pub fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared.detach(py)
    }

    /// See [`Channel::end_input`].
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        self.shared.detaches.store(false, Relaxed);
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
    Last(Option<Thrown>),
}

pub(super) fn unpack_error(py: Python<'_>, packed: Py<PyAny>) -> PyErr {
    static UNPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let unpacked = UNPACK
        .import(py, "velo._function.exceptions", "unpack")
        .and_then(|f| f.call1((packed,)));
    unpacked.map_or_else(|error| error, PyErr::from_value)
}
