//! Streams with `recover="replay"`: their journal, and how they go from one worker to another.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use super::ClientLink;
use super::journal::{Death, Entry, Journal, Terms};
use super::ring_stream::{ClientEnds, Ends, Kept};
use crate::codec::{Codec, CopyMemory, codec};
use crate::errors;
use crate::process::control::Control;
use crate::user::channel::Offer;

impl Ends {
    /// Whether there is something to be done that no task of the user's waits for: events to send
    /// that found no room, or results that were taken from another worker.
    fn is_due(&mut self) -> PyResult<bool> {
        if self.has_ended() {
            return Ok(true);
        }
        let (Some(rings), Kept::All(journal)) = (&mut self.rings, &mut self.kept) else {
            return Ok(true);
        };
        Ok(journal.is_ours(rings) || journal.is_behind() && rings.has_space()?)
    }

    /// Whether another worker can take the stream over.
    fn may_recover(&self) -> bool {
        self.rings.is_some()
            && self.failure.is_none()
            && matches!(&self.kept, Kept::All(journal) if !journal.cancelled)
    }
}

impl ClientEnds {
    /// Offers an event to a stream with a journal; None if it has none.
    pub(super) fn offer_journal(
        &self,
        py: Python<'_>,
        codec: &Codec,
        event: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Offer>> {
        self.ends.with(py, |ends| {
            let (Kept::All(journal), rings) = (&mut ends.kept, &mut ends.rings) else {
                return Ok(None);
            };
            match journal.accept(rings.as_mut(), codec, event, &self.name)? {
                Entry::Full | Entry::Wait => Ok(Some(Offer::Full)),
                Entry::Accepted => {
                    if let Some(rings) = rings {
                        journal.push_to(rings)?;
                    }
                    Ok(Some(Offer::Sent))
                }
            }
        })?
    }

    /// Brings the worker up to date: sends what it has not been sent, drops what it yields again.
    pub(super) fn catch_up(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let waits = self.ends.with(py, |ends| -> PyResult<Option<bool>> {
                let (Some(rings), Kept::All(journal)) = (&mut ends.rings, &mut ends.kept) else {
                    return Ok(None);
                };
                if ends.ended || ends.failure.is_some() {
                    return Ok(Some(false));
                }
                journal.advance(rings, &self.name)?;
                journal.push_to(rings)?;
                if rings.producer.publish() | rings.consumer.publish() {
                    ends.place.notify();
                }
                Ok(Some(journal.is_behind() || journal.is_replaying()))
            })?;
            match waits {
                Ok(None) => return Ok(()),
                Ok(Some(false)) => break,
                Ok(Some(true)) if self.sleep_unless(py, false, false, Ends::is_due)? => break,
                Ok(Some(true)) => {}
                Err(error) => {
                    self.fail(py, error);
                    break;
                }
            }
        }
        self.after_look(py, false)
    }

    /// Tells whoever is to know of what a look at the journal has shown: senders, that there may be
    /// room; the worker, that a sender waits for a snapshot.
    pub(super) fn after_look(&self, py: Python<'_>, waits: bool) -> PyResult<()> {
        let (shorter, ask) = self.ends.with(py, |ends| match &mut ends.kept {
            Kept::All(journal) => {
                let ask = waits && journal.asks();
                let place = &ends.place;
                let ask = ask.then(|| (place.link.clone(), place.slot, place.number));
                (journal.told_senders(), ask)
            }
            _ => (false, None),
        })?;
        if shorter {
            self.waits.send.wake(py);
        }
        match ask {
            Some((link, slot, stream)) => link.tell(py, &Control::Snapshot { slot, stream }),
            None => Ok(()),
        }
    }

