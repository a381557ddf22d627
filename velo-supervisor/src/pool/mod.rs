//! The decisions of a supervisor: the number of workers, the worker of each link, and when both end. The
//! pool is pure: its methods get events with their times, and it answers with [`Action`]s. It knows no
//! process, no socket and no clock, so tests reach every path without any.
//!
//! Each method records one event; [`Pool::reconcile`] decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::os::exit::Exit;
use crate::wire::protocol::{Key, Killed, LinkId, Refusal, RequestId, WorkerInfo, WorkerStatus};
use key_lines::Keys;
use restarts::Restarts;
use watched::{Seen, Writing};

mod actions;
mod deaths;
mod gauges;
mod ids;
mod key_lines;
mod keys;
mod memory;
mod placement;
mod reconcile;
pub(crate) mod restarts;
mod retire;
mod stop;
#[cfg(test)]
mod tests;
mod watch;
mod watched;

pub(crate) use actions::{Action, Step};
pub(crate) use gauges::{Gauges, residents_of};
pub(crate) use ids::{ClientId, WorkerId};
pub(crate) use watched::Watch;

/// Maximum number of workers, whatever the settings allow.
const MOST_WORKERS: u32 = 1024;
/// Maximum number of requests that wait at a time.
const MOST_WAITING: usize = 4096;
/// Maximum time from the fork of a worker until it serves.
const START_BOUND: Duration = Duration::from_secs(30);
/// How long a death report waits for the exit status.
const STATUS_BOUND: Duration = Duration::from_millis(100);

/// The pool's part of the options.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) max: Option<u32>,
    pub(crate) cores: u32,
    pub(crate) min: u32,
    pub(crate) idle: Duration,
    pub(crate) drain: Duration,
    pub(crate) terminate: Duration,
    /// How many links all connections of one client process may have.
    pub(crate) client_workers: Option<u32>,
}

#[derive(Debug, Clone)]
struct Wait {
    client: ClientId,
    request: RequestId,
    limit: u32,
    since: Instant,
    /// The key whose holder needs the link.
    key: Option<Key>,
}

#[derive(Debug)]
struct Link {
    client: ClientId,
    worker: WorkerId,
    /// The request it answers, until the client has it.
    wait: Option<Wait>,
    attached: bool,
    opened: u64,
    quiet_since: Instant,
    /// The limits that the supervisor watches.
    watch: Option<Watch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Stopping {
        step: Step,
        until: Option<Instant>,
        terminate: Duration,
    },
}

#[derive(Debug)]
struct Worker {
    stage: Stage,
    /// When the pool has asked for it.
    asked: Instant,
    /// Its process id and when it was forked.
    born: Option<(i32, Instant)>,
    /// When it began to serve.
    started: Option<Instant>,
    /// It takes no new streams, and is stopped after its last one.
    retiring: bool,
    /// It has closed its control socket without an order, which is how most deaths begin.
    hung_up: bool,
    /// The fault that it is killed for.
    fault: Option<&'static str>,
    /// It wrote over a link of its own: it gets no more streams, and ends with the last of those it has.
    condemned: bool,
    links: BTreeSet<LinkId>,
    idle_since: Instant,
    /// What the last looks at it have shown.
    seen: Option<Seen>,
    /// It has the order to write its stacks.
    writing: Option<Writing>,
    /// The limit that it is killed for.
    killed: Option<Killed>,
    /// Since when it has more memory than `max_worker_memory` allows.
    outgrown: Option<Instant>,
    /// It has ended; until this moment its exit status may still come.
    ended: Option<Instant>,
}

impl Worker {
    /// Whether it may take new streams.
    fn serves(&self) -> bool {
        self.is_left_alone() && !self.retiring
    }

    /// Whether it lives and has no order to stop.
    fn is_left_alone(&self) -> bool {
        self.ended.is_none() && !matches!(self.stage, Stage::Stopping { .. })
    }

    /// Whether it may be given a link.
    fn takes_links(&self) -> bool {
        self.serves() && !self.condemned
    }

