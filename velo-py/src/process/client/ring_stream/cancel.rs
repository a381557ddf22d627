//! Cancelling a stream from the client.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use super::{RingStream, Store};
use crate::errors;
use crate::flow::Cancel;
use crate::process::control::Control;

/// Cancels a stream's function in its worker.
pub struct CancelStream {
    stream: Weak<RingStream>,
}

impl CancelStream {
    /// What cancels this stream. It does not keep the stream alive.
    pub fn of(stream: &Arc<RingStream>) -> Self {
        CancelStream {
            stream: Arc::downgrade(stream),
        }
    }
}

impl Cancel for CancelStream {
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let Some(stream) = self.stream.upgrade() else {
            return Ok(());
        };
        let (open, unplaced, link, slot) = stream.state.with(py, |state| {
            let unplaced = match &mut state.store {
                Store::Journal(journal) => {
                    journal.cancelled = true;
                    journal.unplaced
                }
                _ => {
                    state.cancelled = true;
                    state.unstarted
                }
            };
            let open = state.rings.is_some() && state.failure.is_none();
            (open, unplaced, state.at.link.clone(), state.at.slot)
        })?;
        if unplaced {
            stream.fail_with(py, errors::closed("the stream function was cancelled"));
        }
        match open && !link.is_dead() {
            true if stream.detaches.load(Relaxed) => stream.detach(py).map(drop),
            true => link.send(py, &Control::Cancel { slot }),
            false => Ok(()),
        }
    }
}
