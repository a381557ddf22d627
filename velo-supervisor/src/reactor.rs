//! The supervisor's one loop: hears clients, workers and the zygote, tells the pool, and does what
//! the pool decides. It decides nothing itself and waits for nothing but news and the next deadline.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use velo_shm::{LinkEnd, Progress, Running};

use crate::connection::{Connection, Delivery};
use crate::link::HeldLink;
use crate::nursery::{Nursery, Report, ZygoteEvent};
use crate::options::{EmbeddedOptions, FOREVER, parallelism};
use crate::pool::{ClientId, Gauges, Pool, Settings, Watch, WorkerId, residents_of};
use crate::protocol::{
    FromClient, FromWorker, FromZygote, LinkId, PROTOCOL_VERSION, PreloadFailure, Status, ToClient,
    WorkerStatus,
};
use crate::transport::TransportError;
use crate::worker::WorkerProcess;

mod perform;

/// What the rest of the process asks of the supervisor's thread.
#[derive(Debug)]
pub(crate) enum Command {
    Connect(OwnedFd),
    Status(SyncSender<Status>),
    Shutdown { bound: Duration },
}

#[derive(Debug)]
enum Event {
    Client(ClientId, Delivery<FromClient>),
    Worker(WorkerId, Delivery<FromWorker>),
    WorkerEnded(WorkerId),
    Zygote(u64, ZygoteEvent),
}

#[derive(Debug)]
struct ClientConnection {
    connection: Connection,
    greeted: bool,
}

type Links = HashMap<LinkId, HeldLink>;

/// What the pool is shown of links and workers.
struct View<'a> {
    links: &'a Links,
    workers: &'a HashMap<WorkerId, WorkerProcess>,
}

impl View<'_> {
    fn end(&self, link: LinkId) -> Option<&LinkEnd> {
        self.links.get(&link).map(HeldLink::end)
    }
}

impl Gauges for View<'_> {
    fn residents(&self, link: LinkId) -> u32 {
        self.end(link).map_or(0, LinkEnd::residents)
    }

    fn opened(&self, link: LinkId) -> u64 {
        self.end(link).map_or(0, LinkEnd::opened_total)
    }

    fn retire(&self, link: LinkId) -> bool {
        self.end(link).is_none_or(LinkEnd::try_retire)
    }

    fn running(&self, link: LinkId) -> Option<Running> {
        self.end(link)?.running()
    }

    fn progress(&self, link: LinkId) -> Progress {
        self.end(link)
            .map_or_else(Progress::default, LinkEnd::progress)
    }

    fn input_waits(&self, link: LinkId) -> bool {
        self.end(link).is_some_and(LinkEnd::worker_input_waits)
    }

    fn stop_watching(&self, link: LinkId) -> bool {
        self.end(link).is_none_or(LinkEnd::stop_watching)
    }

    fn written(&self, worker: WorkerId) -> u64 {
        self.workers.get(&worker).map_or(0, WorkerProcess::written)
    }
}

/// The supervisor.
pub(crate) struct Reactor {
    pool: Pool,
    nursery: Nursery,
    clients: HashMap<ClientId, ClientConnection>,
    workers: HashMap<WorkerId, WorkerProcess>,
    links: Links,
    next_client: ClientId,
    /// Everything must have ended by then.
    end_by: Option<Instant>,
    events: UnboundedSender<Event>,
}

