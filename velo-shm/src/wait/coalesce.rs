//! How long a client looks away from workers that have enough to do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::ticks;

/// What takes less was no sleep: something had come already.
const NO_SLEEP: Duration = Duration::from_micros(20);
/// About what it costs to sleep and to be woken: less is no nap.
const SHORTEST: Duration = Duration::from_micros(100);
/// Results are late by as much.
const LONGEST: Duration = Duration::from_millis(1);
/// What a worker has left is handled for one part in so many during a nap.
const PART: u64 = 3;
/// The same where workers need the cores: each time it wakes up, the client takes one from them, and
/// has to wait for it.
const LONGEST_WHERE_CROWDED: Duration = Duration::from_millis(4);
const PART_WHERE_CROWDED: u64 = 4;
/// For fewer results it does not matter there who wakes the client. Elsewhere the worker gains by each
/// for which it does not have to.
const RESULTS_WHERE_CROWDED: u64 = 2;

/// For fewer events left it is not worth it to look away while spinning.
const MANY: u32 = 64;
/// Results are late by as much, where there is no sleep.
const AWAY: Duration = Duration::from_micros(40);
/// A worker that has not said for so long that it has handled anything is slow, or waits for a core,
/// maybe for this one.
const QUIET: Duration = Duration::from_micros(10);
/// Between two looks at how many are left.
const PAUSES: u32 = 32;

/// Spins without a look at results, until a worker has handled half of what it has `left`, or does not
/// get on, or something else has come, or for 40 microseconds. For those who move things in bulk and
/// would spin anyway.
///
/// Who is faster than the worker takes each result as soon as it is there: the cache lines go back and
/// forth for each, and the worker, which has to fetch them to write the next one, waits for that. How
/// much is handled it says only now and then, in a line of its own.
pub fn look_away(mut left: impl FnMut() -> u32, mut disturbed: impl FnMut() -> bool) {
    let many = left();
    if many < MANY {
        return;
    }
    let (away, quiet) = (ticks::from_duration(AWAY), ticks::from_duration(QUIET));
    let began = ticks::now();
    let mut heard = (many, began);
    while heard.0 > many / 2 && !disturbed() {
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
        let now = ticks::now();
        if now.saturating_sub(began) >= away || now.saturating_sub(heard.1) >= quiet {
            return;
        }
        let left = left();
        if left != heard.0 {
            heard = (left, now);
        }
    }
}

/// Learns how fast a worker is, and with it whether to nap, and for how long.
///
/// Waking the client for each result takes a worker's time, and where there are no more cores than
/// workers, its core. So who has filled a worker's queue may sleep by the clock instead, until the
/// worker has handled a part of what it had: it never runs dry, and several results are taken at once.
#[derive(Debug, Default)]
pub struct Naps {
    /// Nanoseconds for an event; 0 while unknown.
    pace: AtomicU64,
}

impl Naps {
    /// How long to nap while a worker has so many events left; `None` for not at all. `crowded` says
    /// that workers need the cores, and that there is more to send.
    pub fn next(&self, left: u64, crowded: bool) -> Option<Duration> {
        let pace = self.pace.load(Relaxed);
        let (longest, part, results) = match crowded {
            true => (
                LONGEST_WHERE_CROWDED,
                PART_WHERE_CROWDED,
                RESULTS_WHERE_CROWDED,
            ),
            false => (LONGEST, PART, 1),
        };
        let nap = Duration::from_nanos(pace.saturating_mul(left) / part).min(longest);
        let enough = Duration::from_nanos(pace.saturating_mul(results));
        (nap >= SHORTEST && nap >= enough).then_some(nap)
    }

