//! How long a task goes on before the others of its event loop have their turn: what is always ready,
//! or worth spinning for, never waits by itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_shm::ticks;

/// After so long the other tasks of the loop have their turn.
const LONGEST: Duration = Duration::from_micros(500);
/// One that is only spent spinning is so many times shorter.
const SPIN_COUNTS: u64 = 5;

/// The time that a task takes for itself. Atomics stand in for cells: only its own thread writes.
pub struct Stint {
    /// In ticks; zero before it begins.
    began: AtomicU64,
    longest: u64,
}

impl Default for Stint {
    fn default() -> Self {
        Stint {
            began: AtomicU64::new(0),
            longest: ticks::from_duration(LONGEST),
        }
    }
}

impl Stint {
    /// Whether it has lasted for long enough. Then the next one begins.
    #[inline]
    pub fn is_over(&self) -> bool {
        let now = ticks::now();
        let began = self.began.load(Relaxed);
        if began == 0 {
            self.began.store(now, Relaxed);
            return false;
        }
        let over = now.saturating_sub(began) > self.longest;
        if over {
            self.ended();
        }
        over
    }

    /// The task waits, or gives others a turn.
    #[inline]
    pub fn ended(&self) {
        self.began.store(0, Relaxed);
    }

    /// So many ticks were spent spinning. They count several times: the function works meanwhile, but
    /// other tasks of the loop could have worked, too.
    #[inline]
    pub fn spun(&self, spun: u64) {
        if spun > 0 {
            let began = self.began.load(Relaxed);
            let earlier = began.saturating_sub((SPIN_COUNTS - 1) * spun);
            self.began.store(earlier, Relaxed);
        }
    }
}
