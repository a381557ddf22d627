//! The decisions that follow from recorded events: report deaths, take back idle links, stop idle workers,
//! place requests. Nothing here is periodic while there is no worker.

use super::placement::{Candidate, least_loaded};
use super::*;

/// Number of looks at each link within the idle timeout.
const LOOKS_PER_TIMEOUT: u32 = 4;
/// Minimum time between two looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);

impl Pool {
    /// Decides. Call it after every recorded event, and at [`Pool::next_deadline`].
    pub(crate) fn reconcile(&mut self, now: Instant, gauges: &impl Gauges) -> Vec<Action> {
        let starts = |worker: &Worker| worker.stage == Stage::Starting && worker.ended.is_none();
        if !self.workers.values().any(starts) {
            self.restarts.forgive(now);
        }
        self.bury_ended(now);
        self.look_at_workers(now, gauges);
        self.advance_stops(now);
        self.look_at_links(now, gauges);
        self.look_at_retiring(now, gauges);
        self.stop_condemned_workers(now);
        self.stop_idle_workers(now);
        self.place(now, gauges);
        self.reconcile_keys(now, gauges);
        self.keep_minimum(now);
        std::mem::take(&mut self.actions)
    }

    /// When to reconcile next if no event comes before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let spare = self.serving() > self.settings.min as usize;
        let workers = self
            .workers
            .iter()
            .filter_map(|(id, worker)| match worker.stage {
                _ if worker.ended.is_some() => worker.ended,
                Stage::Stopping { until, .. } => until,
                Stage::Starting => worker.start_deadline(),
                Stage::Running if spare && worker.links.is_empty() && self.keys.of(*id) == 0 => {
                    Some(worker.idle_since + self.settings.idle)
                }
                Stage::Running => None,
            });
        let retry = if self.waiting.is_empty() && !self.keys.are_pending() {
            None
        } else {
            self.restarts.not_before()
        };
        let refill = if self.lacks_workers() {
            self.restarts.paused_until()
        } else {
            None
        };
        workers
            .chain(self.next_look)
            .chain(self.watch_deadline())
            .chain(self.next_retired)
            .chain(retry)
            .chain(refill)
            .min()
    }

    pub(super) fn serving(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| worker.takes_links())
            .count()
    }

    fn lacks_workers(&self) -> bool {
        self.open && !self.closing && !self.draining && self.serving() < self.settings.min as usize
    }

    fn bury_ended(&mut self, now: Instant) {
        let due: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.ended.is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        for worker in due {
            self.reap(now, worker, Exit::Unknown);
        }
    }

    /// Takes back links on which no stream was open for the idle timeout.
    fn look_at_links(&mut self, now: Instant, gauges: &impl Gauges) {
        let pause = (self.settings.idle / LOOKS_PER_TIMEOUT).max(SHORTEST_LOOK);
        let any = self.links.values().any(|link| link.wait.is_none());
        match self.next_look {
            _ if !any => return self.next_look = None,
            None => return self.next_look = Some(now + pause),
            Some(at) if at > now => return,
            Some(_) => self.next_look = Some(now + pause),
        }
        let mut idle = Vec::new();
        for (&id, link) in self
            .links
            .iter_mut()
            .filter(|(_, link)| link.wait.is_none())
        {
            let opened = gauges.opened(id);
            if gauges.residents(id) > 0 || opened != link.opened {
                link.opened = opened;
                link.quiet_since = now;
            } else if now.saturating_duration_since(link.quiet_since) >= self.settings.idle
                && gauges.retire(id)
            {
                idle.push((id, link.client));
            }
        }
        for (link, client) in idle {
            self.detach(now, link);
            self.actions.push(Action::Retired { client, link });
        }
    }

    fn stop_condemned_workers(&mut self, now: Instant) {
        let condemned: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.condemned && worker.serves() && worker.links.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for worker in condemned {
            let Settings {
                drain, terminate, ..
            } = self.settings;
            self.stop(now, worker, Step::Drain, drain, terminate);
        }
    }

    fn stop_idle_workers(&mut self, now: Instant) {
        let spare = self.serving().saturating_sub(self.settings.min as usize);
        // The youngest first: the oldest have the warmest caches.
        let idle: Vec<_> = self
            .workers
            .iter()
            .rev()
            .filter(|(_, worker)| worker.takes_links() && worker.stage == Stage::Running)
            .filter(|(id, worker)| worker.links.is_empty() && self.keys.of(**id) == 0)
            .filter(|(_, worker)| {
                now.saturating_duration_since(worker.idle_since) >= self.settings.idle
            })
            .map(|(id, _)| *id)
            .take(spare)
            .collect();
        for worker in idle {
            let Settings {
                drain, terminate, ..
            } = self.settings;
            self.stop(now, worker, Step::Drain, drain, terminate);
        }
    }

    /// Finds a worker for each request, or a reason why there is none.
    fn place(&mut self, now: Instant, gauges: &impl Gauges) {
        for wait in std::mem::take(&mut self.waiting) {
            let within = self.quota_workers(wait.client);
            if let Some(worker) = self.choose(wait.client, within.as_ref(), gauges) {
                self.assign(now, worker, wait);
            } else if let Some(workers) = within {
                let reason = self.over_quota(wait.client, &workers);
                self.refuse(wait.client, wait.request, reason);
            } else if self.serving() >= wait.limit as usize {
                self.refuse(wait.client, wait.request, Refusal::AtLimit);
            } else if self.restarts.hopeless(wait.since) {
                let why = format!(
                    "workers end as soon as they start: {}",
                    self.restarts.reasons()
                );
                self.refuse(wait.client, wait.request, Refusal::Failed(why));
            } else if self.restarts.ready(now) {
                let worker = self.spawn(now);
                self.assign(now, worker, wait);
            } else {
                self.waiting.push_back(wait);
            }
        }
    }

    /// The workers that a client's process has links to, where those are as many as it may have: its
    /// event loops share them. None: it may have more.
    pub(super) fn quota_workers(&self, client: ClientId) -> Option<BTreeSet<WorkerId>> {
        let quota = self.settings.client_workers?;
        let process = self.clients.get(&client);
        let serves = |link: &&Link| self.workers.get(&link.worker).is_some_and(Worker::serves);
        let links = self.links.values().filter(serves);
        let workers: BTreeSet<_> = links
            .filter(|link| self.clients.get(&link.client) == process)
            .map(|link| link.worker)
            .collect();
        (workers.len() >= quota as usize).then_some(workers)
    }

    /// The reason why a client gets no link to another worker than those of its process.
    pub(super) fn over_quota(&self, client: ClientId, workers: &BTreeSet<WorkerId>) -> Refusal {
        if self.links.values().any(|link| link.client == client) {
            return Refusal::AtLimit; // it goes on with those that it has
        }
        Refusal::Failed(format!(
            "this process has links to {} workers, which is the quota of one client of the \
             supervisor (`--client-workers {}`)",
            workers.len(),
            self.settings.client_workers.unwrap_or_default()
        ))
    }

    /// The least loaded worker that the client has no link to, of all or of these.
    fn choose(
        &self,
        client: ClientId,
        within: Option<&BTreeSet<WorkerId>>,
        gauges: &impl Gauges,
    ) -> Option<WorkerId> {
        let mine: BTreeSet<_> = self
            .links
            .values()
            .filter(|link| link.client == client)
            .map(|l| l.worker)
            .collect();
        let candidates = self
            .workers
            .iter()
            .filter(|(id, worker)| worker.takes_links() && !mine.contains(id))
            .filter(|(id, _)| within.is_none_or(|within| within.contains(id)))
            .map(|(id, worker)| Candidate {
                worker: *id,
                residents: residents_of(worker.links.iter().copied(), |link| {
                    gauges.residents(link)
                }),
                links: worker.links.len(),
                running: worker.stage == Stage::Running,
            });
        least_loaded(candidates)
    }

    pub(super) fn assign(&mut self, now: Instant, worker: WorkerId, wait: Wait) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let client = wait.client;
        let state = Link {
            client,
            worker,
            wait: Some(wait),
            attached: false,
            opened: 0,
            quiet_since: now,
            watch: None,
        };
        self.links.insert(link, state);
        if let Some(known) = self.workers.get_mut(&worker) {
            known.links.insert(link);
        }
        self.actions.push(Action::Attach {
            worker,
            link,
            client,
        });
    }

    pub(super) fn spawn(&mut self, now: Instant) -> WorkerId {
        let worker = self.next_worker;
        self.next_worker = self.next_worker.wrapping_add(1).max(1);
        let state = Worker {
            stage: Stage::Starting,
            asked: now,
            born: None,
            started: None,
            retiring: false,
            hung_up: false,
            fault: None,
            condemned: false,
            links: BTreeSet::new(),
            idle_since: now,
            seen: None,
            writing: None,
            killed: None,
            outgrown: None,
            ended: None,
        };
        self.workers.insert(worker, state);
        self.actions.push(Action::Spawn { worker });
        worker
    }

    fn keep_minimum(&mut self, now: Instant) {
        while self.lacks_workers() && self.restarts.paused_until().is_none_or(|at| at <= now) {
            self.spawn(now);
        }
    }
}
