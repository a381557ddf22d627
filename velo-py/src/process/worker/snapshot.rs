//! Snapshots of a function's `state`, for whoever takes the stream over when this worker dies.
//!
//! A function that asks for its next event has left its state as it should be. Now and then it is
//! encoded then, and goes to the client behind the results that came before. What it costs is kept in
//! proportion to what it saves: the events that need not be kept, and run, again.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::ticks;

use crate::codec::{EncodeError, Out, VecOut, codec};
use crate::errors;
use crate::process::ring_pair::{Rings, STATE};
use crate::user::channel::Offer;

/// A snapshot is due after so many bytes of events, and so many times its own size,
const LEAST_BYTES: u64 = 64 << 10;
const TIMES_SIZE: u64 = 4;
/// or after so long, and so many times what the last one took.
const LEAST_TIME: Duration = Duration::from_secs(1);
const TIMES_COST: u64 = 50;

/// What a result counts as, since its hash is kept.
const RESULT: u64 = 8;

/// The state of one stream's function.
pub struct Saving {
    state: Py<PyDict>,
    /// The client waits for one.
    wanted: bool,
    /// When the last one was made: events handled, a measure of what went through, and the time.
    handled: u64,
    passed: u64,
    at: u64,
    /// How large it was, and how long it took.
    size: u64,
    cost: u64,
    /// One that found no room. It holds until the function goes on.
    unsent: Option<Vec<u8>>,
}

impl Saving {
    /// Snapshots of `state`.
    pub fn of(state: Py<PyDict>) -> Self {
        Saving {
            state,
            wanted: false,
            handled: 0,
            passed: 0,
            at: ticks::now(),
            size: 0,
            cost: 0,
            unsent: None,
        }
    }

    /// The client waits for a snapshot.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// The function goes on: a snapshot that is on its way is not true any more.
    #[inline]
    pub fn goes_on(&mut self) {
        self.unsent = None;
    }

    /// The function has asked for an event: makes a snapshot if one is due.
    #[inline]
    pub fn asked(&mut self, py: Python<'_>, rings: &mut Rings) -> PyResult<()> {
        match rings.consumer.released() > self.handled && self.is_due(rings) {
            true => self.save(py, rings),
            false => Ok(()),
        }
    }

    fn is_due(&self, rings: &Rings) -> bool {
        let passed = passed(rings) - self.passed;
        let since = ticks::now().saturating_sub(self.at);
        self.wanted
            || passed > LEAST_BYTES.max(TIMES_SIZE * self.size)
            || since > ticks::from_duration(LEAST_TIME).max(TIMES_COST * self.cost)
    }

    #[cold]
    fn save(&mut self, py: Python<'_>, rings: &mut Rings) -> PyResult<()> {
        let began = ticks::now();
        let handled = rings.consumer.released();
        let mut out = VecOut::default();
        out.put(&handled.to_le_bytes()).map_err(EncodeError::from)?;
        let encoded = codec(py)?.encode(py, self.state.bind(py), &mut out);
        encoded.map_err(|error| unkept(py, error.into()))?;
        let frame = out.into_vec();
        if !rings.producer.would_fit(frame.len()) {
            return Err(errors::too_large(format!(
                "the function's `state`: {}",
                rings.too_large(frame.len())
            )));
        }
        self.size = frame.len() as u64;
        self.at = ticks::now();
        self.cost = self.at.saturating_sub(began);
        (self.handled, self.passed) = (handled, passed(rings));
        self.unsent = Some(frame);
        self.send(rings)
    }

    /// Sends the snapshot that had no room.
    pub fn send(&mut self, rings: &mut Rings) -> PyResult<()> {
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

/// What the journal has grown by since the stream began here.
fn passed(rings: &Rings) -> u64 {
    rings.bytes_in + RESULT * rings.producer.committed()
}

/// Says that what cannot travel is in the state.
fn unkept(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyTypeError>(py) {
        return error;
    }
    let what = format!("the function's `state` cannot be kept: {}", error.value(py));
    let unkept = PyTypeError::new_err(what);
    unkept.set_cause(py, Some(error));
    unkept
}
