//! Whether to sleep by the clock while a worker works off a batch, and for how long.
//!
//! A worker that wakes its client for each result spends time on it, and, where there are no more
//! cores than workers, loses its core. A client that has filled a worker's queue therefore sleeps
//! until the worker has handled a part of it. The worker never runs dry, and one wake-up takes
//! several results.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A shorter wait was no sleep: a result had come already.
const NO_SLEEP: Duration = Duration::from_micros(20);
/// The approximate cost of sleeping and being woken: a shorter sleep gains nothing.
const SHORTEST: Duration = Duration::from_micros(100);

/// The bounds of a sleep, which depend on whether workers need the cores.
struct Bounds {
    /// The most by which results are late.
    longest: Duration,
    /// During a sleep the worker handles one part in this many of its queue.
    part: u64,
    /// How many results a sleep has to gather to be worth its while.
    results: u64,
}

/// Where a core is free, the worker gains by each result for which it need not wake its client.
const CORES_FREE: Bounds = Bounds {
    longest: Duration::from_millis(1),
    part: 3,
    results: 1,
};
/// Where workers need the cores, each wake-up of the client takes one from them, and the client has
/// to wait for it.
const OVERSUBSCRIBED: Bounds = Bounds {
    longest: Duration::from_millis(4),
    part: 4,
    results: 2,
};

/// The tasks that sleep on one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleepers {
    /// How many there are.
    pub count: usize,
    /// How many of them take results in batches, so that a late result harms none of them.
    pub batching: usize,
    /// How many of those have more to send. A task that has sent everything waits for the very end,
    /// and may have other work then.
    pub sending: usize,
    /// How many events the worker has left of what they sent.
    pub left: u64,
}

/// Learns how fast a worker is, and from that whether to sleep by the clock.
#[derive(Debug, Default)]
pub struct Coalesce {
    /// Nanoseconds for an event; 0 while unknown.
    pace: AtomicU64,
}

impl Coalesce {
    /// How long to sleep whatever comes; `None` to sleep until the doorbell rings. `cores_are_free`
    /// says that no worker needs the core of this process.
    pub fn sleep(&self, sleepers: Sleepers, cores_are_free: bool) -> Option<Duration> {
        if sleepers.batching < sleepers.count {
            return None;
        }
        let bounds = match cores_are_free || sleepers.sending < sleepers.count {
            true => CORES_FREE,
            false => OVERSUBSCRIBED,
        };
        let pace = self.pace.load(Relaxed);
        let sleep = pace.saturating_mul(sleepers.left) / bounds.part;
        let sleep = Duration::from_nanos(sleep).min(bounds.longest);
        let enough = Duration::from_nanos(pace.saturating_mul(bounds.results));
        (sleep >= SHORTEST && sleep >= enough).then_some(sleep)
    }

    /// Learns from a sleep of either kind, in which the worker handled `handled` events.
    ///
    /// A sleep by the clock in which the worker handled none goes on until the doorbell rings: such
    /// sleeps end by themselves, and a doorbell has to be armed.
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
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    /// As many events as fit a stream's buffer unless its user says otherwise.
    const BUFFER: u64 = 256;

    /// Of a worker that takes `pace` for an event.
    fn learned(pace: Duration) -> Coalesce {
        let coalesce = Coalesce::default();
        coalesce.slept(pace * 1000, 1000);
        coalesce
    }

    fn batching(left: u64) -> Sleepers {
        Sleepers {
            count: 1,
            batching: 1,
            sending: 1,
            left,
        }
    }

    impl Coalesce {
        fn free(&self, left: u64) -> Option<Duration> {
            self.sleep(batching(left), true)
        }

        fn oversubscribed(&self, left: u64) -> Option<Duration> {
            self.sleep(batching(left), false)
        }
    }

    #[test]
    fn a_first_sleep_ends_when_the_doorbell_rings() {
        assert_eq!(Coalesce::default().free(BUFFER), None);
        assert_eq!(Coalesce::default().oversubscribed(BUFFER), None);
    }

    #[test]
    fn a_batch_for_a_worker_with_nothing_left_is_never_slept_through() {
        for micros in [1, 50, 300, 1200, 5000] {
            let coalesce = learned(micros * MICRO);
            assert_eq!(coalesce.free(0), None, "{micros}");
            assert_eq!(coalesce.oversubscribed(0), None, "{micros}");
        }
    }

    #[test]
    fn a_bulk_transfer_to_a_fast_worker_never_sleeps_by_the_clock() {
        // A function that only echoes: the worker empties a full buffer in less time than a sleep
        // costs. The client sleeps on its doorbell a thousand times, and finds from one to all of its
        // events done each time.
        for nanos in [200, 500, 1000] {
            let coalesce = Coalesce::default();
            for sleep in 0..1000 {
                let handled = 1 + sleep * 37 % BUFFER;
                for left in [0, 1, BUFFER / 2, BUFFER] {
                    assert_eq!(coalesce.free(left), None, "{nanos} {sleep} {left}");
                    assert_eq!(
                        coalesce.oversubscribed(left),
                        None,
                        "{nanos} {sleep} {left}"
                    );
                }
                coalesce.slept(Duration::from_nanos(nanos * handled), handled);
            }
        }
    }