    /// The worker is gone, or is to be: has another one looked for. False: the stream cannot go on.
    ///
    /// `died` says how and where it died; None if it did not.
    pub(super) fn leaves_worker(
        self: &Arc<Self>,
        py: Python<'_>,
        died: Option<(&PyErr, Death)>,
    ) -> PyResult<bool> {
        let Some(recover) = &self.recover else {
            return Ok(false);
        };
        let poison = self.ends.wait_with(py, |ends| {
            if !ends.may_recover() || self.orphaned.load(Relaxed) {
                return None;
            }
            let (Some(rings), Kept::All(journal)) = (&mut ends.rings, &mut ends.kept) else {
                return None;
            };
            let asked = ends.asked;
            Some(died.and_then(|(_, death)| journal.blame(rings, asked, death)))
        })?;
        let Some(poison) = poison else {
            return Ok(false);
        };
        let recovery = Recovery {
            stream: self.clone(),
        };
        let error = died.map(|(error, _)| error.clone_ref(py).into_value(py));
        recover.call1(py, (recovery, error, poison))?;
        Ok(true)
    }
}

/// A stream on its way from one worker to another.
#[pyclass(frozen, module = "velo._core")]
pub struct Recovery {
    pub(super) stream: Arc<ClientEnds>,
}

impl Recovery {
    /// How the stream is kept, if another worker is still wanted for it.
    pub(super) fn terms(&self, py: Python<'_>) -> PyResult<Option<Terms>> {
        let terms = self.with_journal(py, |journal| journal.terms)?;
        Ok(self.wanted(py)?.then_some(terms))
    }

    fn with_journal<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Journal) -> R) -> PyResult<R> {
        self.stream
            .ends
            .wait_with(py, |ends| match &mut ends.kept {
                Kept::All(journal) => Ok(f(journal)),
                _ => Err(errors::velo("this stream has no journal")),
            })?
    }
}

#[pymethods]
impl Recovery {
    /// The name of the stream.
    #[getter]
    fn name(&self) -> &str {
        &self.stream.name
    }

    /// Whether the stream is still on this link, and could be taken from there.
    fn may_leave(&self, py: Python<'_>, link: &ClientLink) -> PyResult<bool> {
        let here = |ends: &mut Ends| {
            Arc::ptr_eq(&ends.place.link, &link.link) && !ends.ended && ends.may_recover()
        };
        let here = self.stream.ends.wait_with(py, here)?;
        Ok(here && !self.stream.orphaned.load(Relaxed))
    }

    /// Takes the stream from its worker, which forgets it if it lives.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let left = self.stream.ends.wait_with(py, |ends| {
            let left = ends.leave();
            if let Kept::All(journal) = &mut ends.kept {
                journal.homeless = true;
            }
            (ends.ended, ends.asked) = (false, false);
            left
        })?;
        if let Some((_, link, slot)) = &left
            && !link.dead.load(Relaxed)
        {
            link.tell(py, &Control::Cancel { slot: *slot })?;
        }
        self.stream.let_go(py, left);
        Ok(())
    }

    /// Whether another worker is still wanted.
    #[getter]
    fn wanted(&self, py: Python<'_>) -> PyResult<bool> {
        let homeless = self.with_journal(py, |journal| journal.homeless)?;
        Ok(homeless && !self.stream.orphaned.load(Relaxed))
    }

    /// An event, as the worker got it. None when it is not kept any more.
    fn event<'py>(&self, py: Python<'py>, number: u64) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(event) = self.with_journal(py, |journal| journal.event(number))? else {
            return Ok(None);
        };
        if event.is_empty() {
            return Ok(Some(py.None().into_bound(py)));
        }
        Ok(Some(codec(py)?.decode(py, &event, &mut CopyMemory)?))
    }

    /// No worker is given this event any more.
    fn leave_out(&self, py: Python<'_>, number: u64) -> PyResult<()> {
        self.with_journal(py, |journal| journal.leave_out(number))
    }

    /// No worker can be had: the stream fails. Results that a dead worker has left can be taken
    /// before, unless `begin` was called.
    fn fail(&self, py: Python<'_>, error: &Bound<'_, PyAny>) {
        self.stream.fail(py, PyErr::from_value(error.clone()));
    }
}
