//! The user's half of a process-mode stream.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;
use velo_shm::cores_are_free;

use super::ring_stream::{RingStream, Store, StreamState};
use crate::codec::{ArraySpec, codec, hash_of};
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::flow::{Interest, Offer, Take};
use crate::process::control;
use crate::process::loan::{self, LEND_FROM};
use crate::process::ring_pair::{END, ERROR, ITEM, spin};

/// The user's half of a process-mode stream.
pub struct RingChannel {
    pub(super) shared: Arc<RingStream>,
}

impl RingChannel {
    /// The user's half of `stream`.
    pub fn new(stream: Arc<RingStream>) -> Self {
        RingChannel { shared: stream }
    }
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
    fn with<R>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut StreamState) -> PyResult<R>,
    ) -> PyResult<R> {
        self.shared.state.with(py, f)?
    }

    /// As `with`, for what may be asked from any thread.
    fn look<R>(&self, py: Python<'_>, f: impl FnOnce(&mut StreamState) -> R) -> PyResult<R> {
        Ok(self.shared.state.wait_with(py, f)?)
    }

    /// See [`Channel::offer`].
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        let codec = codec(py)?;
        let offer = self.with(py, |state| {
            if state.has_ended() {
                return Ok(Some(Offer::Full));
            }
            match (&state.store, state.rings.as_mut()) {
                (Store::None, Some(rings)) => rings.push(codec, event, ITEM, true).map(Some),
                (Store::Backlog(backlog), Some(rings)) if !backlog.waits() => {
                    rings.push(codec, event, ITEM, true).map(Some)
                }
                (Store::Journal(_), _) | (Store::Backlog(_), Some(_)) => Ok(None),
                (_, None) => Ok(Some(Offer::Full)),
            }
        })?;
        match offer {
            Some(offer) => Ok(offer),
            None => match self.shared.offer_journal(py, codec, event)? {
                Some(offer) => Ok(offer),
                // The events in the backlog go first.
                None if self.shared.flush_backlog(py)? => self.offer(py, event),
                None => Ok(Offer::Full),
            },
        }
    }

    /// See [`Channel::loan`].
    pub fn loan(&self, py: Python<'_>, spec: &ArraySpec) -> PyResult<Option<Py<PyAny>>> {
        // A journal keeps a copy in any case, which outlives the ring.
        let keeps = |state: &mut StreamState| {
            Ok(matches!(state.store, Store::Journal(_)) && !state.has_ended())
        };
        if self.with(py, keeps)? {
            return spec.alone(py).map(Some);
        }
        let loan = self.with(py, |state| match state.rings.as_mut() {
            Some(_) if state.ended || state.failure.is_some() => Ok(None),
            Some(_) if spec.len() < LEND_FROM => Ok(Some(None)),
            Some(rings) => Ok(rings.lend(spec.len())?.map(Some)),
            None => Ok(None),
        })?;
        match loan {
            Some(Some(loan)) => loan::array(py, loan, spec).map(Some),
            Some(None) => spec.alone(py).map(Some),
            None => Ok(None),
        }
    }

    /// See [`Channel::flush_events`].
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        let (told, behind) = self.with(py, |state| {
            if state.rings.as_mut().is_some_and(|r| r.producer.publish()) {
                state.at.notify();
            }
            let behind = matches!(&state.store, Store::Journal(journal) if journal.is_behind());
            // A function that has ended takes no more events.
            let told = state.at.link.end.is_ready(control::SLOT);
            Ok((told.then(|| state.at.link.clone()), behind))
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
        self.with(py, |state| {
            if state.has_ended() {
                return Ok(0);
            }
            match (&mut state.store, state.rings.as_mut()) {
                (Store::Journal(journal), rings) => {
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
        let taken = self.shared.state.with(py, |state| {
            let Some(rings) = state.rings.as_mut() else {
                return match (state.failure.take(), &state.store) {
                    (Some(error), _) => Err(Thrown::from(error)),
                    (None, Store::Journal(journal)) if journal.unplaced => {
                        Ok(Taken::Take(Take::Empty))
                    }
                    (None, _) => Ok(Taken::Take(Take::Ended)),
                };
            };
            let mut hash = 0;
            if let Store::Journal(journal) = &mut state.store {
                let there = journal.advance(rings, &self.shared.name);
                shorter = journal.became_shorter();
                match there {
                    Ok(true) => {}
                    Ok(false) if state.failure.is_some() => return Ok(Taken::Last(None)),
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
                Ok(None) if state.failure.is_some() => return Ok(Taken::Last(None)),
                Ok(None) => return Ok(Taken::Take(Take::Empty)),
                Err(corrupted) => return Ok(Taken::Last(Some(corrupted))),
            };
            let (kind, value) = (received.kind, received.value.map(Bound::unbind));
            rings.done(received.hold);
            if let Store::Journal(journal) = &mut state.store {
                if kind == ITEM {
                    journal.taken(hash);
                } else if journal.is_replaying() {
                    // The function has failed before it came as far as it did the first time.
                    let error = journal.diverges(&self.shared.name);
                    if let Ok(packed) = value {
                        error.set_cause(py, Some(errors::unpack(py, packed)));
                    }
                    return Ok(Taken::Last(Some(error.into())));
                }
                // A sender may wait for a shorter journal while this task receives. If the next frame
                // is wrong, the next call says so.
                if journal.is_waited_for() {
                    let _ = journal.advance(rings, &self.shared.name);
                    shorter = journal.became_shorter();
                }
            }
            match (kind, value) {
                (ITEM, Ok(value)) => Ok(Taken::Take(Take::Item(value))),
                (ITEM, Err(error)) => Err(error),
                (END, _) => Ok(Taken::Last(None)),
                (ERROR, Ok(packed)) => Ok(Taken::Last(Some(errors::unpack(py, packed).into()))),
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
        self.with(py, |state| Ok(state.is_over() || state.has_ended()))
    }

    /// See [`Channel::is_settled`].
    pub fn is_settled(&self, py: Python<'_>) -> PyResult<bool> {
        let link = self.shared.link(py)?;
        if link.end.is_ready(control::SLOT) {
            link.process_ready(py);
        }
        self.with(py, |state| {
            let (sent, handled) = state.progress_now();
            let settled = match (&state.store, state.rings.as_mut()) {
                (Store::Journal(journal), Some(rings)) => journal.is_settled(rings),
                (Store::Journal(journal), None) => !journal.unplaced,
                _ => sent == handled,
            };
            Ok(settled && (sent > 0 || state.asked || state.is_over()))
        })
    }

    /// See [`Channel::progress`].
    #[inline]
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, StreamState::progress_now)
    }

    /// See [`Channel::has_results`].
    pub fn has_results(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, |state| {
            let rings = state.rings.as_mut();
            rings.is_some_and(|rings| rings.consumer.has_data())
        })
    }

    /// See [`Channel::handled_at`].
    pub fn handled_at(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |state| {
            let rings = state.rings.as_ref();
            rings.map_or(state.handled_at, |rings| rings.producer.released_at())
        })
    }

    /// See [`Channel::publish_latencies`].
    pub fn publish_latencies(&self, py: Python<'_>, median: u64, p99: u64) -> PyResult<()> {
        self.look(py, |state| {
            if let Some(rings) = &state.rings {
                rings.producer.show_latencies(median, p99);
            }
        })
    }

    /// Publishes how many keys of a lane were ended for others.
    pub fn show_evicted(&self, py: Python<'_>, evicted: u32) -> PyResult<()> {
        self.look(py, |state| {
            if let Some(rings) = &state.rings {
                rings.producer.show_evicted(evicted);
            }
        })
    }

    /// See [`Channel::bytes`].
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |state| state.bytes_now())
    }

    /// See [`Channel::may_sleep`].
    pub fn may_sleep(&self, py: Python<'_>, interest: Interest) -> PyResult<bool> {
        self.shared.may_sleep(py, interest)
    }

    /// See [`Channel::offer_newest`].
    pub fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.shared.offer_newest(py, event)
    }

    /// See [`Channel::dropped`].
    pub fn dropped(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |state| {
            if let Some(rings) = &state.rings {
                state.skipped = rings.producer.skipped();
            }
            match &state.store {
                Store::None => (0, state.skipped),
                Store::Backlog(backlog) => (backlog.dropped, state.skipped),
                Store::Journal(journal) => (0, journal.left_out()),
            }
        })
    }

    /// See [`Channel::spin`].
    #[inline]
    pub fn spin(&self, py: Python<'_>, interest: Interest) -> PyResult<u64> {
        self.with(py, |state| {
            if !cores_are_free() {
                return Ok(0);
            }
            let spun = state.rings.as_mut().map(|rings| {
                let place = (&state.at.link.end, state.at.slot);
                spin(py, rings, place, interest)
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
        let offer = self.with(py, |state| match (&mut state.store, state.rings.as_mut()) {
            (Store::Journal(journal), rings) => {
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
