//! How long a client looks away from workers that have enough to do.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// The shortest nap, which is the least that asyncio's selectors wait for, and the longest.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST_IN_SHORTEST: u32 = 4;

/// Naps that turn out to be too long are left out for so many waits.
const WITHOUT: u32 = 1000;

/// Learns whether to nap, and for how long.
///
/// Waking up takes the core from a worker, whether there is one result or a hundred. So naps grow
/// while workers have most of what they had left when one began, and bring more than one result; for
/// a worker that takes longer than that for a result, they would only hold it up. They shrink when
/// workers run low, and are left out for a while where workers are done before one is over.
#[derive(Debug)]
pub struct Naps {
    /// In the shortest.
    length: AtomicU32,
    /// Waits for which none is tried.
    without: AtomicU32,
}

impl Default for Naps {
    fn default() -> Self {
        Naps {
            length: AtomicU32::new(1),
            without: AtomicU32::new(0),
        }
    }
}

/// What a nap came to, over the streams that were woken after it.
#[derive(Debug, Default)]
pub struct Tally {
    woken: u32,
    starved: u32,
    low: bool,
    handled: u32,
}

impl Tally {
    /// One stream had `before` events in flight when the nap began, and has `now`. None before: it is
    /// the end of bulk transfer, and the worker runs out of it whatever its pace.
    pub fn count(&mut self, before: u32, now: u32) {
        self.woken += 1;
        if before == 0 {
            return;
        }
        let handled = before.saturating_sub(now);
        self.handled = self.handled.saturating_add(handled);
        self.low |= handled > before / 4;
        self.starved += u32::from(handled > before / 2);
    }
}

impl Naps {
    /// How long to nap in this wait; `None` for not at all. Only where all that wait have more to send
    /// is it longer than the shortest.
    pub fn next(&self, sending: bool) -> Option<Duration> {
        let without = self.without.load(Relaxed);
        if without > 0 {
            self.without.store(without - 1, Relaxed);
            return None;
        }
        let length = if sending {
            self.length.load(Relaxed)
        } else {
            1
        };
        Some(SHORTEST * length)
    }

    /// Learns from one that is over.
    pub fn over(&self, tally: &Tally) {
        let length = self.length.load(Relaxed);
        if tally.woken > 0 && tally.starved == tally.woken {
            self.without.store(WITHOUT, Relaxed);
        }
        if tally.low {
            self.length.store((length / 2).max(1), Relaxed);
        } else if tally.handled > 1 {
            let longer = (2 * length).min(LONGEST_IN_SHORTEST);
            self.length.store(longer, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(naps: &Naps, streams: &[(u32, u32)]) -> Option<Duration> {
        let mut tally = Tally::default();
        for &(before, now) in streams {
            tally.count(before, now);
        }
        naps.over(&tally);
        naps.next(true)
    }

    #[test]
    fn naps_grow_to_a_bound_while_workers_have_enough_to_do() {
        let naps = Naps::default();
        assert_eq!(naps.next(true), Some(SHORTEST));
        assert_eq!(after(&naps, &[(256, 250)]), Some(2 * SHORTEST));
        for _ in 0..10 {
            after(&naps, &[(256, 240), (256, 250)]);
        }
        assert_eq!(naps.next(true), Some(LONGEST_IN_SHORTEST * SHORTEST));
    }

    #[test]
    fn one_result_a_nap_is_no_reason_for_longer_ones() {
        let naps = Naps::default();
        assert_eq!(after(&naps, &[(256, 255)]), Some(SHORTEST));
        assert_eq!(after(&naps, &[(256, 256)]), Some(SHORTEST));
        assert_eq!(after(&naps, &[]), Some(SHORTEST));
    }

    #[test]
    fn they_shrink_when_one_worker_runs_low() {
        let naps = Naps::default();
        after(&naps, &[(256, 250)]);
        assert_eq!(after(&naps, &[(256, 250)]), Some(4 * SHORTEST)); // the longest
        let low = [(256, 250), (256, 180)];
        assert_eq!(after(&naps, &low), Some(2 * SHORTEST));
        assert_eq!(after(&naps, &low), Some(SHORTEST));
        assert_eq!(after(&naps, &low), Some(SHORTEST));
    }

    #[test]
    fn they_are_left_out_where_all_are_done_sooner_and_tried_again() {
        let naps = Naps::default();
        assert_eq!(after(&naps, &[(256, 0), (256, 100)]), None);
        for _ in 0..WITHOUT - 1 {
            assert_eq!(naps.next(true), None);
        }
        assert_eq!(naps.next(true), Some(SHORTEST));
    }

    #[test]
    fn short_inputs_that_are_done_sooner_turn_naps_off() {
        let naps = Naps::default();
        assert_eq!(after(&naps, &[(3, 0)]), None);
    }

    #[test]
    fn the_end_of_bulk_transfer_says_nothing_of_the_worker() {
        let naps = Naps::default();
        assert_eq!(after(&naps, &[(0, 0), (0, 3)]), Some(SHORTEST));
    }

    #[test]
    fn who_waits_for_the_end_does_not_wait_long() {
        let naps = Naps::default();
        assert_eq!(after(&naps, &[(256, 250)]), Some(2 * SHORTEST));
        assert_eq!(naps.next(false), Some(SHORTEST));
        assert_eq!(naps.next(true), Some(2 * SHORTEST));
    }
}