    /// Learns from a sleep of whatever kind, in which so many events were handled. After a nap in which
    /// nothing was, the sleep goes on: such naps end by themselves, and a doorbell has to be armed.
    pub fn slept(&self, time: Duration, handled: u64) {
        if time < NO_SLEEP {
            return;
        }
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let before = self.pace.load(Relaxed);
        let pace = match (before, time.checked_div(handled)) {
            (_, None) => before.max(time),
            (_, Some(now)) if now < before / 4 || before == 0 => now, // something has changed
            (_, Some(now)) => before - before / 4 + now / 4,
        };
        self.pace.store(pace, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// Of a worker that takes so long for an event.
    fn naps(pace: Duration) -> Naps {
        let naps = Naps::default();
        naps.slept(pace * 1000, 1000);
        naps
    }

    #[test]
    fn the_first_sleep_ends_when_something_comes() {
        assert_eq!(Naps::default().next(256, true), None);
    }

    #[test]
    fn a_nap_leaves_the_worker_most_of_what_it_had() {
        let naps = naps(300 * MICRO);
        assert_eq!(naps.next(4, false), Some(400 * MICRO));
        assert_eq!(naps.next(6, false), Some(600 * MICRO));
        assert_eq!(naps.next(8, true), Some(600 * MICRO));
        assert_eq!(naps.next(4, true), None);
    }

    #[test]
    fn results_are_late_by_a_bounded_time() {
        let naps = naps(50 * MICRO);
        assert_eq!(naps.next(1000, false), Some(LONGEST));
        assert_eq!(naps.next(1000, true), Some(LONGEST_WHERE_CROWDED));
    }

    #[test]
    fn no_nap_for_less_than_a_result_or_for_a_fast_worker() {
        assert_eq!(naps(300 * MICRO).next(2, false), None);
        assert_eq!(naps(300 * MICRO).next(3, false), Some(300 * MICRO));
        assert_eq!(naps(300 * MICRO).next(4, true), None);
        assert_eq!(naps(600 * MICRO).next(256, false), Some(LONGEST));
        assert_eq!(
            naps(600 * MICRO).next(256, true),
            Some(LONGEST_WHERE_CROWDED)
        );
        assert_eq!(naps(1200 * MICRO).next(256, false), None);
        assert_eq!(naps(3000 * MICRO).next(256, true), None);
        assert_eq!(naps(MICRO / 5).next(256, true), None);
        assert_eq!(naps(300 * MICRO).next(0, true), None);
    }

    #[test]
    fn a_worker_that_slows_down_is_waited_for_and_one_that_speeds_up_is_found_out() {
        let naps = naps(50 * MICRO);
        naps.slept(20 * LONGEST, 0);
        assert_eq!(naps.next(256, true), None);
        naps.slept(150 * MICRO, 3);
        assert_eq!(naps.next(256, false), Some(LONGEST));
        naps.slept(LONGEST, 256_000);
        assert_eq!(naps.next(256, false), None);
    }

    #[test]
    fn a_worker_that_has_stopped_is_not_asked_again_and_again() {
        for (pace, left, crowded) in [(100, 4, false), (50, 256, false), (20, 1000, true)] {
            let naps = naps(pace * MICRO);
            let mut slept = Duration::ZERO;
            let mut count = 0;
            while let Some(nap) = naps.next(left, crowded) {
                slept += nap;
                naps.slept(slept, 0);
                count += 1;
                assert!(count < 6, "{slept:?}");
            }
            assert!(count > 0);
            assert_eq!(naps.next(u64::MAX, crowded), None);
        }
    }

    #[test]
    fn who_looks_away_looks_back_when_half_is_done() {
        let mut left = 256 + 16;
        let began = Instant::now();
        look_away(
            || {
                left -= 16;
                left
            },
            || false,
        );
        let took = began.elapsed();
        assert!(
            left == 128 || (left > 128 && took >= QUIET),
            "{left} {took:?}"
        );
    }

    #[test]
    fn who_looks_away_is_called_back() {
        let mut calls = 0;
        let began = Instant::now();
        look_away(
            || 256,
            || {
                calls += 1;
                calls == 2
            },
        );
        let took = began.elapsed();
        assert!(
            calls == 2 || (calls == 1 && took >= QUIET),
            "{calls} {took:?}"
        );
    }

    #[test]
    fn nobody_looks_away_from_a_few() {
        let mut looks = 0;
        look_away(
            || {
                looks += 1;
                MANY - 1
            },
            || panic!("there is no time for that"),
        );
        assert_eq!(looks, 1);
    }

    #[test]
    fn who_looks_away_looks_back_whether_the_worker_stands_still_or_is_never_half_done() {
        look_away(|| u32::MAX, || false);
        let mut left = u32::MAX;
        look_away(
            || {
                left -= 1;
                left
            },
            || false,
        );
        assert!(left > u32::MAX / 2);
    }

    #[test]
    fn a_sleep_that_never_was_says_nothing() {
        let naps = naps(50 * MICRO);
        naps.slept(MICRO, 200);
        assert_eq!(naps.next(256, false), Some(LONGEST));
    }
}
