//! Time in which this process stood still, for the time limits that Python enforces.

use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::standstill;

/// A time limit in seconds that runs until this is dropped.
#[pyclass(frozen, module = "velo._core")]
pub struct RunningLimit(#[allow(dead_code)] standstill::RunningLimit);

#[pymethods]
impl RunningLimit {
    #[new]
    fn new(seconds: f64) -> Self {
        RunningLimit(standstill::RunningLimit::new(duration(seconds)))
    }
}

/// For how many of the last `seconds` this process stood still, as far as a `RunningLimit` was there.
#[pyfunction]
pub fn stood_still(seconds: f64) -> f64 {
    standstill::within(duration(seconds)).as_secs_f64()
}

/// A limit that is too long for a clock is none.
fn duration(seconds: f64) -> Duration {
    match seconds > 0.0 {
        true => Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
        false => Duration::ZERO,
    }
}
