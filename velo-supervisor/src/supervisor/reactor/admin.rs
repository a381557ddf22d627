//! Orders to a standalone supervisor, and reports of its state.

use std::time::{Duration, Instant};

use super::{Event, Reactor};
use crate::pool::{ClientId, residents_of};
use crate::supervisor::client_connection::{Access, ClientConnection};
use crate::wire::protocol::{ClientStatus, LinkId, Order, Status, ToClient};

impl Reactor {
    pub(super) fn administer(&mut self, now: Instant, id: ClientId, order: Order) {
        let answer = match (&self.standalone, order) {
            (_, Order::Look(question)) => return self.begin_look(now, id, question),
            (_, Order::Status) => ToClient::Status(self.status()),
            (None, _) => ToClient::Unable {
                why: "it is a part of a program, and ends with that".into(),
            },
            (Some(own), Order::Logs { follow }) => {
                let lines = own.log.lines();
                if follow {
                    let events = self.events.clone();
                    own.log.follow(id, move |line| {
                        // A closed channel means that the loop has ended: nobody reads it any more.
                        let _ = events.send(Event::Logged(id, line.to_owned()));
                    });
                }
                ToClient::Log { lines }
            }
            (Some(_), Order::Drain { bound }) => {
                self.drain(now, bound.map(Duration::from_millis));
                // What is opened after the answer is not opened on what is there.
                self.advance(now);
                ToClient::Done
            }
            (Some(_), Order::Restart) => {
                tracing::info!("replacing all workers");
                self.pool.retire_all();
                self.zygotes.replace();
                self.advance(now);
                ToClient::Done
            }
        };
        self.tell_client(now, id, &answer, Vec::new());
    }

    /// Takes no new streams, and ends with the last one, or when the bound is over.
    pub(super) fn drain(&mut self, now: Instant, bound: Option<Duration>) {
        let by = bound.map(|bound| now + bound.min(crate::options::FOREVER));
        match &mut self.draining {
            None => {
                tracing::info!(bound = ?bound, "draining");
                self.pool.drain();
                self.draining = Some(by);
                if self.standalone.is_some() {
                    crate::os::service_manager::say_stopping();
                }
            }
            // The sooner end counts.
            Some(known) => *known = [*known, by].into_iter().flatten().min(),
        }
    }

    pub(super) fn residents(&self, link: LinkId) -> u32 {
        self.links
            .get(&link)
            .map_or(0, |held| held.end().residents())
    }

    pub(super) fn status(&self) -> Status {
        let keys = self.pool.key_counts();
        let workers = self.pool.workers().map(|(mut worker, links)| {
            self.add_figures(&mut worker, links);
            let counts = keys.get(&Some(worker.id)).copied().unwrap_or_default();
            (worker.detached, worker.waiting) = (counts.detached, counts.waiting);
            worker
        });
        let viewers = |client: &&ClientConnection| client.access == Access::Look;
        let viewers = self.clients.values().filter(viewers).count();
        let mut clients: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| client.access == Access::Full)
            .map(|(&id, client)| ClientStatus {
                id,
                pid: client.pid,
                links: u32::try_from(self.pool.links_of(id).count()).unwrap_or(u32::MAX),
                streams: residents_of(self.pool.links_of(id), |link| self.residents(link)),
                connected: client.since.elapsed().as_secs(),
            })
            .collect();
        clients.sort_by_key(|client| client.id);
        let zygote = self.zygotes.describe();
        let own = self.standalone.as_ref();
        Status {
            pid: nix::unistd::getpid().as_raw(),
            velo: velo_shm::VERSION.into(),
            runtime: own.map(|own| own.runtime.clone()).unwrap_or_default(),
            embedded: own.is_none(),
            viewers: u32::try_from(viewers).unwrap_or(u32::MAX),
            uptime: self.since.elapsed().as_secs(),
            draining: self.draining.is_some() || self.end_by.is_some(),
            max_workers: self.pool.ceiling(),
            min_workers: self.pool.minimum(),
            workers: workers.collect(),
            clients,
            zygote: zygote.map(|(pid, _)| pid),
            zygote_threads: zygote.and_then(|(_, threads)| threads),
            detached: keys.values().map(|counts| counts.detached).sum(),
            waiting: keys.values().map(|counts| counts.waiting).sum(),
            checkpoint: own.map(|own| own.notes.checkpoint()).unwrap_or_default(),
        }
    }
}
