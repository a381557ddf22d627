//! Sessions: the worker of each key, its current attachment, and the requests that wait in line.
//!
//! The supervisor permits an attachment by a *grant* with a number of its own. Only the worker knows
//! when an attachment has ended, so a key is granted again when its worker says so, or has died. A
//! message of the worker about an earlier grant has crossed with a message of the supervisor, and is
//! ignored.

use super::key_lines::{Entry, Holder, KeyRequest};
use super::placement::{Candidate, least_loaded};
use super::*;
use crate::wire::protocol::{Key, KeyRefusal};

/// Maximum number of requests that wait for one key.
const LONGEST_LINE: usize = 4096;

/// The number of keys in each state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyCounts {
    /// Sessions without an attachment.
    pub(crate) detached: u32,
    /// Requests that wait in line.
    pub(crate) waiting: u32,
}

impl Pool {
    /// The counts of each worker. None: of keys that have no worker yet.
    pub(crate) fn key_counts(&self) -> BTreeMap<Option<WorkerId>, KeyCounts> {
        let mut all: BTreeMap<_, KeyCounts> = BTreeMap::new();
        for entry in self.keys.entries.values() {
            let untold = entry.holder.as_ref().is_some_and(|holder| !holder.told);
            let counts = all.entry(entry.worker).or_default();
            counts.detached += u32::from(entry.has_session && entry.holder.is_none());
            counts.waiting += u32::from(untold);
            counts.waiting += u32::try_from(entry.line.len()).unwrap_or(u32::MAX);
        }
        all
    }

    /// A client asks to attach to the session of a key.
    pub(crate) fn acquire_key(
        &mut self,
        now: Instant,
        client: ClientId,
        request: RequestId,
        key: Key,
        max_workers: u32,
        wait: bool,
    ) {
        let failed = |why: &str| KeyRefusal::Failed(why.into());
        if self.closing {
            return self.refuse_key(client, request, failed(SHUTTING_DOWN));
        }
        if self.draining {
            return self.refuse_key(client, request, failed(DRAINING));
        }
        let asked = KeyRequest {
            client,
            request,
            limit: self.limit(max_workers),
            since: now,
        };
        let entry = self.keys.entries.entry(key).or_default();
        let taken = match &entry.holder {
            Some(holder) => !holder.left || !entry.line.is_empty(),
            None => !entry.line.is_empty(),
        };
        if taken && !wait {
            return self.refuse_key(client, request, KeyRefusal::Taken);
        }
        if entry.line.len() >= LONGEST_LINE {
            let why = "too many requests for one key are waiting; wait for their answers";
            return self.refuse_key(client, request, failed(why));
        }
        entry.line.push_back(asked);
        self.grant_next(key);
    }

