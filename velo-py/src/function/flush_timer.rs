//! How long the function's half of a stream may go on before it says which events it has handled,
//! and before it lets the other tasks of its event loop run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_shm::ticks;

/// A busy function says at least this often what it has handled. More often would make both sides
/// fight for the cache line. Results are shown at once: what comes next may take long.
const FLUSH_EVERY: Duration = Duration::from_micros(5);

/// After this long the other tasks of the loop have their turn.
const TURN: Duration = Duration::from_micros(500);

/// One stream's pace. Atomics stand in for cells: only its own thread writes.
pub struct Pace {
    flushed: AtomicU64,
    turn_began: AtomicU64,
    /// A result came since the last event, and the clock was looked at.
    looked: AtomicBool,
    flush_every: u64,
    turn: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            flushed: AtomicU64::new(0),
            turn_began: AtomicU64::new(0),
            looked: AtomicBool::new(false),
            flush_every: ticks::from_duration(FLUSH_EVERY),
            turn: ticks::from_duration(TURN),
        }
    }
}

impl Pace {
    /// Whether the function has gone on for long enough; begins the next turn.
    #[inline]
    pub fn turn_is_over(&self) -> bool {
        // The clock is read once per event, by what comes after it: that is good enough.
        let now = self.flushed.load(Relaxed);
        let began = self.turn_began.load(Relaxed);
        if began == 0 {
            self.turn_began.store(ticks::now(), Relaxed);
            return false;
        }
        let over = now > began && now - began > self.turn;
        if over {
            self.turn_ended();
        }
        over
    }

    /// The function waits: its next turn begins when it goes on.
    pub fn turn_ended(&self) {
        self.turn_began.store(0, Relaxed);
    }

    /// Whether it is time to show what was done, now that there is a result.
    #[inline]
    pub fn flush_is_due(&self) -> bool {
        self.looked.store(true, Relaxed);
        self.is_due()
    }

    /// Whether it is time to show what was done, now that there is an event. The clock is not read
    /// again for one that comes right after a result.
    #[inline]
    pub fn flush_is_due_at_event(&self) -> bool {
        let looked = self.looked.load(Relaxed);
        self.looked.store(false, Relaxed);
        !looked && self.is_due()
    }

    #[inline]
    fn is_due(&self) -> bool {
        let now = ticks::now();
        let due = now.wrapping_sub(self.flushed.load(Relaxed)) > self.flush_every;
        if due {
            self.flushed.store(now, Relaxed);
        }
        due
    }
}
