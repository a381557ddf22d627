//! Workers that take no new streams and are stopped after their last one: all of them when the
//! supervisor drains, the old ones when it replaces them. No stream is cut.

use super::*;

/// How often retiring workers are looked at. Streams end without a word to the supervisor.
const LOOK: Duration = Duration::from_millis(50);

impl Pool {
    /// Has no worker that is there take another stream.
    pub(crate) fn retire_all(&mut self) {
        let serving: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.serves())
            .map(|(id, _)| *id)
            .collect();
        for worker in serving {
            self.requeue(worker);
            if let Some(known) = self.workers.get_mut(&worker) {
                known.retiring = true;
            }
            self.retire_keys(worker);
        }
        self.next_retired = None;
    }

    /// Has no worker take another stream, and makes none.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        self.retire_all();
        for wait in std::mem::take(&mut self.waiting) {
            self.refuse(wait.client, wait.request, Refusal::Failed(DRAINING.into()));
        }
        self.refuse_keys(DRAINING, true);
    }

    /// Takes links back whose last stream has ended, and stops workers that have none.
    pub(super) fn look_at_retiring(&mut self, now: Instant, gauges: &impl Gauges) {
        if self.next_retired.is_some_and(|at| at > now) {
            return;
        }
        let retiring: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.retiring && worker.is_left_alone())
            .map(|(id, worker)| (*id, worker.links.clone()))
            .collect();
        self.next_retired = None;
        for (worker, links) in retiring {
            let mut left = 0;
            for link in links {
                gauges.close(link);
                if gauges.residents(link) > 0 || !gauges.retire(link) {
                    left += 1;
                } else if let Some(Link { client, .. }) = self.links.get(&link) {
                    let client = *client;
                    self.detach(now, link);
                    self.actions.push(Action::Retired { client, link });
                }
            }
            if left == 0 && self.keys.of(worker) == 0 {
                let Settings {
                    drain, terminate, ..
                } = self.settings;
                self.stop(now, worker, Step::Drain, drain, terminate);
            } else {
                self.next_retired = Some(now + LOOK);
            }
        }
    }
}
