//! How workers are stopped: asked, then terminated, then killed, each step with a bound.

use super::*;

impl Pool {
    /// Everything ends within `bound`: streams get most of it, a signal's handler the rest.
    pub(crate) fn shut_down(&mut self, now: Instant, bound: Duration) {
        self.closing = true;
        self.give_up(SHUTTING_DOWN);
        self.refuse_keys(SHUTTING_DOWN, true);
        // What is left of the bound after both is for the system to reap the killed.
        let drain = self.settings.drain.min(bound.mul_f64(0.6));
        let terminate = self.settings.terminate.min(bound.mul_f64(0.25));
        let workers: Vec<_> = self.workers.keys().copied().collect();
        for worker in workers {
            let already = match self.workers.get(&worker).map(|known| known.stage) {
                Some(Stage::Stopping { step, .. }) => step,
                _ => Step::Drain,
            };
            let step = if bound.is_zero() { Step::Kill } else { already };
            self.stop(now, worker, step, drain, terminate);
        }
        for wait in std::mem::take(&mut self.waiting) {
            self.refuse(
                wait.client,
                wait.request,
                Refusal::Failed(SHUTTING_DOWN.into()),
            );
        }
    }

    /// The worker has closed its control socket, or broken the protocol. Mostly it is dying, and
    /// its death is about to be told; if not, it is made to.
    pub(crate) fn hung_up(&mut self, now: Instant, worker: WorkerId) {
        let terminate = self.settings.terminate;
        // A worker with an order to stop may close its control socket as it ends.
        let known = self.workers.get_mut(&worker);
        if let Some(known) = known.filter(|known| known.is_left_alone()) {
            known.hung_up = true;
            let until = Some(now + STATUS_BOUND);
            known.stage = Stage::Stopping {
                step: Step::Drain,
                until,
                terminate,
            };
        }
    }

    pub(super) fn stop(
        &mut self,
        now: Instant,
        worker: WorkerId,
        step: Step,
        drain: Duration,
        terminate: Duration,
    ) {
        self.requeue(worker);
        let Some(known) = self.workers.get_mut(&worker) else {
            return;
        };
        let until = match step {
            Step::Drain => Some(now + drain),
            Step::Terminate => Some(now + terminate),
            Step::Kill => None,
        };
        known.stage = Stage::Stopping {
            step,
            until,
            terminate,
        };
        self.actions.push(Action::Stop { worker, step });
    }

    /// Goes one step further with those whose time is up.
    pub(super) fn advance_stops(&mut self, now: Instant) {
        let due: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.ended.is_none())
            .filter_map(|(id, worker)| match worker.stage {
                Stage::Stopping {
                    step,
                    until: Some(until),
                    terminate,
                } if until <= now => {
                    let next = if step == Step::Drain {
                        Step::Terminate
                    } else {
                        Step::Kill
                    };
                    Some((*id, next, terminate))
                }
                Stage::Starting if worker.start_deadline().is_some_and(|at| at <= now) => {
                    Some((*id, Step::Kill, Duration::ZERO))
                }
                _ => None,
            })
            .collect();
        for (worker, step, terminate) in due {
            if let Some(known) = self.workers.get_mut(&worker) {
                if known.stage == Stage::Starting {
                    // Not counted at its end, which is late where it waits for a device.
                    let why = format!(
                        "did not serve within {} s of its fork",
                        START_BOUND.as_secs()
                    );
                    self.restarts.failed(known.asked, now, why);
                } else if known.hung_up {
                    known.fault = Some("left its control socket");
                }
            }
            self.stop(now, worker, step, Duration::ZERO, terminate);
        }
    }
}

impl Worker {
    pub(super) fn start_deadline(&self) -> Option<Instant> {
        self.born.map(|(_, born)| born + START_BOUND)
    }
}
