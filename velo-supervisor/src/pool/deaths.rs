//! Deaths, of workers and of those that were never born: who is told, who waits again, and what
//! counts as a failure.

use super::*;

/// A worker that dies sooner after its start than this has failed to start.
pub(super) const HEALTHY_AFTER: Duration = Duration::from_secs(1);

impl Pool {
    pub(crate) fn spawn_failed(&mut self, now: Instant, worker: WorkerId, why: String) {
        let known = self.workers.get(&worker);
        if let Some(known) = known.filter(|known| known.born.is_none()) {
            self.restarts.failed(known.asked, now, why);
            self.drop_unborn(worker);
        }
    }

    /// The zygote died: whom it has not forked will not come.
    pub(crate) fn zygote_lost(&mut self) {
        // The last one first: each puts its requests ahead of those that wait already.
        for worker in self.unborn().into_iter().rev() {
            self.drop_unborn(worker);
        }
    }

    /// No zygote can be had: pending requests are refused.
    pub(crate) fn give_up(&mut self, why: &str) {
        self.zygote_lost();
        for wait in std::mem::take(&mut self.waiting) {
            self.refuse(wait.client, wait.request, Refusal::Failed(why.into()));
        }
        self.refuse_keys(why, false);
    }

    /// The process has ended. Its exit status follows, if the zygote that forked it still lives.
    pub(crate) fn ended(&mut self, now: Instant, worker: WorkerId, status_follows: bool) {
        if let Some(known) = self.workers.get_mut(&worker) {
            let bound = if status_follows {
                STATUS_BOUND
            } else {
                Duration::ZERO
            };
            known.ended.get_or_insert(now + bound);
        }
    }

    pub(crate) fn exited(&mut self, now: Instant, worker: WorkerId, exit: Exit) {
        self.reap(now, worker, exit);
    }

    fn unborn(&self) -> Vec<WorkerId> {
        self.workers
            .iter()
            .filter(|(_, w)| w.born.is_none())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Lets a worker go that has no process. Its requests wait again.
    fn drop_unborn(&mut self, worker: WorkerId) {
        self.requeue(worker);
        self.workers.remove(&worker);
        self.reap_keys(worker);
        self.actions.push(Action::Forget { worker });
    }

    /// Takes the links back that the worker has not attached to; their requests wait again, ahead of
    /// the others.
    pub(super) fn requeue(&mut self, worker: WorkerId) {
        let Some(known) = self.workers.get_mut(&worker) else {
            return;
        };
        let links: Vec<_> = known
            .links
            .iter()
            .copied()
            .filter(|link| self.links.get(link).is_some_and(|link| link.wait.is_some()))
            .collect();
        for link in links.into_iter().rev() {
            known.links.remove(&link);
            let wait = self.links.remove(&link).and_then(|link| link.wait);
            // A request for a key asks again when the key has a worker.
            if let Some(wait) = wait.filter(|wait| wait.key.is_none()) {
                self.waiting.push_front(wait);
            }
            self.actions.push(Action::ForgetLink { link });
        }
    }

    /// A worker is dead: reports it to its clients, and lets its requests wait again.
    pub(super) fn reap(&mut self, now: Instant, worker: WorkerId, exit: Exit) {
        self.requeue(worker);
        let Some(dead) = self.workers.remove(&worker) else {
            return;
        };
        // A start that takes long is no life.
        let lived = dead.started.map_or(Duration::ZERO, |started| {
            now.saturating_duration_since(started)
        });
        let began = dead.started.map_or(dead.asked, |_| now);
        let told_to_stop = matches!(dead.stage, Stage::Stopping { .. }) && !dead.hung_up;
        if let Some(fault) = dead.fault {
            self.restarts.failed(began, now, fault.into());
        } else if !told_to_stop
            && (dead.started.is_none() || lived < HEALTHY_AFTER && dead.links.is_empty())
        {
            // One that died while it served a client has shown that workers can start.
            self.restarts.failed(began, now, exit.to_string());
        } else if lived >= HEALTHY_AFTER {
            self.restarts.healthy();
        }
        let info = WorkerInfo {
            id: worker,
            pid: dead.pid(),
        };
        for link in dead.links {
            if let Some(Link { client, .. }) = self.links.remove(&link) {
                self.actions.push(Action::Died {
                    client,
                    link,
                    worker: info,
                    exit,
                    why: dead.killed,
                });
            }
        }
        self.reap_keys(worker);
        self.actions.push(Action::Forget { worker });
    }
}
