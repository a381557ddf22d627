//! What is said of the worker as a whole: whether the supervisor has to watch it, and whether a core
//! is free for it to spin on.

use super::end::Link;
use crate::side::Side;
use crate::sync::{Ordering, full_fence};

impl Link {
    /// Whether the worker is awake and has not looked at what is there for it, as far as one look
    /// can tell: true for a moment now and then, and for long if it stands still.
    pub fn worker_input_waits(&self) -> bool {
        let direction = self.region.direction(Side::Worker);
        direction.any() && direction.sleeping.load(Ordering::Acquire) == 0
    }

    /// The client: one more stream with limits is open. True if the supervisor does not watch the worker: the
    /// client has to ask the supervisor for it.
    pub fn begin_limit(&self) -> bool {
        let watch = &self.region.header().watch;
        let _ = watch
            .limited
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(1)
            });
        // See `stop_watching`.
        full_fence();
        watch.watched.load(Ordering::Relaxed) == 0
    }

    /// The client: one stream with limits less is open.
    pub fn end_limit(&self) {
        let limited = &self.region.header().watch.limited;
        let _ = limited.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            now.checked_sub(1)
        });
    }

    /// The supervisor: watches from now on.
    pub fn start_watching(&self) {
        self.region
            .header()
            .watch
            .watched
            .store(1, Ordering::Relaxed);
    }

    /// The supervisor: stops watching if there is no reason to go on; true if it has stopped.
    pub fn stop_watching(&self) -> bool {
        let watch = &self.region.header().watch;
        if watch.limited.load(Ordering::Relaxed) > 0 {
            return false;
        }
        watch.watched.store(0, Ordering::Relaxed);
        // The client counts, fences, looks at the flag: one of the two sees what the other wrote.
        full_fence();
        let idle = watch.limited.load(Ordering::Relaxed) == 0;
        if !idle {
            watch.watched.store(1, Ordering::Relaxed);
        }
        idle
    }

    /// The client: whether more processes are awake than there are cores for. A worker that spins
    /// then takes a core from one that has something to do.
    pub fn set_oversubscribed(&self, oversubscribed: bool) {
        let watch = &self.region.header().watch;
        let said = watch.oversubscribed.load(Ordering::Relaxed) != 0;
        if said != oversubscribed {
            watch
                .oversubscribed
                .store(oversubscribed.into(), Ordering::Relaxed);
        }
    }

    /// The worker: whether the client says so.
    pub fn is_oversubscribed(&self) -> bool {
        self.region
            .header()
            .watch
            .oversubscribed
            .load(Ordering::Relaxed)
            != 0
    }
}
