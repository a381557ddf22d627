//! Bounds the time for which a task uses a stream before the other tasks of its event loop have their
//! turn. Without it a task whose stream is always ready, or worth spinning for, would never wait.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_shm::ticks;

/// After this long the other tasks of the loop have their turn.
const TURN: Duration = Duration::from_micros(500);
/// A turn of spinning is shorter by this factor: the function works meanwhile, but the other tasks of
/// the loop could work too.
const SPIN_COUNTS: u64 = 5;

/// The time of one task's turn. Atomics stand in for cells: only its own thread writes.
pub struct TurnBudget {
    /// In ticks; zero before the turn begins.
    began: AtomicU64,
    turn: u64,
}

impl Default for TurnBudget {
    fn default() -> Self {
        TurnBudget::new(ticks::from_duration(TURN))
    }
}

impl TurnBudget {
    /// A budget of this many ticks.
    fn new(turn: u64) -> Self {
        TurnBudget {
            began: AtomicU64::new(0),
            turn,
        }
    }

    /// Whether the turn has lasted long enough. If so, the next turn begins.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.is_over_at(ticks::now())
    }

    #[inline]
    fn is_over_at(&self, now: u64) -> bool {
        let began = self.began.load(Relaxed);
        if began == 0 {
            self.began.store(now, Relaxed);
            return false;
        }
        let over = now.saturating_sub(began) > self.turn;
        if over {
            self.ended();
        }
        over
    }

    /// The task waits, or lets other tasks run.
    #[inline]
    pub fn ended(&self) {
        self.began.store(0, Relaxed);
    }

    /// The task has spun for this many ticks.
    #[inline]
    pub fn spun(&self, spun: u64) {
        if spun > 0 {
            let began = self.began.load(Relaxed);
            let earlier = began.saturating_sub((SPIN_COUNTS - 1) * spun);
            self.began.store(earlier, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_over_after_its_span_and_the_next_one_begins() {
        let turn = TurnBudget::new(100);
        assert!(!turn.is_over_at(1_000), "it begins");
        assert!(!turn.is_over_at(1_100));
        assert!(turn.is_over_at(1_101));
        assert!(!turn.is_over_at(9_000), "the next one begins");
    }

    #[test]
    fn spinning_counts_several_times() {
        let turn = TurnBudget::new(100);
        assert!(!turn.is_over_at(1_000));
        turn.spun(20);
        assert!(
            !turn.is_over_at(1_020),
            "five times twenty are the whole turn"
        );
        assert!(turn.is_over_at(1_021));
    }

    #[test]
    fn waiting_ends_a_turn() {
        let turn = TurnBudget::new(100);
        assert!(!turn.is_over_at(1_000));
        turn.ended();
        assert!(!turn.is_over_at(5_000));
        assert!(turn.is_over_at(5_101));
    }
}