/// Runs a supervisor until it is shut down or nobody can reach it any more. Call it on a `LocalSet`.
pub(crate) async fn run(
    options: EmbeddedOptions,
    owner: OwnedFd,
    mut commands: UnboundedReceiver<Command>,
) {
    let (events, mut news) = mpsc::unbounded_channel();
    let mut reactor = Reactor::new(options, owner, events);
    loop {
        let now = Instant::now();
        reactor.advance(now);
        if reactor.is_finished(now) {
            break;
        }
        let deadline = reactor.next_deadline();
        let sleep = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = commands.recv(), if reactor.end_by.is_none() => {
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
    reactor.nursery.kill();
}

impl Reactor {
    fn new(options: EmbeddedOptions, owner: OwnedFd, events: UnboundedSender<Event>) -> Self {
        let settings = Settings {
            max: options.max_workers.map(|max| max.max(1)),
            cores: parallelism(),
            min: options.min_workers,
            idle: options.idle_timeout.min(FOREVER),
            drain: options.drain_bound.min(FOREVER),
            terminate: options.terminate_bound.min(FOREVER),
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
        Self {
            pool: Pool::new(settings),
            nursery: Nursery::new(zygote_command, env, owner, idle, report),
            clients: HashMap::new(),
            workers: HashMap::new(),
            links: HashMap::new(),
            next_client: 1,
            end_by: None,
            events,
        }
    }

    /// Does all that follows from what was heard.
    fn advance(&mut self, now: Instant) {
        loop {
            let view = View {
                links: &self.links,
                workers: &self.workers,
            };
            let actions = self.pool.settle(now, &view);
            let idle = actions.is_empty();
            for action in actions {
                self.perform(now, action);
            }
            if let Err(why) = self.nursery.advance(now, self.pool.len()) {
                tracing::error!(%why, "workers cannot be forked");
                self.pool.give_up(&why);
            } else if idle {
                break;
            }
        }
        if self.end_by.is_some() && self.pool.len() == 0 {
            self.nursery.leave(now);
        }
    }

    fn is_finished(&self, now: Instant) -> bool {
        self.end_by
            .is_some_and(|by| by <= now || (self.pool.len() == 0 && self.nursery.is_empty()))
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.pool.next_deadline(),
            self.nursery.next_deadline(),
            self.end_by,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect(socket) => self.connect(socket),
            Command::Status(reply) => {
                // One who has stopped waiting needs no answer.
                let _ = reply.try_send(self.status());
            }
            Command::Shutdown { bound } => {
                let now = Instant::now();
                self.pool.shut_down(now, bound);
                self.end_by = Some(now + bound.max(SHORTEST_SHUTDOWN));
            }
        }
    }

    fn connect(&mut self, socket: OwnedFd) {
        let id = self.next_client;
        let events = self.events.clone();
        let deliver = move |said| drop(events.send(Event::Client(id, said)));
        match Connection::open(socket, deliver) {
            Ok(connection) => {
                self.next_client += 1;
                self.clients.insert(
                    id,
                    ClientConnection {
                        connection,
                        greeted: false,
                    },
                );
                self.pool.client_came();
            }
            // The socket is closed by now, so the client sees that it is lost.
            Err(error) => tracing::error!(%error, "could not take a client on"),
        }
    }

    fn status(&self) -> Status {
        let workers = self
            .pool
            .workers()
            .map(|(id, pid, links, stopping)| WorkerStatus {
                id,
                pid,
                residents: residents_of(links, |link| {
                    self.links
                        .get(&link)
                        .map_or(0, |held| held.end().residents())
                }),
                links: u32::try_from(links.len()).unwrap_or(u32::MAX),
                stopping,
            });
        let zygote = self.nursery.describe();
        Status {
            workers: workers.collect(),
            zygote: zygote.map(|(pid, _)| pid),
            zygote_threads: zygote.and_then(|(_, threads)| threads),
        }
    }

    fn hear(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Client(id, Delivery::Message(message, _)) => self.hear_client(now, id, message),
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
                let status_follows = zygote.is_some_and(|number| self.nursery.lives(number));
                self.pool.ended(now, id, status_follows);
            }
            Event::Zygote(number, ZygoteEvent::Said(Delivery::Message(message, fds))) => {
                self.hear_zygote(now, number, message, fds);
            }
            Event::Zygote(number, ZygoteEvent::Said(Delivery::Ended(error))) => {
                self.nursery
                    .hung_up(now, number, error.map(|error| error.to_string()));
            }
            Event::Zygote(number, ZygoteEvent::Ended) => self.zygote_ended(now, number),
        }
    }

    fn hear_client(&mut self, now: Instant, id: ClientId, message: FromClient) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match message {
            FromClient::Hello { version } => {
                let hello = ToClient::Hello {
                    version: PROTOCOL_VERSION,
                };
                let told = client.connection.send(&hello, Vec::new());
                client.greeted = version == PROTOCOL_VERSION;
                if told.is_err() || !client.greeted {
                    self.forget_client(now, id);
                }
            }
            _ if !client.greeted => {
                tracing::warn!("a client did not say hello");
                self.forget_client(now, id);
            }
            FromClient::Acquire {
                request,
                max_workers,
            } => {
                self.pool.acquire(now, id, request, max_workers);
            }
            FromClient::Release { link, broken } => self.pool.release(now, id, link, broken),
            FromClient::Watch { link, stall_ms } => {
                let stall = stall_ms.map(Duration::from_millis);
                if self.pool.watch(now, id, link, Watch { stall })
                    && let Some(held) = self.links.get(&link)
                {
                    held.end().start_watching();
                }
            }
            FromClient::Preload { modules, paths } => self.nursery.preload(now, modules, paths),
        }
    }

    fn hear_worker(&mut self, now: Instant, id: WorkerId, message: FromWorker) {
        match message {
            FromWorker::Started { thread } => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.started(thread);
                }
                self.pool.started(id);
            }
            FromWorker::Attached { link } => self.pool.attached(now, id, link),
            FromWorker::AttachFailed { link, why } => self.pool.attach_failed(now, id, link, why),
            FromWorker::Detached { .. } => self.pool.detached(now, id),
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
                if let Err(why) = self.nursery.ready(version, threads) {
                    tracing::error!(%why, "workers cannot be forked");
                    self.pool.give_up(&why);
                }
            }
            FromZygote::Spawned { worker, pid } => {
                self.nursery.answered(worker);
                let Some(pidfd) = fds.pop() else {
                    // One that cannot be watched ends by itself once its socket is closed.
                    let why = TransportError::FdsLost.to_string();
                    return self.pool.spawn_failed(now, worker, why);
                };
                self.worker_born(now, number, worker, pid, pidfd);
            }
            FromZygote::SpawnFailed { worker, why } => {
                self.nursery.answered(worker);
                self.pool.spawn_failed(now, worker, why);
            }
            FromZygote::Preloaded { module, failure } => {
                self.preloaded(now, number, module, failure);
            }
            FromZygote::Exited { worker, exit, .. } => self.pool.exited(now, worker, exit),
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
        self.nursery
            .preloaded(number, &module, failure.is_some(), taints);
        let why = match failure {
            None => return,
            Some(PreloadFailure::Import(why)) => why,
            Some(PreloadFailure::Threads(threads)) => format!(
                "importing it starts threads ({} beside the main one), from which nothing can be \
                 forked safely",
                threads.saturating_sub(1)
            ),
        };
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
            let _ = crate::sys::pidfd_signal(pidfd.as_fd(), nix::libc::SIGKILL);
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
        tracing::debug!(worker = id, pid, "forked a worker");
    }

    fn zygote_ended(&mut self, now: Instant, number: u64) {
        for (message, fds) in self.nursery.last_words(number) {
            self.hear_zygote(now, number, message, fds);
        }
        match self.nursery.ended(now, number) {
            Ok(()) => self.pool.zygote_lost(),
            Err(why) => {
                tracing::error!(%why, "workers cannot be forked");
                self.pool.give_up(&why);
            }
        }
    }
}

/// A shutdown without a bound still lets the system take the killed away.
const SHORTEST_SHUTDOWN: Duration = Duration::from_millis(100);
