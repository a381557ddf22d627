//! Workers that outgrow what their streams allow: they retire, and are killed when that takes too long
//! or they grow on.

use super::*;

/// How long a worker that has outgrown its limit has to shrink.
const SHRINK_BOUND: Duration = Duration::from_secs(30);
/// At this many times its limit a worker is killed without notice.
const FAR_TOO_MUCH: u64 = 2;

impl Pool {
    /// Compares the memory of workers with the limits of their streams. There are few, and a look
    /// costs some microseconds.
    pub(super) fn look_at_memory(&mut self, now: Instant, gauges: &impl Gauges) {
        let (mut outgrown, mut too_large) = (Vec::new(), Vec::new());
        for (&id, worker) in &mut self.workers {
            let links = worker.links.iter().filter_map(|id| self.links.get(id));
            let limits = links.filter_map(|link| link.watch?.memory);
            let Some(limit) = limits.min().filter(|_| worker.is_left_alone()) else {
                worker.outgrown = None;
                continue;
            };
            let Some(used) = gauges.memory(worker.pid()).filter(|used| *used > limit) else {
                worker.outgrown = None;
                continue;
            };
            let asked = now.saturating_duration_since(*worker.outgrown.get_or_insert(now));
            let ms = match used / FAR_TOO_MUCH >= limit {
                true => Some(0),
                false => (asked >= SHRINK_BOUND).then_some(asked.as_millis() as u64),
            };
            if let Some(ms) = ms {
                too_large.push((id, Killed::Memory { used, limit, ms }));
            } else if !worker.retiring {
                outgrown.push(id);
            }
        }
        for worker in outgrown {
            self.outgrew(worker);
        }
        for (worker, why) in too_large {
            if let Some(known) = self.workers.get_mut(&worker) {
                known.killed = Some(why);
            }
            self.stop(now, worker, Step::Kill, Duration::ZERO, Duration::ZERO);
        }
    }

    /// Gives a worker no more streams: it is stopped after its last one.
    fn outgrew(&mut self, worker: WorkerId) {
        self.requeue(worker);
        let Some(known) = self.workers.get_mut(&worker) else {
            return;
        };
        known.retiring = true;
        self.next_retired = None;
        for &link in &known.links {
            if let Some(&Link { client, .. }) = self.links.get(&link) {
                self.actions.push(Action::Leaving { client, link });
            }
        }
        self.retire_keys(worker);
    }
}
