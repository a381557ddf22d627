//! The supervisor's one loop: hears clients, workers and the zygote, tells the pool, and does what
//! the pool decides. It decides nothing itself and waits for nothing but news and the next deadline.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use velo_shm::standstill::RunningLimit;
use velo_shm::{Link, Progress, Running};

use crate::options::{EmbeddedOptions, FOREVER};
use crate::os;
use crate::os::peer::Peer;
use crate::pool::{ClientId, Gauges, Pool, Settings, WorkerId};
use crate::supervisor::client_connection::{Access, ClientConnection};
use crate::supervisor::connection::Delivery;
use crate::supervisor::link_record::LinkRecord;
use crate::supervisor::looks::Looks;
use crate::supervisor::standalone::Standalone;
use crate::supervisor::worker_process::WorkerProcess;
use crate::supervisor::zygote_orders::IMPORT_BOUND;
use crate::supervisor::zygotes::{Report, ZygoteEvent, ZygoteManager};
use crate::wire::protocol::{
    FromClient, FromWorker, FromZygote, LinkId, PreloadFailure, Status, ToClient,
};
use crate::wire::transport::TransportError;

mod admin;
mod clients;
mod look;
mod perform;

/// What the rest of the process asks of the supervisor's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// A client of this very process.
    Connect(OwnedFd),
    /// Another process that has connected.
    Join(OwnedFd, Peer, Access),
    /// A worker is about to be asked for.
    Expect,
    Status(SyncSender<Status>),
    /// Take no new streams, and end with the last one; after the bound, if any, in any case.
    Drain {
        bound: Option<Duration>,
    },
    Shutdown {
        bound: Duration,
    },
    /// Children of this process have ended, which is a standalone supervisor's own.
    Collect,
}

#[derive(Debug)]
enum Event {
    Client(ClientId, Delivery<FromClient>),
    ClientEnded(ClientId),
    /// The log lines for a client that follows the log.
    Logged(ClientId, String),
    Worker(WorkerId, Delivery<FromWorker>),
    WorkerEnded(WorkerId),
    Zygote(u64, ZygoteEvent),
}

type Links = HashMap<LinkId, LinkRecord>;

/// What the pool is shown of links and workers.
struct View<'a> {
    links: &'a Links,
    workers: &'a HashMap<WorkerId, WorkerProcess>,
}

impl View<'_> {
    fn end(&self, link: LinkId) -> Option<&Link> {
        self.links.get(&link).map(LinkRecord::end)
    }
}

impl Gauges for View<'_> {
    fn residents(&self, link: LinkId) -> u32 {
        self.end(link).map_or(0, Link::residents)
    }

    fn opened(&self, link: LinkId) -> u64 {
        self.end(link).map_or(0, Link::opened_total)
    }

    fn retire(&self, link: LinkId) -> bool {
        self.end(link).is_none_or(Link::try_retire)
    }

    fn running(&self, link: LinkId) -> Option<Running> {
        self.end(link)?.running()
    }

    fn progress(&self, link: LinkId) -> Progress {
        self.end(link)
            .map_or_else(Progress::default, Link::progress)
    }

    fn input_waits(&self, link: LinkId) -> bool {
        self.end(link).is_some_and(Link::worker_input_waits)
    }

    fn stop_watching(&self, link: LinkId) -> bool {
        self.end(link).is_none_or(Link::stop_watching)
    }

    fn written(&self, worker: WorkerId) -> u64 {
        self.workers.get(&worker).map_or(0, WorkerProcess::written)
    }

    fn close(&self, link: LinkId) {
        if let Some(end) = self.end(link) {
            end.close_entry();
        }
    }

    fn memory(&self, pid: i32) -> Option<u64> {
        os::own_memory(pid)
    }
}

/// The supervisor.
pub(crate) struct Reactor {
    pool: Pool,
    zygotes: ZygoteManager,
    clients: HashMap<ClientId, ClientConnection>,
    workers: HashMap<WorkerId, WorkerProcess>,
    links: Links,
    next_client: ClientId,
    /// What only a standalone supervisor has.
    standalone: Option<Standalone>,
    since: Instant,
    /// It ends with the last stream, and by the bound that goes with it.
    draining: Option<Option<Instant>>,
    /// Everything must have ended by then.
    end_by: Option<Instant>,
    /// Questions that wait for answers of workers.
    looks: Looks,
    events: UnboundedSender<Event>,
}

