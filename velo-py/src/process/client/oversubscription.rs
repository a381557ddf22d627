//! Whether this process and the workers that it has links to are more than there are cores.
//!
//! A worker that spins for its next event answers sooner, by the time that a sleep takes, if a core is
//! free for it. If none is, the core is one that another worker could use. Only the client sees all of
//! its workers, so the client decides, each time it wakes one.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use velo_shm::{LinkEnd, ticks};

/// How long an oversubscription reading stays valid.
const VALID: Duration = Duration::from_millis(2);

/// How many cores this process may use.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| available_parallelism().map_or(1, NonZero::get))
}

/// Whether the cores are oversubscribed, from what was seen of late.
struct Estimate {
    /// When more were awake than there are cores, in ticks; None while there are not.
    seen: Option<u64>,
}

impl Estimate {
    /// At `now`, this process and `workers` of its workers are awake. One reading with enough cores does
    /// not end an oversubscription: workers sleep for moments.
    fn update(&mut self, workers: usize, cores: usize, now: u64) -> bool {
        // The worker that was woken may sleep again already, where it was given the only core at once.
        if workers.max(1) + 1 > cores {
            self.seen = Some(now);
        } else if self
            .seen
            .is_some_and(|seen| ticks::to_duration(now.saturating_sub(seen)) > VALID)
        {
            self.seen = None;
        }
        self.seen.is_some()
    }
}

struct Links {
    all: Vec<Weak<LinkEnd>>,
    estimate: Estimate,
}

static LINKS: Mutex<Links> = Mutex::new(Links {
    all: Vec::new(),
    estimate: Estimate { seen: None },
});
/// How many links there are; dead ones count until the next update.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// There is one more link.
pub fn joined(end: &Arc<LinkEnd>) {
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    links.all.retain(|link| link.strong_count() > 0);
    links.all.push(Arc::downgrade(end));
    end.set_crowded(cores() == 1); // a worker that never sleeps is never woken
    COUNT.store(links.all.len(), Relaxed);
}

/// A worker was woken.
#[inline]
pub fn woke() {
    if COUNT.load(Relaxed) >= cores() {
        update();
    }
}

#[cold]
fn update() {
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    links.all.retain(|link| link.strong_count() > 0);
    COUNT.store(links.all.len(), Relaxed);
    let all: Vec<_> = links.all.iter().filter_map(Weak::upgrade).collect();
    let awake = all.iter().filter(|link| !link.worker_sleeps()).count();
    let oversubscribed = links.estimate.update(awake, cores(), ticks::now());
    for link in all {
        link.set_crowded(oversubscribed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(span: Duration) -> u64 {
        1_000_000 + ticks::from_duration(span)
    }

    #[test]
    fn more_awake_than_cores_is_oversubscription() {
        let mut estimate = Estimate { seen: None };
        let now = after(Duration::ZERO);
        assert!(
            !estimate.update(3, 4, now),
            "this process has the fourth core"
        );
        assert!(estimate.update(4, 4, now));
    }

    #[test]
    fn a_worker_was_woken_even_if_it_sleeps_again() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.update(0, 1, after(Duration::ZERO)));
        assert!(!Estimate { seen: None }.update(0, 2, after(Duration::ZERO)));
    }

    #[test]
    fn a_reading_stays_valid_for_a_while() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.update(4, 4, after(Duration::ZERO)));
        assert!(estimate.update(1, 4, after(VALID / 2)));
        assert!(!estimate.update(1, 4, after(VALID * 2)));
        assert!(!estimate.update(1, 4, after(VALID * 3)), "it ends for good");
    }

    #[test]
    fn another_reading_makes_it_valid_for_longer() {
        let mut estimate = Estimate { seen: None };
        assert!(estimate.update(4, 4, after(Duration::ZERO)));
        assert!(estimate.update(4, 4, after(VALID)));
        assert!(estimate.update(1, 4, after(VALID * 3 / 2)));
    }
}
