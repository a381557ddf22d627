//! Streams with `full="drop_oldest"`: their backlog, and how it goes into the ring.

use pyo3::prelude::*;

use super::{RingStream, Store};
use crate::flow::Interest;

impl RingStream {
    /// See [`Channel::offer_newest`](crate::user::channel::Channel::offer_newest).
    pub(in crate::process::client) fn offer_newest(
        &self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let dropped =
            self.state
                .with(py, |state| match (&mut state.rings, &mut state.store) {
                    (Some(rings), Store::Backlog(backlog)) => backlog.push(rings, event),
                    _ => Ok(0),
                })??;
        self.flush_backlog(py)?;
        Ok(dropped)
    }

    /// Moves the backlog into the ring as far as there is room, and asks to be woken for the rest.
    /// True if nothing is left.
    pub(in crate::process::client) fn flush_backlog(&self, py: Python<'_>) -> PyResult<bool> {
        loop {
            let done = self.state.with(py, |state| -> PyResult<_> {
                let (Some(rings), Store::Backlog(backlog)) = (&mut state.rings, &mut state.store)
                else {
                    return Ok(true);
                };
                let done = backlog.flush(rings)?;
                if rings.producer.publish() {
                    state.at.notify();
                }
                Ok(done)
            })??;
            if done || self.may_sleep(py, Interest::SPACE)? {
                return Ok(done);
            }
            if self.state.with(py, |state| state.has_ended())? {
                return Ok(true); // the function takes no more events
            }
        }
    }
}