    #[test]
    fn a_bulk_transfer_to_a_worker_that_computes_sleeps_by_the_clock() {
        // With the buffer full, the worker has more than half of it left after every sleep.
        let coalesce = learned(100 * MICRO);
        let mut left = BUFFER;
        for _ in 0..100 {
            let sleep = coalesce.oversubscribed(left).expect("a sleep by the clock");
            let handled = u64::try_from(sleep.as_micros()).unwrap() / 100;
            assert!(handled < left / 2, "{handled} of {left}");
            coalesce.slept(sleep, handled);
            left = left - handled + handled / 2;
            left = if left < BUFFER / 2 { BUFFER } else { left };
        }
    }

    #[test]
    fn a_task_that_waits_for_each_result_is_woken_by_its_doorbell() {
        let coalesce = learned(300 * MICRO);
        let one_by_one = Sleepers {
            count: 2,
            batching: 1,
            ..batching(8)
        };
        assert_eq!(coalesce.sleep(one_by_one, true), None);
        assert_eq!(coalesce.sleep(one_by_one, false), None);
    }

    #[test]
    fn a_task_that_has_sent_everything_sleeps_no_longer_than_with_a_core_free() {
        let coalesce = learned(50 * MICRO);
        let done_sending = Sleepers {
            sending: 0,
            ..batching(1000)
        };
        assert_eq!(
            coalesce.sleep(done_sending, false),
            Some(CORES_FREE.longest)
        );
        assert_eq!(coalesce.oversubscribed(1000), Some(OVERSUBSCRIBED.longest));
    }

    #[test]
    fn a_sleep_leaves_the_worker_most_of_what_it_had() {
        let coalesce = learned(300 * MICRO);
        assert_eq!(coalesce.free(4), Some(400 * MICRO));
        assert_eq!(coalesce.free(6), Some(600 * MICRO));
        assert_eq!(coalesce.oversubscribed(8), Some(600 * MICRO));
        assert_eq!(coalesce.oversubscribed(4), None);
    }

    #[test]
    fn results_are_late_by_a_bounded_time() {
        let coalesce = learned(50 * MICRO);
        assert_eq!(coalesce.free(1000), Some(CORES_FREE.longest));
        assert_eq!(coalesce.oversubscribed(1000), Some(OVERSUBSCRIBED.longest));
    }

    #[test]
    fn a_sleep_gathers_at_least_a_result_or_two() {
        assert_eq!(learned(300 * MICRO).free(2), None);
        assert_eq!(learned(300 * MICRO).free(3), Some(300 * MICRO));
        assert_eq!(learned(300 * MICRO).oversubscribed(4), None);
        assert_eq!(learned(600 * MICRO).free(BUFFER), Some(CORES_FREE.longest));
        assert_eq!(
            learned(600 * MICRO).oversubscribed(BUFFER),
            Some(OVERSUBSCRIBED.longest)
        );
        assert_eq!(learned(1200 * MICRO).free(BUFFER), None);
        assert_eq!(learned(3000 * MICRO).oversubscribed(BUFFER), None);
    }

    #[test]
    fn a_worker_that_slows_down_is_waited_for_and_one_that_speeds_up_is_noticed() {
        let coalesce = learned(50 * MICRO);
        coalesce.slept(20 * CORES_FREE.longest, 0);
        assert_eq!(coalesce.oversubscribed(BUFFER), None);
        coalesce.slept(150 * MICRO, 3);
        assert_eq!(coalesce.free(BUFFER), Some(CORES_FREE.longest));
        coalesce.slept(CORES_FREE.longest, 256_000);
        assert_eq!(coalesce.free(BUFFER), None);
    }

    #[test]
    fn a_worker_that_has_stopped_is_left_to_the_doorbell_after_a_few_sleeps() {
        for (pace, left, cores_are_free) in [(100, 4, true), (50, BUFFER, true), (20, 1000, false)]
        {
            let coalesce = learned(pace * MICRO);
            let mut slept = Duration::ZERO;
            let mut count = 0;
            while let Some(sleep) = coalesce.sleep(batching(left), cores_are_free) {
                slept += sleep;
                coalesce.slept(slept, 0);
                count += 1;
                assert!(count < 6, "{slept:?}");
            }
            assert!(count > 0);
            assert_eq!(coalesce.sleep(batching(u64::MAX), cores_are_free), None);
        }
    }

    #[test]
    fn a_wait_that_ended_at_once_teaches_nothing() {
        let coalesce = learned(50 * MICRO);
        coalesce.slept(MICRO, 200);
        assert_eq!(coalesce.free(BUFFER), Some(CORES_FREE.longest));
    }
}