    fn pid(&self) -> i32 {
        self.born.map_or(0, |(pid, _)| pid)
    }
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Settings,
    workers: BTreeMap<WorkerId, Worker>,
    links: BTreeMap<LinkId, Link>,
    waiting: VecDeque<Wait>,
    keys: Keys,
    restarts: Restarts,
    next_worker: WorkerId,
    next_link: u64,
    next_look: Option<Instant>,
    next_watch: Option<Instant>,
    /// When to look whether streams of retiring workers have ended.
    next_retired: Option<Instant>,
    /// Which process each client belongs to.
    clients: BTreeMap<ClientId, i32>,
    actions: Vec<Action>,
    /// Whether workers may be made: a client has connected, or `open` was called.
    open: bool,
    closing: bool,
    /// No worker takes new streams, and none is made.
    draining: bool,
}

impl Pool {
    pub(crate) fn new(mut settings: Settings) -> Self {
        settings.min = settings
            .min
            .min(settings.max.unwrap_or(MOST_WORKERS))
            .min(MOST_WORKERS);
        Self {
            settings,
            workers: BTreeMap::new(),
            links: BTreeMap::new(),
            waiting: VecDeque::new(),
            keys: Keys::default(),
            restarts: Restarts::default(),
            next_worker: 1,
            next_link: 1,
            next_look: None,
            next_watch: None,
            next_retired: None,
            clients: BTreeMap::new(),
            actions: Vec::new(),
            open: false,
            closing: false,
            draining: false,
        }
    }

    /// Makes the minimum number of workers, from now on.
    pub(crate) fn open(&mut self) {
        self.open = true;
    }

    /// A process has connected as a client.
    pub(crate) fn client_came(&mut self, client: ClientId, process: i32) {
        self.open = true;
        self.clients.insert(client, process);
    }

    pub(crate) fn acquire(
        &mut self,
        now: Instant,
        client: ClientId,
        request: RequestId,
        asked: u32,
    ) {
        if self.closing {
            return self.refuse(client, request, Refusal::Failed(SHUTTING_DOWN.into()));
        }
        if self.draining {
            return self.refuse(client, request, Refusal::Failed(DRAINING.into()));
        }
        if self.waiting.len() >= MOST_WAITING {
            let why = "too many requests for links are waiting; wait for their answers".into();
            return self.refuse(client, request, Refusal::Failed(why));
        }
        self.waiting.push_back(Wait {
            client,
            request,
            limit: self.limit(asked),
            since: now,
            key: None,
        });
    }

    /// How many workers there may be for a request.
    fn limit(&self, asked: u32) -> u32 {
        let limit = match (asked, self.settings.max) {
            (0, ceiling) => ceiling.unwrap_or(self.settings.cores),
            (asked, ceiling) => asked.min(ceiling.unwrap_or(MOST_WORKERS)),
        };
        limit.clamp(1, MOST_WORKERS)
    }

    /// A client gives a link back. A link that it does not have is ignored: the message may have crossed
    /// with the report that the link is gone. The worker of a broken link is replaced.
    pub(crate) fn release(&mut self, now: Instant, client: ClientId, link: LinkId, broken: bool) {
        let Some(known) = self.links.get(&link).filter(|link| link.client == client) else {
            return;
        };
        let worker = known.worker;
        if broken && let Some(known) = self.workers.get_mut(&worker) {
            known.condemned = true;
            self.retire_keys(worker);
        }
        self.detach(now, link);
    }

