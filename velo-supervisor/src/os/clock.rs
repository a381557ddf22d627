//! The supervisor's clock, which stops while its process stands still.

use std::cell::Cell;
use std::time::{Duration, Instant};

use velo_shm::standstill;

thread_local! {
    static LATEST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Now, without the time in which this process stood still while a limit ran. It never goes back.
pub(crate) fn now() -> Instant {
    let real = Instant::now();
    let now = real.checked_sub(standstill::total()).unwrap_or(real);
    let latest = LATEST.get().map_or(now, |latest| latest.max(now));
    LATEST.set(Some(latest));
    latest
}

/// For how long to sleep until `at`, by that clock.
pub(crate) fn until(at: Instant) -> Duration {
    at.saturating_duration_since(now())
}
