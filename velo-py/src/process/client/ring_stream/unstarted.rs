//! A stream whose worker died before it opened the stream: it begins on another one, as if that had been
//! chosen in the first place.
//!
//! A worker opens a stream's slot before it loads the function, and marks the slot as held. So where the mark is
//! missing, nothing of the function ran there, and everything that was sent still lies in the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use super::{Recovery, RingStream, Store, StreamSlot, StreamState};
use crate::errors;
use crate::flow::Offer;
use crate::process::client::link::ClientLink;
use crate::process::ring_pair::RingPair;

/// The number of workers that may die before one opens the stream. More deaths are no coincidence.
const MOST_FALSE_STARTS: u32 = 5;

/// The data with which any worker opens the stream, and the call that finds another worker.
pub struct Origin {
    /// How many events may be accepted and not handled.
    pub buffer: u32,
    /// How large its rings may grow.
    pub max_bytes: u64,
    /// It keeps the newest events only.
    pub drops: bool,
    /// It has a journal.
    pub recovers: bool,
    /// It runs the function for many keys.
    pub lane: bool,
    /// The function and its settings, for `replace` of `ClientLink.fail`. None: it begins nowhere else.
    pub place: Option<Py<PyAny>>,
}

/// What a stream has left: its rings, and their link and slot.
type Left = Option<(RingPair, Arc<ClientLink>, u32)>;

impl StreamState {
    /// Whether its worker, which has died, had not opened it.
    fn was_never_opened(&mut self) -> bool {
        let (link, slot) = (&self.at.link, self.at.slot);
        let Some(rings) = &mut self.rings else {
            return false;
        };
        let touched = self.asked || self.ended || self.failure.is_some();
        !touched
            && !link.end.peer_holds(slot)
            && rings.producer.released() == 0
            && !rings.consumer.has_data()
    }
}

impl RingStream {
    /// Has Python look for another worker if the one that has died had not opened the stream. False: it had.
    pub(super) fn begins_elsewhere(
        self: &Arc<Self>,
        py: Python<'_>,
        error: &PyErr,
        replace: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        if self.origin.place.is_none() || self.origin.recovers || self.detaches.load(Relaxed) {
            return Ok(false);
        }
        let cancelled = |state: &mut StreamState| state.cancelled && state.was_never_opened();
        if self.state.wait_with(py, cancelled)? {
            self.fail_with(py, errors::closed("the stream function was cancelled"));
            return Ok(true);
        }
        let begins = self.state.wait_with(py, |state| {
            state.unstarted = state.was_never_opened()
                && state.false_starts < MOST_FALSE_STARTS
                && !self.orphaned.load(Relaxed);
            state.false_starts += u32::from(state.unstarted);
            state.unstarted
        })?;
        if begins {
            let stream = self.clone();
            replace.call1((Recovery { stream }, error.clone_ref(py).into_value(py)))?;
        }
        Ok(begins)
    }

    /// Puts the stream into a slot of another link, with what was sent so far. Gives what it had before, and
    /// whether everything could be moved.
    pub(in crate::process::client) fn move_unstarted(
        &self,
        py: Python<'_>,
        at: StreamSlot,
        mut rings: RingPair,
    ) -> PyResult<(Left, PyResult<()>)> {
        Ok(self.state.wait_with(py, |state| {
            let moved = match &mut state.rings {
                Some(old) => rings.resend(old),
                None => Ok(()),
            };
            if matches!(state.store, Store::Backlog(_))
                && let Some(old) = &state.rings
            {
                rings.producer.want_from(old.producer.wanted());
            }
            rings.producer.publish();
            let old = state.rings.replace(rings);
            let before = std::mem::replace(&mut state.at, at);
            state.unstarted = false;
            (old.map(|old| (old, before.link, before.slot)), moved)
        })?)
    }
}

impl RingPair {
    /// Sends the events again that were sent through a pair of rings which no worker has read.
    fn resend(&mut self, old: &mut RingPair) -> PyResult<()> {
        old.producer.publish();
        let mut unread = old.producer.unread();
        loop {
            let frame = unread
                .peek()
                .map_err(|found| errors::ring_corrupted(&found))?;
            let Some(frame) = frame else { break };
            let sent = match frame.lends {
                true => Offer::Full,
                false => self.push_bytes(frame.payload, &[], frame.kind, frame.counted)?,
            };
            if matches!(sent, Offer::Full) {
                return Err(errors::velo(
                    "arrays on loan lie in the memory of a worker that has died before it took them",
                ));
            }
            unread.release();
        }
        self.bytes_out = old.bytes_out;
        Ok(())
    }
}