/// Runs a supervisor until it is shut down or no process can reach it any more. Call it on a `LocalSet`.
pub(crate) async fn run(
    options: EmbeddedOptions,
    owner: OwnedFd,
    standalone: Option<Standalone>,
    mut commands: UnboundedReceiver<Command>,
) {
    let (events, mut news) = mpsc::unbounded_channel();
    let mut reactor = Reactor::new(options, owner, standalone, events);
    let mut reachable = true;
    // Time in which this process stands still brings no deadline closer.
    let mut limit: Option<RunningLimit> = None;
    loop {
        let now = os::clock::now();
        reactor.advance(now);
        if reactor.is_finished(now) {
            break;
        }
        let left = reactor.next_deadline().map(os::clock::until);
        let next = left.map(RunningLimit::new);
        drop(std::mem::replace(&mut limit, next));
        let sleep = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = commands.recv(), if reachable => {
                reachable = command.is_some();
                let bound = Duration::ZERO;
                reactor.obey(command.unwrap_or(Command::Shutdown { bound }));
            }
            // The reactor holds a sender, so there is always a next event.
            Some(event) = news.recv() => {
                reactor.hear(event);
                while let Ok(event) = news.try_recv() {
                    reactor.hear(event);
                }
            }
            () = sleep => {}
        }
    }
    reactor.zygotes.kill();
}

impl Reactor {
    fn new(
        options: EmbeddedOptions,
        owner: OwnedFd,
        mut standalone: Option<Standalone>,
        events: UnboundedSender<Event>,
    ) -> Self {
        let settings = Settings {
            max: options.max_workers.map(|max| max.max(1)),
            cores: u32::try_from(velo_shm::cores()).unwrap_or(u32::MAX),
            min: options.min_workers,
            idle: options.idle_timeout.min(FOREVER),
            drain: options.drain_bound.min(FOREVER),
            terminate: options.terminate_bound.min(FOREVER),
            client_workers: standalone.as_ref().and_then(|own| own.client_workers),
        };
        let idle = settings.idle;
        let news = events.clone();
        // A closed channel means that the loop has ended: nobody is left to tell.
        let report: Report = Rc::new(move |number, event| {
            let _ = news.send(Event::Zygote(number, event));
        });
        let EmbeddedOptions {
            zygote_command,
            env,
            ..
        } = options;
        let standing = standalone.is_some();
        let mut pool = Pool::new(settings);
        let mut zygotes = ZygoteManager::new(zygote_command, env, owner, idle, standing, report);
        if let Some(own) = &mut standalone {
            pool.open();
            let modules = std::mem::take(&mut own.preload);
            zygotes.preload(os::clock::now(), modules, Vec::new());
        }
        Self {
            pool,
            zygotes,
            clients: HashMap::new(),
            workers: HashMap::new(),
            links: HashMap::new(),
            next_client: 1,
            standalone,
            since: os::clock::now(),
            draining: None,
            end_by: None,
            looks: Looks::default(),
            events,
        }
    }

    /// Carries out the consequences of the messages.
    fn advance(&mut self, now: Instant) {
        self.turn_the_silent_away(now);
        self.look(now);
        loop {
            let view = View {
                links: &self.links,
                workers: &self.workers,
            };
            let actions = self.pool.reconcile(now, &view);
            let idle = actions.is_empty();
            for action in actions {
                self.perform(now, action);
            }
            if let Some(module) = self.zygotes.hung_import(now) {
                let why = format!("its import took longer than {} s", IMPORT_BOUND.as_secs());
                self.not_preloaded(now, module, why);
            }
            if let Err(why) = self.zygotes.advance(now, self.pool.len()) {
                tracing::error!(%why, "workers cannot be forked");
                self.pool.give_up(&why);
            } else if idle {
                break;
            }
        }
        if let Some(by) = self.draining
            && self.end_by.is_none()
            && (self.pool.len() == 0 || by.is_some_and(|by| by <= now))
        {
            let bound = LAST_BOUND;
            self.obey(Command::Shutdown { bound });
            return self.advance(now);
        }
        if self.end_by.is_some() && self.pool.len() == 0 {
            self.zygotes.leave(now);
        }
    }

