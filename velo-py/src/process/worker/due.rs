//! When a snapshot of a `state` is due, and what is said of one that cannot be made. For streams and for
//! keys.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use velo_shm::ticks;

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
