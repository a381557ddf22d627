//! Snapshots of a function's `state`, for the worker that takes the stream over when this one dies.
//!
//! When a function asks for its next event, its state is complete. From time to time the worker encodes
//! it then, and sends it to the client behind the results so far. The cost of a snapshot is kept in
//! proportion to its gain: the events before it need not be kept, nor run again.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::ticks;

use crate::codec::{EncodeError, Out, VecOut, codec};
use crate::errors;
use crate::flow::Offer;
use crate::process::ring_pair::{RingPair, STATE};

/// A snapshot is due after this many bytes of events, and this many times its own size,
const LEAST_BYTES: u64 = 64 << 10;
const TIMES_SIZE: u64 = 4;
/// or after this long, and this many times what the last one took.
const LEAST_TIME: Duration = Duration::from_secs(1);
const TIMES_COST: u64 = 50;

/// What a result counts as, since its hash is kept.
pub const RESULT: u64 = 8;

/// When the next snapshot of a state is due.
pub struct Due {
    /// When the last one was made, how large it was, and how long it took.
    at: u64,
    size: u64,
    cost: u64,
}

impl Default for Due {
    fn default() -> Self {
        Due {
            at: ticks::now(),
            size: 0,
            cost: 0,
        }
    }
}

impl Due {
    /// Whether one is due, after the journal has grown by so many bytes since the last one.
    #[inline]
    pub fn is_due(&self, passed: u64) -> bool {
        let since = ticks::now().saturating_sub(self.at);
        passed > LEAST_BYTES.max(TIMES_SIZE * self.size)
            || since > ticks::from_duration(LEAST_TIME).max(TIMES_COST * self.cost)
    }

    /// One of this size was made, which had been begun at this time, in ticks.
    pub fn made(&mut self, size: u64, began: u64) {
        self.at = ticks::now();
        self.size = size;
        self.cost = self.at.saturating_sub(began);
    }
}

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

/// Adds to an exception that the state holds the value which cannot travel.
pub fn cannot_travel(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyTypeError>(py) {
        return error;
    }
    let what = format!("the function's `state` cannot be kept: {}", error.value(py));
    let cannot_travel = PyTypeError::new_err(what);
    cannot_travel.set_cause(py, Some(error));
    cannot_travel
}
