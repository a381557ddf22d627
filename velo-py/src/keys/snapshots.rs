//! Snapshots of the `state` of a key, for the worker that takes the key over when this one dies, or for a
//! checkpoint, whose caller asks for each of them.
//!
//! They are made as those of a stream are (`process/worker/snapshot.rs`): when the function asks for its
//! next event, from time to time, and when the caller waits for one.

use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::ticks;

use super::key_state::KeyState;
use super::slot::{AT_WORK, DORMANT, WAITS, size};
use super::table::KeyTable;
use crate::codec::{EncodeError, Out, OwnMemory, VecOut, codec};
use crate::errors;
use crate::lane_frames::Name;
use crate::process::worker::due::cannot_travel;

/// When a snapshot that is wanted can be made.
enum Soon {
    Now,
    /// As soon as the function asks for its next event.
    Later,
    /// The function has returned after this number of events, and nothing of it is left.
    Anew(u32),
}

impl KeyTable {
    /// The `state` that the function of a key begins with: that of its last snapshot, if another
    /// worker ran it before.
    pub(super) fn begin_state<'py>(
        &self,
        py: Python<'py>,
        name: Name,
        saved: &[u8],
    ) -> PyResult<Bound<'py, PyDict>> {
        let state = match saved {
            [] => PyDict::new(py),
            saved => {
                let state = codec(py)?.decode(py, saved, &mut OwnMemory)?;
                let wrong = |_| errors::corrupted("a key goes on without the state that it had");
                state.cast_into::<PyDict>().map_err(wrong)?
            }
        };
        let kept = KeyState::new(state.clone().unbind());
        self.inner.with(py, |inner| {
            if inner.terms.recovers
                && let Some(slot) = inner.slot(name)
            {
                slot.state = Some(Box::new(kept));
            }
        })?;
        Ok(state)
    }

    /// The function of a key asks for an event: makes a snapshot if one is due.
    #[inline]
    pub(super) fn save_if_due(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        let due = self.inner.with(py, |inner| {
            let on_request = inner.terms.on_request;
            let slot = inner.slot(name)?;
            let at_work = slot.take(AT_WORK);
            if at_work {
                let bytes = size(slot.current);
                inner.handled(name.id, 1, bytes);
            }
            let slot = inner.slot(name)?;
            let taken = slot.taken;
            let kept = slot.state.as_deref_mut()?;
            if at_work {
                kept.passed += size(slot.current);
            }
            if let Some(failure) = kept.failure.take() {
                return Some(Err(failure));
            }
            let due = match on_request {
                true => kept.wanted,
                false => {
                    let due = kept.wanted || kept.due.is_due(kept.passed);
                    taken != kept.covered && due
                }
            };
            due.then_some(Ok(()))
        })?;
        match due {
            None => Ok(()),
            Some(Ok(())) => self.save(py, name),
            Some(Err(failure)) => Err(failure),
        }
    }

    /// The caller waits for a snapshot of a key: now, if its function waits for an event.
    pub fn save_soon(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        let now = self.inner.with(py, |inner| {
            let on_request = inner.terms.on_request;
            let Some(slot) = inner.slot(name) else {
                return Soon::Later;
            };
            if slot.has(DORMANT) {
                return Soon::Anew(slot.taken);
            }
            let asks = slot.has(WAITS) || slot.waits_elsewhere(py).is_some();
            let taken = slot.taken;
            let Some(kept) = slot.state.as_deref_mut() else {
                return Soon::Later;
            };
            kept.wanted = true;
            match asks && (on_request || taken != kept.covered) {
                true => Soon::Now,
                false => Soon::Later,
            }
        })?;
        if let Soon::Anew(taken) = now {
            self.save_anew(py, name, taken);
        }
        if matches!(now, Soon::Now)
            && let Err(error) = self.save(py, name)
        {
            // The function, which waits for its next event, gets the reason instead.
            self.inner.with(py, |inner| {
                if let Some(slot) = inner.slot(name) {
                    if let Some(kept) = &mut slot.state {
                        kept.failure = Some(error);
                    }
                    if let Some(wait) = slot.waits_elsewhere(py) {
                        wait.wake(py);
                    } else {
                        inner.queue(name.id);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// There is room again for snapshots that had none.
    pub(super) fn save_unsaved(&self, py: Python<'_>) -> PyResult<()> {
        let unsaved = self
            .inner
            .with(py, |inner| std::mem::take(&mut inner.unsaved))?;
        unsaved
            .into_iter()
            .try_for_each(|name| self.save_soon(py, name))
    }

    /// The function of a key is run anew: the events before that are not needed any more.
    pub(super) fn save_anew(&self, py: Python<'_>, name: Name, taken: u32) {
        if self.recovers.load(Relaxed) {
            let mut frame = name.bytes().to_vec();
            frame.extend_from_slice(&u64::from(taken).to_le_bytes());
            match self.outlet.saved(py, &frame) {
                Ok(true) => {}
                Ok(false) => {
                    let _ = self.inner.with(py, |inner| {
                        inner.blocked = true;
                        inner.unsaved.push(name);
                    });
                }
                Err(error) => error.write_unraisable(py, None),
            }
        }
    }

    #[cold]
    fn save(&self, py: Python<'_>, name: Name) -> PyResult<()> {
        let found = self.inner.with(py, |inner| {
            let slot = inner.slot(name)?;
            let kept = slot.state.as_ref()?;
            Some((kept.state.clone_ref(py), slot.taken))
        })?;
        let Some((state, taken)) = found else {
            return Ok(());
        };
        let began = ticks::now();
        let mut out = VecOut::default();
        out.put(&name.bytes()).map_err(EncodeError::from)?;
        out.put(&u64::from(taken).to_le_bytes())
            .map_err(EncodeError::from)?;
        let encoded = codec(py)?.encode(py, state.bind(py), &mut out);
        encoded.map_err(|error| cannot_travel(py, error.into()))?;
        let frame = out.into_vec();
        let sent = self.outlet.saved(py, &frame)?;
        self.inner.with(py, |inner| {
            if let Some(slot) = inner.slot(name)
                && let Some(kept) = &mut slot.state
            {
                kept.wanted = !sent;
                if sent {
                    kept.due.made(frame.len() as u64, began);
                    (kept.covered, kept.passed) = (taken, 0);
                }
            }
            if !sent {
                inner.blocked = true;
                inner.unsaved.push(name);
            }
        })?;
        Ok(())
    }
}
