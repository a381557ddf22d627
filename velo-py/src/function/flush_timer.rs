//! When the function's half of a stream publishes which events it has handled, and when it lets the
//! other tasks of its event loop run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_shm::ticks;

/// A busy function publishes at least this often which events it has handled. More often would bounce
/// the cache line between both sides. Results are published at once, because the function may compute
/// for long after one.
const FLUSH_EVERY: Duration = Duration::from_micros(5);

/// After this long the other tasks of the loop have their turn.
const TURN: Duration = Duration::from_micros(500);

/// One stream's timer. Atomics stand in for cells: only its own thread writes.
pub struct FlushTimer {
    flushed: AtomicU64,
    turn_began: AtomicU64,
    /// The clock was read for a result since the last event.
    read: AtomicBool,
    flush_every: u64,
    turn: u64,
}

impl Default for FlushTimer {
    fn default() -> Self {
        FlushTimer::new(
            ticks::from_duration(FLUSH_EVERY),
            ticks::from_duration(TURN),
        )
    }
}

impl FlushTimer {
    /// A timer of these spans, in ticks.
    fn new(flush_every: u64, turn: u64) -> Self {
        FlushTimer {
            flushed: AtomicU64::new(0),
            turn_began: AtomicU64::new(0),
            read: AtomicBool::new(false),
            flush_every,
            turn,
        }
    }

    /// Whether the other tasks are to have their turn. The function's next turn begins then.
    #[inline]
    pub fn turn_is_over(&self) -> bool {
        self.turn_is_over_by(ticks::now)
    }

    /// As `turn_is_over`, by this clock. It is read at the beginning of a turn. After that the time of
    /// the last flush is near enough: something reads the clock for each event.
    #[inline]
    fn turn_is_over_by(&self, now: impl FnOnce() -> u64) -> bool {
        let flushed = self.flushed.load(Relaxed);
        let began = self.turn_began.load(Relaxed);
        if began == 0 {
            self.turn_began.store(now(), Relaxed);
            return false;
        }
        let over = flushed > began && flushed - began > self.turn;
        if over {
            self.turn_ended();
        }
        over
    }

    /// The function waits: its next turn begins when it resumes.
    pub fn turn_ended(&self) {
        self.turn_began.store(0, Relaxed);
    }

    /// Whether a flush is due, now that there is a result.
    #[inline]
    pub fn flush_is_due(&self) -> bool {
        self.read.store(true, Relaxed);
        self.is_due(ticks::now())
    }

    /// Whether a flush is due, now that there is an event. The clock is not read again for an event that
    /// comes right after a result.
    #[inline]
    pub fn flush_is_due_at_event(&self) -> bool {
        self.flush_is_due_at_event_by(ticks::now)
    }

    #[inline]
    fn flush_is_due_at_event_by(&self, now: impl FnOnce() -> u64) -> bool {
        let read = self.read.load(Relaxed);
        self.read.store(false, Relaxed);
        !read && self.is_due(now())
    }

    #[inline]
    fn is_due(&self, now: u64) -> bool {
        let due = now.wrapping_sub(self.flushed.load(Relaxed)) > self.flush_every;
        if due {
            self.flushed.store(now, Relaxed);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_due_after_its_span_and_not_before() {
        let timer = FlushTimer::new(10, 100);
        assert!(timer.is_due(1_000), "nothing was flushed yet");
        assert!(!timer.is_due(1_010));
        assert!(timer.is_due(1_011));
        assert!(!timer.is_due(1_021), "counted from the last flush");
    }

    #[test]
    fn an_event_right_after_a_result_does_not_read_the_clock() {
        let timer = FlushTimer::new(10, 100);
        timer.read.store(true, Relaxed);
        assert!(!timer.flush_is_due_at_event_by(|| unreachable!("the clock was read")));
        assert!(
            timer.flush_is_due_at_event_by(|| 1_000),
            "the next event reads it"
        );
    }

    #[test]
    fn a_turn_is_over_once_flushes_have_gone_on_for_longer() {
        let timer = FlushTimer::new(10, 100);
        assert!(!timer.turn_is_over_by(|| 1_000), "it begins");
        assert!(timer.is_due(1_100));
        assert!(!timer.turn_is_over_by(|| unreachable!("the clock was read")));
        assert!(timer.is_due(1_111));
        assert!(timer.turn_is_over_by(|| unreachable!("the clock was read")));
        assert!(!timer.turn_is_over_by(|| 2_000), "the next one begins");
    }

    #[test]
    fn waiting_begins_a_new_turn() {
        let timer = FlushTimer::new(10, 100);
        assert!(!timer.turn_is_over_by(|| 1_000));
        timer.turn_ended();
        assert!(timer.is_due(5_000));
        assert!(!timer.turn_is_over_by(|| 5_000));
    }
}
