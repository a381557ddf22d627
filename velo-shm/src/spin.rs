//! How long it pays to look again before going to sleep.
//!
//! Sleeping and being woken takes tens of microseconds; whoever is answered within less gains by
//! spinning, and everyone else only burns a core. So the time is learned, per waiting place, from
//! whether the last spins found anything.

use std::time::Duration;

use crate::ticks;

/// What an unknown place is given.
const START: Duration = Duration::from_micros(20);
/// About what a sleep costs: more is never worth it.
const MOST: Duration = Duration::from_micros(50);
/// Below this a spin finds nothing that the look before it has not.
const LEAST: Duration = Duration::from_micros(2);
/// A place where spinning does not pay is tried again once in so many waits.
const PROBE_EVERY: u32 = 32;
/// The clock is looked at once in so many looks at what is waited for.
const LOOKS: u32 = 32;

/// Learns how long to spin in one place where something is waited for.
#[derive(Clone, Debug)]
pub struct Spin {
    /// Zero while spinning does not pay.
    limit: Duration,
    /// Waits since it stopped paying.
    skipped: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

impl Spin {
    /// Nothing learned yet.
    pub fn new() -> Self {
        Spin {
            limit: START,
            skipped: 0,
        }
    }

    /// How long to spin in this wait; `None` for not at all. Say [`found`](Self::found) afterwards
    /// if you do.
    pub fn budget(&mut self) -> Option<Duration> {
        if self.limit > Duration::ZERO {
            return Some(self.limit);
        }
        self.skipped += 1;
        if self.skipped < PROBE_EVERY {
            return None;
        }
        self.skipped = 0;
        Some(START)
    }

    /// What came of a spin.
    pub fn found(&mut self, something: bool) {
        self.limit = if something {
            (self.limit * 2).clamp(START, MOST)
        } else {
            Some(self.limit / 2)
                .filter(|&half| half >= LEAST)
                .unwrap_or(Duration::ZERO)
        };
    }

    /// Spins until `ready`, for as long as it pays; true if it became so. `ready` is looked at
    /// once in any case.
    pub fn spin(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if ready() {
            return true;
        }
        let Some(budget) = self.budget() else {
            return false;
        };
        self.spin_for(budget, ready)
    }

    /// Spins until `ready` for a budget that [`budget`](Self::budget) gave, and notes what came of
    /// it. For callers that have something to do before they spin.
    pub fn spin_for(&mut self, budget: Duration, mut ready: impl FnMut() -> bool) -> bool {
        let begin = ticks::now();
        let found = loop {
            if (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                ready()
            }) {
                break true;
            }
            if ticks::to_duration(ticks::now().saturating_sub(begin)) >= budget {
                break false;
            }
        };
        self.found(found);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_raises_the_limit_and_it_has_a_top() {
        let mut spin = Spin::new();
        assert_eq!(spin.budget(), Some(START));
        spin.found(true);
        assert_eq!(spin.budget(), Some(START * 2));
        spin.found(true);
        spin.found(true);
        assert_eq!(spin.budget(), Some(MOST));
    }

    #[test]
    fn finding_nothing_turns_it_off_but_for_a_probe() {
        let mut spin = Spin::new();
        let mut spins = 0;
        while spin.budget().is_some() {
            spin.found(false);
            spins += 1;
            assert!(spins < 10);
        }
        let waits = std::iter::repeat_with(|| spin.budget())
            .take_while(Option::is_none)
            .count();
        assert_eq!(waits as u32, PROBE_EVERY - 2);
        spin.found(true);
        assert_eq!(spin.budget(), Some(START));
    }

    #[test]
    fn a_probe_that_finds_nothing_leaves_it_off() {
        let mut spin = Spin {
            limit: Duration::ZERO,
            skipped: PROBE_EVERY - 1,
        };
        assert_eq!(spin.budget(), Some(START));
        spin.found(false);
        assert_eq!(spin.budget(), None);
    }

    #[test]
    fn a_spin_sees_what_happens_meanwhile_and_gives_up_in_time() {
        let mut spin = Spin::new();
        let mut looks = 0;
        assert!(spin.spin(|| {
            looks += 1;
            looks == 3
        }));
        assert!(!spin.spin(|| false));
    }
}
