//! Whether the workers that this process has links to may spin.
//!
//! A worker that spins for its next event answers a sleep's worth of time sooner, on a core that is
//! free. Where this process and its workers are more than there are cores, the core is one that
//! another of them could use. Only the client sees all of them: it looks each time it wakes one.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use velo_shm::{LinkEnd, ticks};

/// What was too much is taken to be for so long.
const LASTS: Duration = Duration::from_millis(2);

/// How many cores this process may use.
pub(super) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| available_parallelism().map_or(1, NonZero::get))
}

struct Crowd {
    links: Vec<Weak<LinkEnd>>,
    /// When more were awake than there are cores, in ticks; none while there are not.
    seen: Option<u64>,
}

static CROWD: Mutex<Crowd> = Mutex::new(Crowd {
    links: Vec::new(),
    seen: None,
});
/// How many links there are, dead ones included until somebody looks.
static LINKS: AtomicUsize = AtomicUsize::new(0);

/// There is one more link.
pub(super) fn joined(end: &Arc<LinkEnd>) {
    let mut crowd = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    crowd.links.retain(|link| link.strong_count() > 0);
    crowd.links.push(Arc::downgrade(end));
    end.set_crowded(cores() == 1); // a worker that never sleeps is never woken
    LINKS.store(crowd.links.len(), Relaxed);
}

/// A worker was woken.
#[inline]
pub(super) fn woke() {
    if LINKS.load(Relaxed) >= cores() {
        look();
    }
}

#[cold]
fn look() {
    let mut crowd = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    crowd.links.retain(|link| link.strong_count() > 0);
    LINKS.store(crowd.links.len(), Relaxed);
    let links: Vec<_> = crowd.links.iter().filter_map(Weak::upgrade).collect();
    // The one that was woken may be done already, where it was given the only core at once.
    let awake = links.iter().filter(|l| !l.worker_sleeps()).count().max(1);
    let now = ticks::now();
    let before = crowd.seen;
    if awake + 1 > cores() {
        crowd.seen = Some(now);
    } else if before.is_some_and(|seen| ticks::to_duration(now.saturating_sub(seen)) > LASTS) {
        crowd.seen = None;
    }
    for link in links {
        link.set_crowded(crowd.seen.is_some());
    }
}
