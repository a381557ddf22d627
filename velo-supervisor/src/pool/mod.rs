//! How many workers there are, which one takes a link, and when to let go. Pure: it is told what
//! happened and when, and answers with what is to be done. It knows no process, no socket and no
//! clock, so every path of it can be tested without any.
//!
//! Each method notes one thing that happened; [`Pool::reconcile`] draws the conclusions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use velo_shm::{Progress, Running};

use crate::os::exit::Exit;
use crate::wire::protocol::{
    Key, KeyRefusal, Killed, LinkId, Refusal, RequestId, WorkerInfo, WorkerStatus,
};
use key_lines::Keys;
use restarts::Restarts;
use watched::{Seen, Writing};

mod deaths;
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

pub(crate) use ids::{ClientId, WorkerId};
pub(crate) use watched::Watch;

/// More workers than this are never made, whatever is asked.
const MOST_WORKERS: u32 = 1024;
/// More requests than this never wait at a time.
const MOST_WAITING: usize = 4096;
/// How long a forked worker may take until it serves.
const START_BOUND: Duration = Duration::from_secs(30);
/// How long the news of a death waits for its exit status.
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

/// What links show without being asked.
pub(crate) trait Gauges {
    /// Streams that are open on it.
    fn residents(&self, link: LinkId) -> u32;
    /// Streams that were ever opened on it.
    fn opened(&self, link: LinkId) -> u64;
    /// Closes it for new streams, unless one is open.
    fn retire(&self, link: LinkId) -> bool;
    /// The function of one of its streams that runs, if one does.
    fn running(&self, link: LinkId) -> Option<Running>;
    /// How far its worker has come.
    fn progress(&self, link: LinkId) -> Progress;
    /// Whether its awake worker has something to look at.
    fn input_waits(&self, link: LinkId) -> bool;
    /// Stops watching it, unless streams are open that ask for it; true if so.
    fn stop_watching(&self, link: LinkId) -> bool;
    /// How many bytes of stacks the worker has written.
    fn written(&self, worker: WorkerId) -> u64;
    /// Closes it for new streams; those that are open go on.
    fn close(&self, link: LinkId);
    /// How many bytes of memory of its own a process has.
    fn memory(&self, pid: i32) -> Option<u64>;
}

/// How many streams are open on several links, by what their shared memory says: it may say anything.
pub(crate) fn residents_of(
    links: impl IntoIterator<Item = LinkId>,
    of: impl Fn(LinkId) -> u32,
) -> u32 {
    links
        .into_iter()
        .fold(0, |sum, link| sum.saturating_add(of(link)))
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have a worker forked.
    Spawn {
        worker: WorkerId,
    },
    /// Make a link and give the worker its end.
    Attach {
        worker: WorkerId,
        link: LinkId,
        client: ClientId,
    },
    /// Give the client its end.
    Deliver {
        client: ClientId,
        request: RequestId,
        link: LinkId,
        worker: WorkerInfo,
    },
    Refuse {
        client: ClientId,
        request: RequestId,
        reason: Refusal,
    },
    /// Tell the client that it is attached to what it asked for.
    GrantKey {
        client: ClientId,
        request: RequestId,
        link: LinkId,
        grant: u64,
        fresh: bool,
    },
    RefuseKey {
        client: ClientId,
        request: RequestId,
        reason: KeyRefusal,
    },
    /// Tell the client that what its request has begun has ended.
    KeyGone {
        client: ClientId,
        request: RequestId,
    },
    /// Tell the worker that this attachment has ended.
    ReleaseKey {
        worker: WorkerId,
        key: Key,
        grant: u64,
    },
    /// Tell the worker to end its detached sessions.
    Retire {
        worker: WorkerId,
    },
    /// Tell the worker that the link is released, and forget it.
    Detach {
        worker: WorkerId,
        link: LinkId,
    },
    /// Tell the client that the link is gone.
    Retired {
        client: ClientId,
        link: LinkId,
    },
    /// Tell the client that the worker is dead, and forget the link.
    Died {
        client: ClientId,
        link: LinkId,
        worker: WorkerInfo,
        exit: Exit,
        why: Option<Killed>,
    },
    /// Tell the client that the worker takes no more streams.
    Leaving {
        client: ClientId,
        link: LinkId,
    },
    /// Have the worker write down the stacks of its threads.
    AskForStacks {
        worker: WorkerId,
    },
    Stop {
        worker: WorkerId,
        step: Step,
    },
    /// The worker is gone: let go of what belongs to it.
    Forget {
        worker: WorkerId,
    },
    /// The link was never used: let go of it.
    ForgetLink {
        link: LinkId,
    },
}

/// How a worker is told to stop, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Drain,
    Terminate,
    Kill,
}

#[derive(Debug, Clone)]
struct Wait {
    client: ClientId,
    request: RequestId,
    limit: u32,
    since: Instant,
    /// The link is made for whoever is to be attached to this.
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
    /// What it is looked at for.
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
    /// Its process id and when it was forked.
    born: Option<(i32, Instant)>,
    started: bool,
    /// It takes no new streams, and is stopped after its last one.
    retiring: bool,
    /// It has closed its control socket unasked, which is the beginning of most deaths.
    hung_up: bool,
    /// What it did to be killed for.
    fault: Option<&'static str>,
    /// It wrote over a link of its own: it gets no more streams, and ends with the last of those it has.
    condemned: bool,
    links: BTreeSet<LinkId>,
    idle_since: Instant,
    /// What the looks at it have shown.
    seen: Option<Seen>,
    /// It was told to write its stacks.
    writing: Option<Writing>,
    /// What it is killed for.
    killed: Option<Killed>,
    /// It has more memory than it may, since then.
    outgrown: Option<Instant>,
    /// It has ended; until then its exit status may still come.
    ended: Option<Instant>,
}

impl Worker {
    /// Whether it may take new streams.
    fn serves(&self) -> bool {
        self.is_left_alone() && !self.retiring
    }

    /// Whether it lives and has not been told to stop.
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
    /// When no client has ever come, or all is to end, no worker is made.
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

    /// Makes the workers that always stay, from now on.
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

    /// A client gives a link back. One that it does not have is left alone: it may have crossed with
    /// the news that the link is gone. The worker of a broken one is let go.
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

    /// False when no such worker is expected: it must not live.
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

    pub(crate) fn started(&mut self, worker: WorkerId) {
        if let Some(known) = self.workers.get_mut(&worker) {
            known.started = true;
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

    /// Gives the client a link that the worker has attached to, once it is known who that is.
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

    /// The link could not be made, or not be mapped by the worker.
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

    /// The worker has let go of a link.
    pub(crate) fn detached(&mut self, now: Instant, worker: WorkerId) {
        if let Some(known) = self.workers.get_mut(&worker) {
            known.idle_since = now;
        }
    }

    /// More workers than this are never made, if it was said.
    pub(crate) fn ceiling(&self) -> Option<u32> {
        self.settings.max
    }

    /// Workers that stay when nothing is to do.
    pub(crate) fn minimum(&self) -> u32 {
        self.settings.min
    }

    /// How many workers there are, in whatever state.
    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    /// What each worker is, and its links.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (WorkerStatus, &BTreeSet<LinkId>)> {
        self.workers.iter().map(|(&id, worker)| {
            let status = WorkerStatus {
                id,
                pid: worker.pid(),
                links: u32::try_from(worker.links.len()).unwrap_or(u32::MAX),
                retiring: worker.retiring,
                stopping: matches!(worker.stage, Stage::Stopping { .. }),
                ..WorkerStatus::default() // what others know
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
