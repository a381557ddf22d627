//! Noticing functions that hold up their event loop.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::{standstill, ticks};

/// A step that takes longer is worth a warning. A turn of many events is over long before.
const SLOW: Duration = Duration::from_millis(50);

/// When a slow step was last reported, in ticks.
static REPORTED: AtomicU64 = AtomicU64::new(0);

/// From how many ticks on a step is slow.
#[inline]
pub fn limit() -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| ticks::from_duration(SLOW))
}

/// Runs a step of the function `name`, and warns if it takes long. Gives how many ticks it took.
#[inline]
pub fn watched<R>(py: Python<'_>, name: &str, step: impl FnOnce() -> R) -> (R, u64) {
    let began = ticks::now();
    let result = step();
    let took = ticks::now().saturating_sub(began);
    if took > limit()
        && let Some(took) = without_standstill(took)
    {
        report(py, name, began, took);
    }
    (result, took)
}

/// How much of a step of so many ticks the process ran for; None if the step was not slow, but the process
/// stood still, as far as that is known.
#[cold]
pub fn without_standstill(took: u64) -> Option<u64> {
    let stood = standstill::within(ticks::to_duration(took));
    let ran = match stood.is_zero() {
        true => took,
        false => took.saturating_sub(ticks::from_duration(stood)),
    };
    (ran > limit()).then_some(ran)
}

/// Warns of a step that took this number of ticks.
#[cold]
pub fn report(py: Python<'_>, name: &str, began: u64, took: u64) {
    // A function that ran in this one's turn was slow: it has been named.
    if REPORTED.swap(ticks::now(), Relaxed) >= began {
        return;
    }
    static WARN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let seconds = ticks::to_duration(took).as_secs_f64();
    let warned = WARN
        .import(py, "velo._diagnostics.slow_steps", "warn")
        .and_then(|warn| warn.call1((name, seconds)));
    if let Err(error) = warned {
        error.write_unraisable(py, None); // a warning made an error must not end the stream
    }
}
