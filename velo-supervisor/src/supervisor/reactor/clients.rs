//! Clients as the reactor sees them: their arrival, their messages, their refusal.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Event, Reactor};
use crate::os::clock;
use crate::os::peer::Peer;
use crate::os::process::Process;
use crate::pool::{ClientId, Watch};
use crate::supervisor::client_connection::{Access, ClientConnection};
use crate::supervisor::connection::Connection;
use crate::wire::protocol::{FromClient, PROTOCOL_VERSION, ToClient, Welcome};

/// How long a viewer of an embedded supervisor may take to greet.
const HELLO_BOUND: Duration = Duration::from_secs(5);
/// How many viewers one embedded supervisor serves.
const MOST_VIEWERS: usize = 32;

impl Reactor {
    /// Takes a client on.
    pub(super) fn connect(&mut self, socket: OwnedFd, peer: Option<Peer>, access: Access) {
        let id = self.next_client;
        let events = self.events.clone();
        let deliver = move |said| drop(events.send(Event::Client(id, said)));
        let patience = peer.is_some().then(|| self.hello_bound());
        let taken = Connection::open(socket, patience, deliver).and_then(|connection| {
            let own = || nix::unistd::getpid().as_raw();
            let pid = peer.as_ref().map_or_else(own, |peer| peer.pid);
            if let Some(why) = peer.as_ref().and_then(|peer| self.objection(peer, access)) {
                tracing::warn!(pid, %why, "client turned away");
                turn_away(&connection, why);
                return Ok(());
            }
            let pidfd = peer.map(|peer| peer.pidfd);
            let events = self.events.clone();
            let ended = move || drop(events.send(Event::ClientEnded(id)));
            let watched = pidfd
                .as_ref()
                .map(|fd| Process::watch(fd.try_clone()?, ended));
            let client = ClientConnection {
                connection,
                pid,
                pidfd,
                process: watched.transpose()?,
                since: clock::now(),
                access,
                greeted: false,
            };
            self.next_client += 1;
            self.clients.insert(id, client);
            if access == Access::Full {
                self.pool.client_came(id, pid);
            }
            tracing::info!(client = id, pid, "client came");
            Ok(())
        });
        // The socket is closed by now, so the client sees that it is lost.
        if let Err(error) = taken {
            tracing::error!(%error, "could not take a client on");
        }
    }

    /// Why this process is not served, if so.
    fn objection(&self, peer: &Peer, access: Access) -> Option<String> {
        let (theirs, ours) = (peer.uid, nix::unistd::geteuid().as_raw());
        if theirs != ours {
            return Some(format!(
                "it serves the user with id `{ours}` only, not `{theirs}`"
            ));
        }
        if access == Access::Look {
            let viewers = self.clients.values().filter(|c| c.access == Access::Look);
            let many = viewers.count() >= MOST_VIEWERS;
            return many.then(|| format!("`{MOST_VIEWERS}` processes look at it already"));
        }
        let own = self.standalone.as_ref()?;
        (self.clients.len() >= own.max_clients).then(|| {
            format!(
                "it has `{}` clients, as many as it takes (`--max-clients`)",
                self.clients.len()
            )
        })
    }

    /// Hangs up on clients that have not said hello in time.
    pub(super) fn turn_the_silent_away(&mut self, now: Instant) {
        let bound = self.hello_bound();
        let silent: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_silent() && client.since + bound <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            tracing::warn!(client = id, "a client did not say hello in time");
            self.forget_client(now, id);
        }
    }

    fn hello_bound(&self) -> Duration {
        let own = self.standalone.as_ref();
        own.map_or(HELLO_BOUND, |own| own.hello_bound)
    }

    /// When the next one is to be turned away.
    pub(super) fn next_silent(&self) -> Option<Instant> {
        let bound = self.hello_bound();
        let silent = self.clients.values().filter(|client| client.is_silent());
        silent.map(|client| client.since + bound).min()
    }

    pub(super) fn hear_client(&mut self, now: Instant, id: ClientId, message: FromClient) {
        let welcome = self.welcome();
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match message {
            FromClient::Hello { version } => {
                let hello = ToClient::Hello {
                    version: PROTOCOL_VERSION,
                    welcome,
                };
                let told = client.connection.send(&hello, Vec::new());
                client.greeted = version == PROTOCOL_VERSION;
                if told.is_err() || !client.greeted {
                    tracing::warn!(client = id, version, "a client speaks another version");
                    self.forget_client(now, id);
                }
            }
            _ if !client.greeted => {
                tracing::warn!(client = id, "a client did not say hello");
                self.forget_client(now, id);
            }
            // An order that a program's supervisor does not obey is answered; the rest is not.
            FromClient::Admin(order) => self.administer(now, id, order),
            _ if client.access == Access::Look => {
                tracing::warn!(client = id, "a viewer asked for more than to look");
                self.forget_client(now, id);
            }
            FromClient::Acquire {
                request,
                max_workers,
            } => {
                self.pool.acquire(now, id, request, max_workers);
            }
            FromClient::Release { link, broken } => self.pool.release(now, id, link, broken),
            FromClient::Preload { modules, paths } => self.zygotes.preload(now, modules, paths),
            FromClient::Watch {
                link,
                stall_ms,
                memory,
            } => {
                let stall = stall_ms.map(Duration::from_millis);
                if self.pool.watch(now, id, link, Watch { stall, memory })
                    && let Some(held) = self.links.get(&link)
                {
                    held.end().start_watching();
                }
            }
            FromClient::AcquireKey {
                request,
                key,
                max_workers,
                wait,
            } => {
                self.pool
                    .acquire_key(now, id, request, key, max_workers, wait);
            }
            FromClient::ReleaseKey { request, key } => self.pool.release_key(id, request, key),
            FromClient::LeftKey { key, grant } => self.pool.left_key(id, key, grant),
        }
    }

    fn welcome(&self) -> Welcome {
        let own = self.standalone.as_ref();
        let ceilings = [self.pool.ceiling(), own.and_then(|own| own.client_workers)];
        Welcome {
            pid: nix::unistd::getpid().as_raw(),
            velo: velo_shm::VERSION.into(),
            runtime: own.map(|own| own.runtime.clone()).unwrap_or_default(),
            max_workers: ceilings.into_iter().flatten().min().unwrap_or(0),
            max_streams: own.and_then(|own| own.client_streams).unwrap_or(0),
        }
    }

    pub(super) fn forget_client(&mut self, now: Instant, id: ClientId) {
        if let Some(client) = self.clients.remove(&id) {
            tracing::info!(client = id, pid = client.pid, "client went");
        }
        if let Some(own) = &self.standalone {
            own.log.forget(id);
        }
        self.pool.client_gone(now, id);
    }

    /// A handle of the client's process for a worker that may outlive this supervisor.
    pub(super) fn client_process(&self, id: ClientId) -> Option<OwnedFd> {
        let pidfd = self.clients.get(&id)?.pidfd.as_ref()?;
        pidfd.as_fd().try_clone_to_owned().ok()
    }
}

/// Sends the reason why no client is served. The connection ends when it is dropped.
fn turn_away(connection: &Connection, why: String) {
    // One who does not hear it sees at least that it is over.
    let _ = connection.send(&ToClient::TurnedAway { why }, Vec::new());
}
