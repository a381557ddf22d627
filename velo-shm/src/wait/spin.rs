//! How long it pays to look again before going to sleep.
//!
//! Sleeping and being woken takes tens of microseconds. A wait that is shorter gains by spinning; a
//! longer one only burns a core. So each place that waits learns whether its spins find anything. If
//! they do, it spins for about as long as a sleep would cost, which at worst doubles the cost of a
//! wait (Karlin, Li, Manasse and Owicki, "Empirical studies of competitive
//! spinning", 1991).

use std::time::Duration;

use super::backoff::back_off;
use crate::ticks;

/// The approximate cost of sleeping in an event loop and being woken.
const LONG: Duration = Duration::from_micros(100);
/// How sure a place can be that spinning pays. A spin that finds something makes it surer by
/// [`GAIN`], one that does not less sure by 1: one in three has to find something.
const SURE: u32 = 6;
const GAIN: u32 = 2;
/// A place where spinning does not pay tries again once in this many waits.
const PROBE_EVERY: u32 = 32;
/// An answer that takes longer may be waiting for the core that the spinning takes: systems wake a
/// process where its waker runs when the other cores seem no better. Then yielding brings it.
const YIELD_AFTER: Duration = Duration::from_micros(3);
const YIELD_EVERY: Duration = Duration::from_micros(10);
/// The number of checks between two looks at the clock.
const LOOKS: u32 = 32;

/// Learns whether to spin in one place that waits.
#[derive(Clone, Debug)]
pub struct Spin {
    /// Zero while spinning does not pay.
    confidence: u32,
    /// Waits since it stopped paying.
    skipped: u32,
    /// It never pays, whatever is found.
    never: bool,
}

/// A spin that was decided on; see [`Spin::plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a plan is to be run"]
pub struct SpinPlan {
    /// Bounds the spin.
    budget: Duration,
    /// Begins with a yield.
    yields: bool,
}

impl SpinPlan {
    /// For a batch, before [`Spin::run`]: spins without a look at results while the worker has many
    /// events `left` and nothing else has come (`disturbed`), so that it keeps its cache lines.
    pub fn back_off(&self, left: impl FnMut() -> u32, disturbed: impl FnMut() -> bool) {
        back_off(left, disturbed);
    }
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
            confidence: GAIN,
            skipped: 0,
            never: false,
        }
    }

    /// One that never spins: for measuring what spinning gives.
    pub fn never() -> Self {
        Spin {
            never: true,
            ..Self::new()
        }
    }

    /// Decides whether to spin in this wait; `None` to sleep. Run the plan that this gives.
    ///
    /// `may_share_core` says that the side that is waited for may have been woken on this very core
    /// ([`Link::may_share_core`](crate::Link::may_share_core)): the spin begins with a yield then. It
    /// is asked only if there is a spin, as asking takes the answer away.
    #[inline]
    pub fn plan(&mut self, may_share_core: impl FnOnce() -> bool) -> Option<SpinPlan> {
        let budget = self.budget()?;
        let yields = may_share_core();
        Some(SpinPlan { budget, yields })
    }

    /// How long to spin in this wait; `None` for not at all.
    fn budget(&mut self) -> Option<Duration> {
        if self.never {
            return None;
        }
        if self.confidence > 0 {
            return Some(LONG);
        }
        self.skipped += 1;
        if self.skipped < PROBE_EVERY {
            return None;
        }
        self.skipped = 0;
        Some(LONG)
    }

    /// Learns from a spin.
    fn found(&mut self, something: bool) {
        self.confidence = match something {
            true => (self.confidence + GAIN).min(SURE),
            false => self.confidence.saturating_sub(1),
        };
    }

    /// Spins until `ready`, for as long as was planned, and learns from it; true if it became ready.
    pub fn run(&mut self, plan: SpinPlan, mut ready: impl FnMut() -> bool) -> bool {
        let begin = ticks::now();
        let mut yield_after = YIELD_AFTER;
        if plan.yields {
            std::thread::yield_now();
            yield_after = YIELD_EVERY;
        }
        let found = loop {
            if (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                ready()
            }) {
                break true;
            }
            let spun = ticks::to_duration(ticks::now().saturating_sub(begin));
            if spun >= plan.budget {
                break false;
            }
            if spun >= yield_after {
                // The side that is waited for may have been woken on this very core.
                std::thread::yield_now();
                yield_after += YIELD_EVERY;
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
    fn one_in_three_is_enough_to_go_on() {
        let mut spin = Spin::new();
        for wait in 0..300 {
            assert_eq!(spin.budget(), Some(LONG), "wait {wait}");
            spin.found(wait % 3 == 0);
        }
    }

    #[test]
    fn finding_nothing_turns_it_off_but_for_a_probe() {
        let mut spin = Spin::new();
        for _ in 0..100 {
            spin.found(true);
        }
        for _ in 0..SURE {
            assert_eq!(spin.budget(), Some(LONG));
            spin.found(false);
        }
        let waits = std::iter::repeat_with(|| spin.budget())
            .take_while(Option::is_none)
            .count();
        assert_eq!(waits as u32, PROBE_EVERY - 1);
        spin.found(true);
        assert_eq!(spin.budget(), Some(LONG));
    }

    #[test]
    fn a_probe_that_finds_nothing_leaves_it_off() {
        let mut spin = Spin {
            confidence: 0,
            skipped: PROBE_EVERY - 1,
            ..Spin::new()
        };
        assert_eq!(spin.budget(), Some(LONG));
        spin.found(false);
        assert_eq!(spin.budget(), None);
    }

    #[test]
    fn one_that_never_spins_is_not_even_tried() {
        let mut spin = Spin::never();
        assert!((0..3 * PROBE_EVERY).all(|_| spin.budget().is_none()));
    }

    #[test]
    fn a_core_is_asked_after_only_for_a_spin() {
        let plan = Spin::new().plan(|| true);
        assert!(plan.is_some_and(|plan| plan.yields));
        let asked = || panic!("nothing spins");
        assert_eq!(Spin::never().plan(asked), None);
    }

    #[test]
    fn a_spin_sees_what_happens_meanwhile_and_gives_up_in_time() {
        let mut spin = Spin::new();
        let plan = spin.plan(|| false).expect("a first spin");
        let mut looks = 0;
        assert!(spin.run(plan, || {
            looks += 1;
            looks == 3
        }));
        assert!(!spin.run(plan, || false));
    }
}