    pub(crate) fn client_gone(&mut self, now: Instant, client: ClientId) {
        self.clients.remove(&client);
        self.waiting.retain(|wait| wait.client != client);
        let links: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.client == client)
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            self.detach(now, link);
        }
        self.take_keys_back(client);
    }

    /// A worker was forked. False: the pool expects no such worker, and it must be killed.
    pub(crate) fn spawned(&mut self, now: Instant, worker: WorkerId, pid: i32) -> bool {
        let Some(known) = self
            .workers
            .get_mut(&worker)
            .filter(|known| known.born.is_none())
        else {
            return false;
        };
        known.born = Some((pid, now));
        // A quick worker attaches before the zygote gets to say that it was forked.
        let links: Vec<_> = known.links.iter().copied().collect();
        for link in links {
            self.deliver(now, link);
        }
        true
    }

    pub(crate) fn started(&mut self, now: Instant, worker: WorkerId) {
        if let Some(known) = self.workers.get_mut(&worker) {
            if known.started.is_none() {
                known.started = Some(now);
                self.restarts.attempted(now);
            }
            if known.stage == Stage::Starting {
                known.stage = Stage::Running;
            }
        }
    }

    pub(crate) fn attached(&mut self, now: Instant, worker: WorkerId, link: LinkId) {
        if let Some(known) = self
            .links
            .get_mut(&link)
            .filter(|known| known.worker == worker)
        {
            known.attached = true;
            self.deliver(now, link);
        }
    }

    /// Gives the client a link that its worker serves, once the process id of the worker is known.
    fn deliver(&mut self, now: Instant, link: LinkId) {
        let Some(known) = self.links.get_mut(&link).filter(|known| known.attached) else {
            return;
        };
        let Some((pid, _)) = self
            .workers
            .get(&known.worker)
            .and_then(|worker| worker.born)
        else {
            return;
        };
        let Some(Wait {
            client, request, ..
        }) = known.wait.take()
        else {
            return;
        };
        known.quiet_since = now;
        let worker = WorkerInfo {
            id: known.worker,
            pid,
        };
        self.actions.push(Action::Deliver {
            client,
            request,
            link,
            worker,
        });
    }

    /// The link could not be made, or the worker could not map it.
    pub(crate) fn attach_failed(
        &mut self,
        now: Instant,
        worker: WorkerId,
        link: LinkId,
        why: String,
    ) {
        let Some(known) = self
            .links
            .get_mut(&link)
            .filter(|known| known.worker == worker)
        else {
            return;
        };
        if let Some(wait) = known.wait.take() {
            self.remove_link(now, link);
            self.actions.push(Action::ForgetLink { link });
            match wait.key {
                Some(key) => self.key_failed(key, &wait, why),
                None => self.refuse(wait.client, wait.request, Refusal::Failed(why)),
            }
        }
    }

    /// The worker has unmapped a link.
    pub(crate) fn detached(&mut self, now: Instant, worker: WorkerId) {
        if let Some(known) = self.workers.get_mut(&worker) {
            known.idle_since = now;
        }
    }

    /// The maximum number of workers, if one is set.
    pub(crate) fn ceiling(&self) -> Option<u32> {
        self.settings.max
    }

    /// The number of workers that stay without work.
    pub(crate) fn minimum(&self) -> u32 {
        self.settings.min
    }

    /// The number of workers, in any state.
    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    /// The state of each worker, and its links.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (WorkerStatus, &BTreeSet<LinkId>)> {
        self.workers.iter().map(|(&id, worker)| {
            let status = WorkerStatus {
                id,
                pid: worker.pid(),
                links: u32::try_from(worker.links.len()).unwrap_or(u32::MAX),
                retiring: worker.retiring,
                stopping: matches!(worker.stage, Stage::Stopping { .. }),
                ..WorkerStatus::default() // the figures of links and of the system
            };
            (status, &worker.links)
        })
    }

    /// The links that a client has been given.
    pub(crate) fn links_of(&self, client: ClientId) -> impl Iterator<Item = LinkId> {
        self.links
            .iter()
            .filter(move |(_, link)| link.client == client && link.wait.is_none())
            .map(|(id, _)| *id)
    }

    /// The client that has, or waits for, this link.
    pub(crate) fn client_of(&self, link: LinkId) -> Option<ClientId> {
        self.links.get(&link).map(|known| known.client)
    }

    /// The worker that runs, or ran last, as this process.
    pub(crate) fn worker_of(&self, pid: i32) -> Option<WorkerId> {
        let mut known = self.workers.iter();
        known
            .find(|(_, worker)| worker.pid() == pid)
            .map(|(id, _)| *id)
    }

    fn detach(&mut self, now: Instant, link: LinkId) {
        if let Some(worker) = self.remove_link(now, link) {
            self.actions.push(Action::Detach { worker, link });
        }
    }

    fn remove_link(&mut self, now: Instant, link: LinkId) -> Option<WorkerId> {
        let worker = self.links.remove(&link)?.worker;
        if let Some(known) = self.workers.get_mut(&worker) {
            known.links.remove(&link);
            known.idle_since = now;
        }
        Some(worker)
    }

    fn refuse(&mut self, client: ClientId, request: RequestId, reason: Refusal) {
        self.actions.push(Action::Refuse {
            client,
            request,
            reason,
        });
    }
}

const SHUTTING_DOWN: &str = "the supervisor is shutting down";
const DRAINING: &str = "the supervisor is draining: it takes no new streams";
