//! Streams with `recover="replay"`: their journal, and how they go from one worker to another.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use super::{RingStream, Store, StreamState};
use crate::codec::{Codec, CopyMemory, codec};
use crate::errors;
use crate::flow::Offer;
use crate::process::client::blame::{Death, Place};
use crate::process::client::journal::{Entry, Journal};
use crate::process::client::link::ClientLink;
use crate::process::control::Control;

impl StreamState {
    /// Whether there is something to be done that no task of the user's waits for: events to send
    /// that found no room, or results that were taken from another worker.
    fn is_due(&mut self) -> PyResult<bool> {
        if self.has_ended() {
            return Ok(true);
        }
        let (Some(rings), Store::Journal(journal)) = (&mut self.rings, &mut self.store) else {
            return Ok(true);
        };
        Ok(journal.is_ours(rings) || journal.is_behind() && rings.has_space()?)
    }

    /// Whether another worker can take the stream over.
    fn may_recover(&self) -> bool {
        self.rings.is_some()
            && self.failure.is_none()
            && matches!(&self.store, Store::Journal(journal) if !journal.cancelled)
    }
}

impl RingStream {
    /// Offers an event to a stream with a journal; None if it has none.
    pub(in crate::process::client) fn offer_journal(
        &self,
        py: Python<'_>,
        codec: &Codec,
        event: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Offer>> {
        self.state.with(py, |state| {
            let (Store::Journal(journal), rings) = (&mut state.store, &mut state.rings) else {
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

    /// Brings the worker up to date: sends it the events that it misses, drops results that it repeats.
    pub(in crate::process::client) fn catch_up(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let waits = self.state.with(py, |state| -> PyResult<Option<bool>> {
                let (Some(rings), Store::Journal(journal)) = (&mut state.rings, &mut state.store)
                else {
                    return Ok(None);
                };
                if state.ended || state.failure.is_some() {
                    return Ok(Some(false));
                }
                journal.advance(rings, &self.name)?;
                journal.push_to(rings)?;
                if rings.producer.publish() | rings.consumer.publish() {
                    state.at.notify();
                }
                Ok(Some(journal.is_behind() || journal.is_replaying()))
            })?;
            match waits {
                Ok(None) => return Ok(()),
                Ok(Some(false)) => break,
                Ok(Some(true)) if self.sleep_unless(py, false, false, StreamState::is_due)? => {
                    break;
                }
                Ok(Some(true)) => {}
                Err(error) => {
                    self.fail_with(py, error);
                    break;
                }
            }
        }
        self.after_look(py, false)
    }

    /// Acts on what a look at the journal has shown: wakes senders, for which there may be room; asks
    /// the worker for a snapshot, if a sender waits for one.
    pub(in crate::process::client) fn after_look(
        &self,
        py: Python<'_>,
        waits: bool,
    ) -> PyResult<()> {
        let (shorter, ask) = self.state.with(py, |state| match &mut state.store {
            Store::Journal(journal) => {
                let ask = waits && journal.asks();
                let place = &state.at;
                let ask = ask.then(|| (place.link.clone(), place.slot, place.number));
                (journal.told_senders(), ask)
            }
            _ => (false, None),
        })?;
        if shorter {
            self.waits.send.wake(py);
        }
        match ask {
            Some((link, slot, stream)) => link.send(py, &Control::Snapshot { slot, stream }),
            None => Ok(()),
        }
    }

    /// The stream leaves its worker: has Python look for another one. False: the stream cannot go on.
    ///
    /// `died` says how and where it died; None if it did not.
    pub(in crate::process::client) fn leaves_worker(
        self: &Arc<Self>,
        py: Python<'_>,
        died: Option<(&PyErr, Death)>,
    ) -> PyResult<bool> {
        let Some(recover) = &self.recover else {
            return Ok(false);
        };
        let poison = self.state.wait_with(py, |state| {
            if !state.may_recover() || self.orphaned.load(Relaxed) {
                return None;
            }
            let (Some(rings), Store::Journal(journal)) = (&mut state.rings, &mut state.store)
            else {
                return None;
            };
            let asked = state.asked;
            Some(died.and_then(|(_, death)| journal.blame(rings, asked, death)))
        })?;
        let Some(poison) = poison else {
            return Ok(false);
        };
        let recovery = Recovery {
            stream: self.clone(),
        };
        let error = died.map(|(error, _)| error.clone_ref(py).into_value(py));
        let poison = poison.map(|Place { event, at_work }| Poison { event, at_work });
        recover.call1(py, (recovery, error, poison))?;
        Ok(true)
    }
}

/// The event at which the function of a stream has ended too many workers.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct Poison {
    /// The number of the event; 0 before the first.
    event: u64,
    /// The function was at work on that event, and not past it.
    at_work: bool,
}

/// A stream on its way from one worker to another.
#[pyclass(frozen, module = "velo._core")]
pub struct Recovery {
    pub(in crate::process::client) stream: Arc<RingStream>,
}

impl Recovery {
    /// Whether the stream is still on this link, and another worker could take it over.
    pub(in crate::process::client) fn may_leave_link(
        &self,
        py: Python<'_>,
        link: &Arc<ClientLink>,
    ) -> PyResult<bool> {
        let here = |state: &mut StreamState| {
            Arc::ptr_eq(&state.at.link, link) && !state.ended && state.may_recover()
        };
        let here = self.stream.state.wait_with(py, here)?;
        Ok(here && !self.stream.orphaned.load(Relaxed))
    }

    fn with_journal<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Journal) -> R) -> PyResult<R> {
        self.stream
            .state
            .wait_with(py, |state| match &mut state.store {
                Store::Journal(journal) => Ok(f(journal)),
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

    /// Takes the stream from its worker, which forgets it if it lives.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let left = self.stream.state.wait_with(py, |state| {
            let left = state.leave();
            if let Store::Journal(journal) = &mut state.store {
                journal.unplaced = true;
            }
            (state.ended, state.asked) = (false, false);
            left
        })?;
        if let Some((_, link, slot)) = &left
            && !link.is_dead()
        {
            link.send(py, &Control::Cancel { slot: *slot })?;
        }
        self.stream.let_go(py, left);
        Ok(())
    }

    /// Whether another worker is still wanted.
    #[getter]
    pub(in crate::process::client) fn wanted(&self, py: Python<'_>) -> PyResult<bool> {
        let wanted = self
            .stream
            .state
            .wait_with(py, |state| match &state.store {
                Store::Journal(journal) => journal.unplaced,
                _ => state.unstarted,
            })?;
        Ok(wanted && !self.stream.orphaned.load(Relaxed))
    }

    /// The function and its settings, as `ClientLink.open` was given them.
    #[getter]
    fn origin(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let place = &self.stream.origin.place;
        place.as_ref().map(|place| place.clone_ref(py))
    }

    /// An event, as the worker got it. None when the journal does not keep it any more.
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
        self.stream.fail_with(py, PyErr::from_value(error.clone()));
    }
}
