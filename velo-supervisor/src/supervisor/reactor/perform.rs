//! What the pool decides, done: messages sent, sockets and links made, handles let go.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::{Event, Reactor};
use crate::os::exit::Exit;
use crate::os::limits::explain;
use crate::pool::{Action, ClientId, WorkerId};
use crate::supervisor::link_record::LinkRecord;
use crate::supervisor::worker_process::WorkerProcess;
use crate::wire::protocol::{Killed, LinkId, Ran, ToClient, ToWorker, WorkerInfo};

impl Reactor {
    pub(super) fn tell_client(
        &mut self,
        now: Instant,
        id: ClientId,
        message: &ToClient,
        fds: Vec<OwnedFd>,
    ) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        if let Err(error) = client.connection.send(message, fds) {
            tracing::warn!(%error, "could not tell a client");
            self.forget_client(now, id);
        }
    }

    pub(super) fn tell_worker(&self, id: WorkerId, message: &ToWorker, fds: Vec<OwnedFd>) {
        if let Some(worker) = self.workers.get(&id)
            && let Err(error) = worker.send(message, fds)
        {
            // Its death or its hang-up tells the rest.
            tracing::debug!(worker = id, %error, "could not tell a worker");
        }
    }

    pub(super) fn perform(&mut self, now: Instant, action: Action) {
        match action {
            Action::Spawn { worker } => self.spawn(now, worker),
            Action::Attach {
                worker,
                link,
                client,
            } => match LinkRecord::create(worker) {
                Ok(mut held) => {
                    let mut fds = held.take_for_worker();
                    fds.extend(self.client_process(client));
                    self.tell_worker(worker, &ToWorker::Attach { link }, fds);
                    self.links.insert(link, held);
                }
                Err(why) => self.pool.attach_failed(now, worker, link, why),
            },
            Action::Deliver {
                client,
                request,
                link,
                worker,
            } => {
                if let Some(held) = self.links.get_mut(&link) {
                    let mut fds = held.take_for_client();
                    if self.standalone.is_some() {
                        let known = self.workers.get(&worker.id);
                        fds.extend(known.and_then(WorkerProcess::handle));
                    }
                    let pid = worker.pid;
                    tracing::info!(link = link.0, client, worker = worker.id, pid, "link made");
                    let message = ToClient::Link {
                        request,
                        link,
                        worker,
                    };
                    self.tell_client(now, client, &message, fds);
                }
            }
            Action::Refuse {
                client,
                request,
                reason,
            } => {
                self.tell_client(
                    now,
                    client,
                    &ToClient::Refused { request, reason },
                    Vec::new(),
                );
            }
            Action::GrantKey {
                client,
                request,
                link,
                grant,
                fresh,
            } => {
                let message = ToClient::KeyGranted {
                    request,
                    link,
                    grant,
                    fresh,
                };
                self.tell_client(now, client, &message, Vec::new());
            }
            Action::RefuseKey {
                client,
                request,
                reason,
            } => {
                let message = ToClient::KeyRefused { request, reason };
                self.tell_client(now, client, &message, Vec::new());
            }
            Action::KeyGone { client, request } => {
                self.tell_client(now, client, &ToClient::KeyGone { request }, Vec::new());
            }
            Action::ReleaseKey { worker, key, grant } => {
                self.tell_worker(worker, &ToWorker::ReleaseKey { key, grant }, Vec::new());
            }
            Action::Retire { worker } => {
                self.tell_worker(worker, &ToWorker::Retire, Vec::new());
            }
            Action::Detach { worker, link } => {
                self.let_go(worker, link);
                tracing::info!(link = link.0, worker, "link released");
                self.tell_worker(worker, &ToWorker::Detach { link }, Vec::new());
            }
            Action::Retired { client, link } => {
                self.tell_client(now, client, &ToClient::Retired { link }, Vec::new());
            }
            Action::Died {
                client,
                link,
                worker,
                exit,
                why,
            } => {
                tracing::warn!(worker = worker.id, pid = worker.pid, %exit, "a worker died");
                let message = self.death_report(link, worker, exit, why);
                self.tell_client(now, client, &message, Vec::new());
            }
            Action::Leaving { client, link } => {
                self.tell_client(now, client, &ToClient::Leaving { link }, Vec::new());
            }
            Action::AskForStacks { worker } => {
                if let Some(known) = self.workers.get(&worker) {
                    known.ask_for_stacks();
                }
            }
            Action::Stop { worker, step } => {
                if let Some(known) = self.workers.get_mut(&worker) {
                    tracing::info!(worker, ?step, "stopping a worker");
                    known.stop(step);
                }
            }
            Action::Forget { worker } => {
                self.workers.remove(&worker);
                self.links.retain(|_, held| held.worker() != worker);
            }
            Action::ForgetLink { link } => {
                self.links.remove(&link);
            }
        }
    }

    /// Releases a link, and keeps its counts.
    fn let_go(&mut self, worker: WorkerId, link: LinkId) {
        if let (Some(held), Some(known)) = (self.links.remove(&link), self.workers.get_mut(&worker))
        {
            known.add_counted(held.end().counters());
        }
    }

    /// What is to be said of a dead worker to the client of this link. Its links are kept until all
    /// is said.
    fn death_report(
        &self,
        link: LinkId,
        worker: WorkerInfo,
        exit: Exit,
        why: Option<Killed>,
    ) -> ToClient {
        let stacks = self
            .workers
            .get(&worker.id)
            .map(WorkerProcess::stacks)
            .unwrap_or_default();
        let mut links = self.links.iter();
        let ran = links
            .find(|(_, held)| held.worker() == worker.id && held.end().running().is_some())
            .map(|(id, _)| *id);
        let ran = match ran {
            // Whose memory it is cannot be told.
            _ if matches!(why, Some(Killed::Memory { .. })) => Ran::Nothing,
            // A thread that some function has started is no reason to blame the one that runs.
            _ if stacks.blame_another_thread() => Ran::Nothing,
            None => Ran::Nothing,
            Some(id) if id == link => Ran::Here,
            Some(_) => Ran::Elsewhere,
        };
        ToClient::Died {
            link,
            worker,
            exit,
            ran,
            why,
            stack: stacks.text,
        }
    }

    fn spawn(&mut self, now: Instant, id: WorkerId) {
        let events = self.events.clone();
        let deliver = move |said| drop(events.send(Event::Worker(id, said)));
        match WorkerProcess::prepare(deliver) {
            Ok((worker, fds)) => {
                self.workers.insert(id, worker);
                self.zygotes.request(id, fds);
            }
            Err(error) => {
                let why = format!(
                    "could not make a worker's control socket: {}",
                    explain(&error)
                );
                self.pool.spawn_failed(now, id, why);
            }
        }
    }
}
