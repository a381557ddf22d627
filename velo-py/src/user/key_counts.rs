//! The counts of all keys of one caller, for metrics.

use pyo3::prelude::*;
use velo_shm::ticks;

use crate::cell::GilCell;
use crate::user::meter::Meter;

/// Counts that are shared with the function's statistics.
#[derive(Default)]
pub struct SharedCounts(pub GilCell<Shared>);

/// The last published counts.
#[derive(Default)]
pub struct Shared {
    pub counts: Counts,
    pub meter: Meter,
}

/// The counts of keys and events.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Keys that are open.
    pub live: u64,
    pub opened: u64,
    pub ended: u64,
    /// Keys that were forced out for others.
    pub evicted: u64,
    pub events: u64,
    pub results: u64,
    /// Events that functions have handled or handle now, as far as the workers have said.
    pub worked: u64,
    /// Events that were taken and are not known to wait: an estimate of `worked`, which exceeds it while
    /// keys run.
    pub taken: u64,
    /// All keys have ended, so that `worked` is exact.
    pub exact: bool,
    /// Events that were dropped before any function received them.
    pub dropped: u64,
    /// Events that were taken and not handled.
    pub pending: u64,
}

impl SharedCounts {
    /// The median and the 99th percentile of latency, in nanoseconds, when they are to be published again.
    pub fn unpublished(&self, py: Python<'_>) -> PyResult<Option<(u64, u64)>> {
        Ok(self.0.with(py, |shared| shared.meter.unpublished())?)
    }

    /// Publishes the counts.
    pub fn tell(&self, py: Python<'_>, counts: Counts) {
        let _ = self.0.with(py, |shared| {
            let (events, now) = (counts.events - shared.counts.events, ticks::now());
            if events > 0 {
                shared.meter.sent(events, now);
            }
            shared
                .meter
                .received(counts.results - shared.counts.results);
            let handled = counts.events.saturating_sub(counts.pending);
            shared.meter.observe(handled, 0, now);
            shared.counts = counts;
        });
    }
}
