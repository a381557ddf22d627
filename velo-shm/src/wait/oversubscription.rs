//! Whether more threads want to run than this process has cores: the one estimate of it.
//!
//! A side that spins for what comes next answers a sleep's worth of time sooner, on a core that is
//! free. On a core that another side needs, it only delays that side. The client alone sees all its
//! workers, so it estimates for all of them:
//!
//! - The client itself may spin while fewer workers have streams than there are cores
//!   ([`cores_are_free`]).
//! - Workers may spin unless more of them were awake a moment ago than there are cores beside the
//!   client's. The client looks each time it wakes one ([`woke_worker`]), and says so on each link
//!   ([`Link::is_oversubscribed`]).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cpu::cores;
use crate::link::{Link, WeakLink};
use crate::ticks;

/// How long an oversubscription reading stays valid.
const LASTS: Duration = Duration::from_millis(2);

/// Decides from counts and ticks whether workers are oversubscribed.
#[derive(Debug)]
struct Estimate {
    /// When more sides were last awake than there are cores, in ticks; none while there are not.
    seen: Option<u64>,
}

impl Estimate {
    /// Takes a reading of how many workers are awake; true if there are too many, or were less than
    /// `lasts` ticks ago.
    fn read(&mut self, awake: usize, cores: usize, now: u64, lasts: u64) -> bool {
        // A worker that was just woken may be done already, where it was given the only core at once.
        let client_and_workers = awake.max(1) + 1;
        if client_and_workers > cores {
            self.seen = Some(now);
        } else if let Some(seen) = self.seen
            && now.saturating_sub(seen) > lasts
        {
            self.seen = None;
        }
        self.seen.is_some()
    }
}

#[derive(Debug)]
struct Links {
    all: Vec<WeakLink>,
    estimate: Estimate,
}

static LINKS: Mutex<Links> = Mutex::new(Links {
    all: Vec::new(),
    estimate: Estimate { seen: None },
});
/// How many links there are, dead ones included until the next reading.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// How many of them have open streams: about as many workers may be busy.
static BUSY: AtomicUsize = AtomicUsize::new(0);

fn lock() -> MutexGuard<'static, Links> {
    // Each change is one call, so a panic leaves nothing half-changed.
    LINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process may spin without taking a core from a worker that could use it.
#[inline]
pub fn cores_are_free() -> bool {
    BUSY.load(Relaxed) < cores()
}

/// The client has woken a worker: takes a reading if there may be too many awake.
#[inline]
pub fn woke_worker() {
    if COUNT.load(Relaxed) >= cores() {
        read();
    }
}

#[cold]
fn read() {
    let mut links = lock();
    links.all.retain(WeakLink::is_alive);
    COUNT.store(links.all.len(), Relaxed);
    let alive: Vec<Link> = links.all.iter().filter_map(WeakLink::upgrade).collect();
    let awake = alive.iter().filter(|link| !link.worker_sleeps()).count();
    let oversubscribed = {
        let lasts = ticks::from_duration(LASTS);
        links.estimate.read(awake, cores(), ticks::now(), lasts)
    };
    for link in alive {
        link.set_oversubscribed(oversubscribed);
    }
}

/// A client's link, as the estimate counts it.
#[derive(Debug)]
pub struct LinkLoad {
    busy: AtomicBool,
}

impl LinkLoad {
    /// Counts a fresh link of this process, which has no streams yet.
    pub fn new(link: &Link) -> Self {
        let mut links = lock();
        links.all.retain(WeakLink::is_alive);
        links.all.push(link.downgrade());
        COUNT.store(links.all.len(), Relaxed);
        // On one core a worker that spins never sleeps, and so is never woken.
        link.set_oversubscribed(cores() == 1);
        LinkLoad {
            busy: AtomicBool::new(false),
        }
    }

    /// Says whether streams are open on the link.
    pub fn set_busy(&self, busy: bool) {
        if self.busy.swap(busy, Relaxed) != busy {
            match busy {
                true => BUSY.fetch_add(1, Relaxed),
                false => BUSY.fetch_sub(1, Relaxed),
            };
        }
    }
}

impl Drop for LinkLoad {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

#[cfg(test)]
mod tests {
    use super::Estimate;

    const LASTS: u64 = 1000;

    impl Estimate {
        fn reads(&mut self, awake: usize, cores: usize, now: u64) -> bool {
            self.read(awake, cores, now, LASTS)
        }
    }

    #[test]
    fn workers_may_spin_while_each_side_has_a_core() {
        let mut estimate = Estimate { seen: None };
        assert!(!estimate.reads(3, 4, 0), "three workers and the client");
        assert!(estimate.reads(4, 4, 0));
    }

    #[test]
    fn one_core_is_always_too_few() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.reads(1, 1, 0));
        assert!(estimate.reads(0, 1, 0), "the woken worker is done already");
    }

    #[test]
    fn a_reading_of_too_many_lasts_a_while() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.reads(9, 4, 100));
        assert!(estimate.reads(1, 4, 100 + LASTS));
        assert!(!estimate.reads(1, 4, 101 + LASTS));
        assert!(!estimate.reads(1, 4, 102 + LASTS));
    }

    #[test]
    fn a_second_reading_of_too_many_extends_the_first() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.reads(9, 4, 0));
        assert!(estimate.reads(9, 4, LASTS));
        assert!(estimate.reads(1, 4, 2 * LASTS));
        assert!(!estimate.reads(1, 4, 2 * LASTS + 1));
    }
}
