//! Spinning without a look at the results, while a worker works off a batch.
//!
//! A client that polls faster than its worker bounces the ring's cache line once per result: the
//! worker has to fetch the line back to write the next one. So the client looks only at how much is
//! handled, which the worker writes now and then, to a line of its own.

use std::time::Duration;

use crate::ticks;

/// With fewer events left, backing off gains nothing.
const MANY: u32 = 64;
/// The most by which results are late.
const LONGEST: Duration = Duration::from_micros(40);
/// A worker that has handled nothing for this long is slow, or waits for a core: maybe for the one
/// that this thread spins on.
const QUIET: Duration = Duration::from_micros(10);
/// Between two looks at how many events are left.
const PAUSES: u32 = 32;

/// Decides when to look again. Pure: times are ticks that the caller has read.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    began: u64,
    /// Look again once no more than this many events are left.
    enough: u32,
    /// How many events were left when the worker last made progress, and when that was.
    progress: (u32, u64),
    bounds: Bounds,
}

/// The bounds of a back-off, in ticks.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    longest: u64,
    quiet: u64,
}

impl Backoff {
    /// `None` for too few events.
    fn begin(left: u32, now: u64, bounds: impl FnOnce() -> Bounds) -> Option<Self> {
        (left >= MANY).then(|| Backoff {
            began: now,
            enough: left / 2,
            progress: (left, now),
            bounds: bounds(),
        })
    }

    /// Whether to go on without a look at the results.
    fn goes_on(&mut self, left: u32, now: u64) -> bool {
        let since = |then| now.saturating_sub(then);
        if since(self.began) >= self.bounds.longest || since(self.progress.1) >= self.bounds.quiet {
            return false;
        }
        if left != self.progress.0 {
            self.progress = (left, now);
        }
        left > self.enough
    }
}

/// Spins without a look at results until the worker has handled half of what it has `left`, makes no
/// progress, or is `disturbed`; for 40 microseconds at most.
pub(super) fn back_off(mut left: impl FnMut() -> u32, mut disturbed: impl FnMut() -> bool) {
    let bounds = || Bounds {
        longest: ticks::from_duration(LONGEST),
        quiet: ticks::from_duration(QUIET),
    };
    let Some(mut backoff) = Backoff::begin(left(), ticks::now(), bounds) else {
        return;
    };
    while !disturbed() {
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
        if !backoff.goes_on(left(), ticks::now()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Bounds, MANY, back_off};

    const LONGEST: u64 = 4000;
    const QUIET: u64 = 1000;

    fn begin(left: u32) -> Option<Backoff> {
        let bounds = || Bounds {
            longest: LONGEST,
            quiet: QUIET,
        };
        Backoff::begin(left, 0, bounds)
    }

    #[test]
    fn a_few_events_are_not_worth_it() {
        assert!(begin(MANY - 1).is_none());
        back_off(|| MANY - 1, || panic!("there is no time for that"));
    }

    #[test]
    fn it_ends_when_half_is_handled() {
        let mut backoff = begin(256).unwrap();
        for left in (129..256).rev() {
            assert!(backoff.goes_on(left, 0), "{left}");
        }
        assert!(!backoff.goes_on(128, 0));
    }

    #[test]
    fn it_ends_when_the_worker_makes_no_progress() {
        let mut backoff = begin(256).unwrap();
        assert!(backoff.goes_on(255, QUIET - 1));
        assert!(backoff.goes_on(255, 2 * QUIET - 2));
        assert!(!backoff.goes_on(255, 2 * QUIET - 1));
    }

    #[test]
    fn it_ends_though_the_worker_is_never_half_done() {
        let mut backoff = begin(u32::MAX).unwrap();
        let looks = (1..).map(|look: u32| (u32::MAX - look, u64::from(look) * (QUIET - 1)));
        let looks = looks.take_while(|&(left, now)| backoff.goes_on(left, now));
        assert_eq!(looks.count(), 4);
    }

    #[test]
    fn it_ends_when_something_else_comes() {
        back_off(|| u32::MAX, || true);
    }

    #[test]
    fn it_ends_by_the_clock() {
        back_off(|| u32::MAX, || false);
    }
}