    fn is_finished(&self, now: Instant) -> bool {
        self.end_by
            .is_some_and(|by| by <= now || (self.pool.len() == 0 && self.zygotes.is_empty()))
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.pool.next_deadline(),
            self.zygotes.next_deadline(),
            self.next_silent(),
            self.looks.next_deadline(),
            self.draining.flatten().filter(|_| self.end_by.is_none()),
            self.end_by,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn obey(&mut self, command: Command) {
        match command {
            // Closed here, so the client sees that it is lost.
            Command::Connect(_) | Command::Join(..) if self.end_by.is_some() => {}
            Command::Connect(socket) => self.connect(socket, None, Access::Full),
            Command::Join(socket, peer, access) => self.connect(socket, Some(peer), access),
            Command::Expect if self.end_by.is_some() => {}
            Command::Expect => self.zygotes.expect(),
            Command::Status(reply) => {
                // One who has stopped waiting needs no answer.
                let _ = reply.try_send(self.status());
            }
            Command::Drain { bound } => self.drain(os::clock::now(), bound),
            Command::Shutdown { bound } => {
                let now = os::clock::now();
                let by = now + bound.max(SHORTEST_SHUTDOWN);
                self.pool.shut_down(now, bound);
                self.end_by = Some(self.end_by.map_or(by, |sooner| sooner.min(by)));
            }
            Command::Collect => self.collect(os::clock::now()),
        }
    }

    /// Collects what zygotes that have died left behind: workers, and what functions have started.
    fn collect(&mut self, now: Instant) {
        // Collected by the zygotes, which knows what its end means.
        let zygote = self.zygotes.describe().map(|(pid, _)| pid);
        while let Some((pid, exit)) = crate::os::collect_child(zygote) {
            if let Some(worker) = self.pool.worker_of(pid) {
                tracing::info!(worker, pid, %exit, "worker ended");
                self.pool.exited(now, worker, exit);
            }
        }
    }

    fn hear(&mut self, event: Event) {
        let now = os::clock::now();
        match event {
            Event::Client(id, Delivery::Message(message, _)) => self.hear_client(now, id, message),
            Event::ClientEnded(id) => self.forget_client(now, id),
            Event::Logged(id, line) => {
                let lines = vec![line];
                self.tell_client(now, id, &ToClient::Log { lines }, Vec::new());
            }
            Event::Client(id, Delivery::Ended(error)) => {
                if let Some(error) = error {
                    tracing::warn!(%error, "a client's control socket broke");
                }
                self.forget_client(now, id);
            }
            Event::Worker(id, Delivery::Message(message, _)) => self.hear_worker(now, id, message),
            Event::Worker(id, Delivery::Ended(error)) => {
                if let Some(error) = error {
                    tracing::warn!(worker = id, %error, "a worker's control socket broke");
                }
                self.pool.hung_up(now, id);
            }
            Event::WorkerEnded(id) => {
                let zygote = self.workers.get(&id).map(WorkerProcess::zygote);
                // A standalone supervisor collects what its zygote cannot.
                let status_follows = self.standalone.is_some()
                    || zygote.is_some_and(|number| self.zygotes.lives(number));
                self.pool.ended(now, id, status_follows);
            }
            Event::Zygote(number, ZygoteEvent::Said(Delivery::Message(message, fds))) => {
                self.hear_zygote(now, number, message, fds);
            }
            Event::Zygote(number, ZygoteEvent::Said(Delivery::Ended(error))) => {
                self.zygotes
                    .hung_up(now, number, error.map(|error| error.to_string()));
            }
            Event::Zygote(number, ZygoteEvent::Ended) => self.zygote_ended(now, number),
        }
    }

    fn hear_worker(&mut self, now: Instant, id: WorkerId, message: FromWorker) {
        match message {
            FromWorker::Started { thread } => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.started(thread);
                }
                tracing::info!(worker = id, "worker ready");
                self.pool.started(now, id);
            }
            FromWorker::Attached { link } => self.pool.attached(now, id, link),
            FromWorker::AttachFailed { link, why } => self.pool.attach_failed(now, id, link, why),
            FromWorker::Key { key, grant, live } => self.pool.key_free(id, key, grant, live),
            FromWorker::Detached { .. } => self.pool.detached(now, id),
            FromWorker::Told { ask, answer } => self.looks.told(ask, id, answer),
        }
    }

    fn hear_zygote(
        &mut self,
        now: Instant,
        number: u64,
        message: FromZygote,
        mut fds: Vec<OwnedFd>,
    ) {
        match message {
            FromZygote::Ready { version, threads } => {
                if let Err(why) = self.zygotes.ready(now, version, threads) {
                    tracing::error!(%why, "workers cannot be forked");
                    self.pool.give_up(&why);
                }
            }
            FromZygote::Spawned { worker, pid } => {
                self.zygotes.answered(now, worker);
                let Some(pidfd) = fds.pop() else {
                    // One that cannot be watched ends by itself once its socket is closed.
                    let why = TransportError::FdsLost.to_string();
                    return self.pool.spawn_failed(now, worker, why);
                };
                self.worker_born(now, number, worker, pid, pidfd);
            }
            FromZygote::SpawnFailed { worker, why } => {
                self.zygotes.answered(now, worker);
                self.pool.spawn_failed(now, worker, why);
            }
            FromZygote::Preloaded { module, failure } => {
                self.preloaded(now, number, module, failure);
            }
            FromZygote::Exited { worker, pid, exit } => {
                tracing::info!(worker, pid, %exit, "worker ended");
                self.pool.exited(now, worker, exit);
            }
        }
    }

    fn preloaded(
        &mut self,
        now: Instant,
        number: u64,
        module: String,
        failure: Option<PreloadFailure>,
    ) {
        let taints = matches!(failure, Some(PreloadFailure::Threads(_)));
        self.zygotes
            .preloaded(now, number, &module, failure.is_some(), taints);
        let why = match failure {
            None => return,
            Some(PreloadFailure::Import(why)) => why,
            Some(PreloadFailure::Threads(threads)) => format!(
                "importing it starts threads ({} beside the main one), from which nothing can be \
                 forked safely",
                threads.saturating_sub(1)
            ),
        };
        self.not_preloaded(now, module, why);
    }

    fn not_preloaded(&mut self, now: Instant, module: String, why: String) {
        tracing::warn!(%module, %why, "a module cannot be preloaded");
        let message = ToClient::NotPreloaded { module, why };
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.tell_client(now, id, &message, Vec::new());
        }
    }

    fn worker_born(&mut self, now: Instant, number: u64, id: WorkerId, pid: i32, pidfd: OwnedFd) {
        use std::os::fd::AsFd;

        // One that nobody waits for any more, or that cannot be watched, must not live.
        let kill = |pidfd: &OwnedFd| {
            let _ = crate::os::pidfd_signal(pidfd.as_fd(), nix::libc::SIGKILL);
        };
        if !self.pool.spawned(now, id, pid) {
            return kill(&pidfd);
        }
        let events = self.events.clone();
        let ended = move || drop(events.send(Event::WorkerEnded(id)));
        let Some(worker) = self.workers.get_mut(&id) else {
            return kill(&pidfd);
        };
        let watched = pidfd
            .try_clone()
            .and_then(|watched| worker.born(number, watched, ended));
        if let Err(error) = watched {
            tracing::error!(worker = id, %error, "could not watch a worker");
            kill(&pidfd);
            self.pool.ended(now, id, true);
        }
        tracing::info!(worker = id, pid, "worker forked");
    }

    fn zygote_ended(&mut self, now: Instant, number: u64) {
        for (message, fds) in self.zygotes.last_words(number) {
            self.hear_zygote(now, number, message, fds);
        }
        if self.standalone.is_some() {
            tracing::info!("zygote ended");
        }
        match self.zygotes.ended(now, number) {
            Ok(()) => self.pool.zygote_lost(),
            Err(why) => {
                tracing::error!(%why, "workers cannot be forked");
                self.pool.give_up(&why);
            }
        }
        if self.standalone.is_some() {
            // What it hid while it was the first to be collected, and its children.
            self.collect(now);
        }
    }
}

/// How long streams that drained too long get to run their `finally` blocks, and workers to end.
const LAST_BOUND: Duration = Duration::from_secs(3);
/// A shutdown without a bound still lets the system take the killed away.
const SHORTEST_SHUTDOWN: Duration = Duration::from_millis(100);
