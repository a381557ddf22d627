//! Snapshots of a function's `state`, for the worker that takes the stream over when this one dies.
//!
//! When a function asks for its next event, its state is complete. From time to time the worker encodes
//! it then, and sends it to the client behind the results so far. The cost of a snapshot is kept in
//! proportion to its gain: the events before it need not be kept, nor run again.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::ticks;

use super::due::{Due, RESULT, cannot_travel};
use crate::codec::{EncodeError, Out, VecOut, codec};
use crate::errors;
use crate::flow::Offer;
use crate::process::ring_pair::{RingPair, STATE};

/// The state of one stream's function.
pub struct Snapshots {
    state: Py<PyDict>,
    /// The client waits for one.
    wanted: bool,
    due: Due,
    /// Events handled when the last one was made, and a measure of what had gone through.
    handled: u64,
    passed: u64,
    /// A snapshot that found no room. It is valid until the function resumes.
    unsent: Option<Vec<u8>>,
}

impl Snapshots {
    /// Snapshots of `state`.
    pub fn of(state: Py<PyDict>) -> Self {
        Snapshots {
            state,
            wanted: false,
            due: Due::default(),
            handled: 0,
            passed: 0,
            unsent: None,
        }
    }

    /// The client waits for a snapshot.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// The function resumes: a snapshot that was not sent yet is outdated.
    #[inline]
    pub fn resumed(&mut self) {
        self.unsent = None;
    }

    /// The function has asked for an event: makes a snapshot if one is due.
    #[inline]
    pub fn asked(&mut self, py: Python<'_>, rings: &mut RingPair) -> PyResult<()> {
        match rings.consumer.released() > self.handled && self.is_due(rings) {
            true => self.save(py, rings),
            false => Ok(()),
        }
    }

    fn is_due(&self, rings: &RingPair) -> bool {
        self.wanted || self.due.is_due(passed(rings) - self.passed)
    }

    #[cold]
    fn save(&mut self, py: Python<'_>, rings: &mut RingPair) -> PyResult<()> {
        let began = ticks::now();
        let handled = rings.consumer.released();
        let mut out = VecOut::default();
        out.put(&handled.to_le_bytes()).map_err(EncodeError::from)?;
        let encoded = codec(py)?.encode(py, self.state.bind(py), &mut out);
        encoded.map_err(|error| cannot_travel(py, error.into()))?;
        let frame = out.into_vec();
        if !rings.producer.would_fit(frame.len()) {
            return Err(errors::too_large(format!(
                "the function's `state`: {}",
                rings.too_large(frame.len())
            )));
        }
        self.due.made(frame.len() as u64, began);
        (self.handled, self.passed) = (handled, passed(rings));
        self.unsent = Some(frame);
        self.send(rings)
    }

    /// Sends the snapshot that had no room.
    pub fn send(&mut self, rings: &mut RingPair) -> PyResult<()> {
        let Some(frame) = self.unsent.take() else {
            return Ok(());
        };
        match rings.push_bytes(&frame, &[], STATE, false)? {
            Offer::Sent => self.wanted = false,
            Offer::Full => {
                let _ = rings.has_space(); // asks to be told when there is room
                self.unsent = Some(frame);
            }
        }
        Ok(())
    }
}

/// By how many bytes the journal has grown since the stream began here.
fn passed(rings: &RingPair) -> u64 {
    rings.bytes_in + RESULT * rings.producer.committed()
}