    /// A client withdraws its request for a key, which waits, or was granted and not used.
    pub(crate) fn release_key(&mut self, client: ClientId, request: RequestId, key: Key) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        let is = |asked: &KeyRequest| asked.client == client && asked.request == request;
        if entry
            .holder
            .as_ref()
            .is_some_and(|holder| is(&holder.request))
        {
            self.take_back(key);
        } else {
            entry.line.retain(|asked| !is(asked));
        }
    }

    /// A client has seen the end of its attachment. The worker's message about it may be on its way.
    pub(crate) fn left_key(&mut self, client: ClientId, key: Key, grant: u64) {
        if let Some(entry) = self.keys.entries.get_mut(&key)
            && entry.grant == grant
            && let Some(holder) = &mut entry.holder
            && holder.request.client == client
        {
            holder.left = true;
        }
    }

    /// The worker says that an attachment has ended, and whether its session goes on (`live`).
    pub(crate) fn key_free(&mut self, worker: WorkerId, key: Key, grant: u64, live: bool) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        if entry.worker != Some(worker) || entry.grant != grant {
            return;
        }
        // A worker may say so twice. A holder that has not been told yet is a later one.
        entry.holder.take_if(|holder| holder.told);
        if !live {
            self.end_key(key);
        }
        self.grant_next(key);
    }

    /// A client is gone. Its requests are withdrawn; the next in line waits until the workers have
    /// handled all that the client had sent.
    pub(super) fn take_keys_back(&mut self, client: ClientId) {
        let mut held = Vec::new();
        for (&key, entry) in &mut self.keys.entries {
            entry.line.retain(|asked| asked.client != client);
            if entry.began.is_some_and(|(began, _)| began == client) {
                entry.began = None;
            }
            let holder = entry.holder.as_ref();
            if holder.is_some_and(|holder| holder.request.client == client) {
                held.push(key);
            }
        }
        for key in held {
            self.take_back(key);
        }
    }

    /// A worker is dead, or could not be forked: its sessions are gone.
    pub(super) fn reap_keys(&mut self, worker: WorkerId) {
        for key in self.keys.of_worker(worker) {
            self.put_back(key);
            if let Some(entry) = self.keys.entries.get_mut(&key) {
                entry.holder = None;
            }
            self.end_key(key);
            self.grant_next(key);
        }
    }

    /// A worker takes no more streams: each of its sessions ends when it is detached.
    pub(super) fn retire_keys(&mut self, worker: WorkerId) {
        for key in self.keys.of_worker(worker) {
            self.leave_worker(key);
        }
        if self.keys.of(worker) > 0 {
            self.actions.push(Action::Retire { worker });
        }
    }

    /// The worker of a key is to end. A holder that was not told waits again: for the end of the
    /// session, or, if there is none, for another worker.
    fn leave_worker(&mut self, key: Key) {
        self.put_back(key);
        let entry = self.keys.entries.get(&key);
        if !entry.is_some_and(|entry| entry.has_session) {
            self.keys.place(key, None);
            self.grant_next(key);
        }
    }

    /// Puts a holder that its grant was not sent to back in line, as the first.
    fn put_back(&mut self, key: Key) {
        self.keys.pending.remove(&key);
        if let Some(entry) = self.keys.entries.get_mut(&key)
            && let Some(holder) = entry.holder.take_if(|holder| !holder.told)
        {
            entry.line.push_front(holder.request);
        }
    }

    /// Refuses all requests that wait: of every key (`all`), or of the keys without a worker.
    pub(super) fn refuse_keys(&mut self, why: &str, all: bool) {
        let entries = self.keys.entries.iter();
        let which: Vec<_> = entries
            .filter(|(_, entry)| all || entry.worker.is_none())
            .map(|(key, _)| *key)
            .collect();
        for key in which {
            self.put_back(key);
            let Some(entry) = self.keys.entries.get_mut(&key) else {
                continue;
            };
            for asked in std::mem::take(&mut entry.line) {
                let reason = KeyRefusal::Failed(why.into());
                self.refuse_key(asked.client, asked.request, reason);
            }
            self.grant_next(key);
        }
    }

    /// Finds a worker for each key that has none, and a link for each client that is to be attached.
    pub(super) fn reconcile_keys(&mut self, now: Instant, gauges: &impl Gauges) {
        for key in std::mem::take(&mut self.keys.pending) {
            self.attach_key(now, key, gauges);
        }
    }

    /// Takes one key's holder a step further.
    fn attach_key(&mut self, now: Instant, key: Key, gauges: &impl Gauges) {
        let Some(entry) = self.keys.entries.get(&key) else {
            return;
        };
        let Some(asked) = entry.holder.as_ref().map(|holder| holder.request) else {
            return;
        };
        let worker = match entry.worker {
            None => self.worker_for_key(now, asked, gauges),
            worker => worker,
        };
        let Some(worker) = worker else {
            if self.restarts.hopeless(asked.since) {
                let why = format!(
                    "workers end as soon as they start: {}",
                    self.restarts.reasons()
                );
                return self.drop_holder(key, why);
            }
            self.keys.pending.insert(key);
            return;
        };
        self.keys.place(key, Some(worker));
        if !self.workers.get(&worker).is_some_and(Worker::takes_links) {
            return self.leave_worker(key);
        }
        let mut links = self.links.iter();
        let link = links
            .find(|(_, link)| link.client == asked.client && link.worker == worker)
            .map(|(id, link)| (*id, link.wait.is_none()));
        if let Some((link, true)) = link {
            return self.grant(key, link);
        }
        if link.is_none() {
            if let Some(workers) = self.quota_workers(asked.client)
                && !workers.contains(&worker)
            {
                let reason = self.over_quota(asked.client, &workers);
                return self.drop_holder(key, no_link(reason));
            }
            let KeyRequest {
                client,
                request,
                limit,
                since,
            } = asked;
            let wait = Wait {
                client,
                request,
                limit,
                since,
                key: Some(key),
            };
            self.assign(now, worker, wait);
        }
        self.keys.pending.insert(key); // until the link is there
    }

    /// A worker for a new key: an idle one, else a new one, else the one with the fewest streams.
    fn worker_for_key(
        &mut self,
        now: Instant,
        asked: KeyRequest,
        gauges: &impl Gauges,
    ) -> Option<WorkerId> {
        let within = self.quota_workers(asked.client);
        let allowed = |id| within.as_ref().is_none_or(|within| within.contains(id));
        let candidates: Vec<_> = self
            .workers
            .iter()
            .filter(|(id, worker)| worker.takes_links() && allowed(id))
            .map(|(id, worker)| {
                let residents: u32 = worker.links.iter().map(|l| gauges.residents(*l)).sum();
                let sessions = u32::try_from(self.keys.of(*id)).unwrap_or(u32::MAX);
                Candidate {
                    worker: *id,
                    residents: residents.saturating_add(sessions),
                    links: worker.links.len(),
                    running: worker.stage == Stage::Running,
                }
            })
            .collect();
        let least = least_loaded(candidates.iter().copied());
        let load = |id| candidates.iter().find(|c| Some(c.worker) == id);
        let idle = load(least).is_some_and(|candidate| candidate.residents == 0);
        let more = within.is_none() && self.serving() < asked.limit as usize;
        if idle || !more {
            return least;
        }
        match self.restarts.ready(now) {
            true => Some(self.spawn(now)),
            false => least,
        }
    }

    fn grant(&mut self, key: Key, link: LinkId) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        let Some(holder) = &mut entry.holder else {
            return;
        };
        holder.told = true;
        let KeyRequest {
            client, request, ..
        } = holder.request;
        let fresh = !std::mem::replace(&mut entry.has_session, true);
        if fresh {
            entry.began = Some((client, request));
        }
        self.keys.last_grant += 1;
        entry.grant = self.keys.last_grant;
        self.actions.push(Action::GrantKey {
            client,
            request,
            link,
            grant: entry.grant,
            fresh,
        });
    }

    /// Gives a key without a holder to the next request in line. Forgets the key if there is no request
    /// and no session.
    pub(super) fn grant_next(&mut self, key: Key) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        let takes = |id| self.workers.get(&id).is_some_and(Worker::takes_links);
        // A worker that is to end says when the session has ended.
        if entry.holder.is_some() || entry.worker.is_some_and(|id| !takes(id)) {
            return;
        }
        match entry.line.pop_front() {
            Some(asked) => {
                entry.holder = Some(Holder {
                    request: asked,
                    told: false,
                    left: false,
                });
                self.keys.pending.insert(key);
            }
            None if !entry.has_session => {
                self.keys.place(key, None);
                self.keys.entries.remove(&key);
            }
            None => {}
        }
    }

    /// Ends the attachment, or the grant, of a key's holder.
    fn take_back(&mut self, key: Key) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        match (entry.worker, &entry.holder) {
            (Some(worker), Some(holder)) if holder.told => {
                let grant = entry.grant;
                self.actions.push(Action::ReleaseKey { worker, key, grant });
            }
            _ => {
                entry.holder = None;
                self.keys.pending.remove(&key);
                self.grant_next(key);
            }
        }
    }

    /// Refuses the request of a key's holder.
    fn drop_holder(&mut self, key: Key, why: String) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        self.keys.pending.remove(&key);
        if let Some(holder) = entry.holder.take() {
            let KeyRequest {
                client, request, ..
            } = holder.request;
            self.refuse_key(client, request, KeyRefusal::Failed(why));
        }
        self.grant_next(key);
    }

    /// The link for a key's holder could not be made.
    pub(super) fn key_failed(&mut self, key: Key, wait: &Wait, why: String) {
        let holder = |entry: &Entry| entry.holder.as_ref().map(|holder| holder.request);
        let asked = self.keys.entries.get(&key).and_then(holder);
        if asked.is_some_and(|asked| (asked.client, asked.request) == (wait.client, wait.request)) {
            self.drop_holder(key, why);
        }
    }

    /// The session of a key has ended.
    fn end_key(&mut self, key: Key) {
        self.keys.place(key, None);
        if let Some(entry) = self.keys.entries.get_mut(&key) {
            entry.has_session = false;
            if let Some((client, request)) = entry.began.take() {
                self.actions.push(Action::KeyGone { client, request });
            }
        }
    }

    fn refuse_key(&mut self, client: ClientId, request: RequestId, reason: KeyRefusal) {
        self.actions.push(Action::RefuseKey {
            client,
            request,
            reason,
        });
    }
}

fn no_link(reason: Refusal) -> String {
    match reason {
        Refusal::Failed(why) => why,
        Refusal::AtLimit => "the session of this key runs in a worker that this event loop has \
            no link to, and its process has as many links as one client of the supervisor may have \
            (`--client-workers`)"
            .into(),
    }
}
