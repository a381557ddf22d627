//! Streams that are kept under a key: which worker has one, who is attached, and who waits in line.
//!
//! An attachment is a *grant* with a number of its own. Only the worker knows when one is over, so
//! that a key is granted again when its worker has said so, or has died. What it says of any other
//! grant than the current one has crossed with news from here, and is not heard.

use super::placement::{Candidate, least_loaded};
use super::*;
use crate::wire::protocol::{Key, KeyRefusal};

/// More requests for one key than this never wait at a time.
const LONGEST_LINE: usize = 4096;

/// Who wants to be attached.
#[derive(Debug, Clone, Copy)]
struct Asker {
    client: ClientId,
    request: RequestId,
    /// How many workers there may be for it.
    limit: u32,
    since: Instant,
}

/// Who is attached, or is going to be.
#[derive(Debug)]
struct Holder {
    asker: Asker,
    /// The client knows.
    told: bool,
    /// The client says that it is not attached any more.
    left: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// None until there is one for it.
    worker: Option<WorkerId>,
    /// The worker was given it, and has not said that it has ended.
    kept: bool,
    /// The number of the last grant.
    grant: u64,
    holder: Option<Holder>,
    line: VecDeque<Asker>,
    /// Whose grant began what is kept.
    began: Option<(ClientId, RequestId)>,
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: BTreeMap<Key, Entry>,
    last_grant: u64,
    /// Those whose holder has not been told.
    pending: BTreeSet<Key>,
    /// How many each worker has.
    counts: BTreeMap<WorkerId, usize>,
}

impl Keys {
    /// How many keys a worker has.
    pub(super) fn of(&self, worker: WorkerId) -> usize {
        self.counts.get(&worker).copied().unwrap_or(0)
    }

    /// Whether a key waits for its worker, or for a link to it.
    pub(super) fn are_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn of_worker(&self, worker: WorkerId) -> Vec<Key> {
        let entries = self.entries.iter();
        let of_it = entries.filter(|(_, entry)| entry.worker == Some(worker));
        of_it.map(|(key, _)| *key).collect()
    }

    fn place(&mut self, key: Key, worker: Option<WorkerId>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let before = std::mem::replace(&mut entry.worker, worker);
        if let Some(count) = before.and_then(|before| self.counts.get_mut(&before)) {
            *count -= 1;
        }
        self.counts.retain(|_, count| *count > 0);
        if let Some(worker) = worker {
            *self.counts.entry(worker).or_default() += 1;
        }
    }
}

/// How many keys are in which state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyCounts {
    /// They are kept, and nobody is attached.
    pub(crate) parked: u32,
    /// So many requests wait for one.
    pub(crate) waiting: u32,
}

impl Pool {
    /// How many keys of each worker, and of those that have none yet (None), are in which state.
    pub(crate) fn key_counts(&self) -> BTreeMap<Option<WorkerId>, KeyCounts> {
        let mut all: BTreeMap<_, KeyCounts> = BTreeMap::new();
        for entry in self.keys.entries.values() {
            let untold = entry.holder.as_ref().is_some_and(|holder| !holder.told);
            let counts = all.entry(entry.worker).or_default();
            counts.parked += u32::from(entry.kept && entry.holder.is_none());
            counts.waiting += u32::from(untold);
            counts.waiting += u32::try_from(entry.line.len()).unwrap_or(u32::MAX);
        }
        all
    }

    /// A client asks for what is kept under a key.
    pub(crate) fn acquire_key(
        &mut self,
        now: Instant,
        client: ClientId,
        request: RequestId,
        key: Key,
        asked: u32,
        wait: bool,
    ) {
        let failed = |why: &str| KeyRefusal::Failed(why.into());
        if self.closing {
            return self.refuse_key(client, request, failed(SHUTTING_DOWN));
        }
        if self.draining {
            return self.refuse_key(client, request, failed(DRAINING));
        }
        let asker = Asker {
            client,
            request,
            limit: self.limit(asked),
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
        entry.line.push_back(asker);
        self.grant_next(key);
    }

    /// A request for a key is not wanted any more: it waits, or was granted and not used.
    pub(crate) fn release_key(&mut self, client: ClientId, request: RequestId, key: Key) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        let is = |asker: &Asker| asker.client == client && asker.request == request;
        if entry
            .holder
            .as_ref()
            .is_some_and(|holder| is(&holder.asker))
        {
            self.take_back(key);
        } else {
            entry.line.retain(|asker| !is(asker));
        }
    }

    /// A client has seen the end of its attachment, of which the worker's word may be on its way.
    pub(crate) fn left_key(&mut self, client: ClientId, key: Key, grant: u64) {
        if let Some(entry) = self.keys.entries.get_mut(&key)
            && entry.grant == grant
            && let Some(holder) = &mut entry.holder
            && holder.asker.client == client
        {
            holder.left = true;
        }
    }

    /// The worker says that an attachment is over, and whether what it was attached to goes on.
    pub(crate) fn key_free(&mut self, worker: WorkerId, key: Key, grant: u64, live: bool) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        if entry.worker != Some(worker) || entry.grant != grant {
            return;
        }
        // It may say so twice; whoever has not been told yet is not whom it means.
        entry.holder.take_if(|holder| holder.told);
        if !live {
            self.end_key(key);
        }
        self.grant_next(key);
    }

    /// A client is gone: it waits for nothing any more, and whoever follows has to wait until its
    /// workers are done with what it has sent.
    pub(super) fn take_keys_back(&mut self, client: ClientId) {
        let mut held = Vec::new();
        for (&key, entry) in &mut self.keys.entries {
            entry.line.retain(|asker| asker.client != client);
            if entry.began.is_some_and(|(began, _)| began == client) {
                entry.began = None;
            }
            let holder = entry.holder.as_ref();
            if holder.is_some_and(|holder| holder.asker.client == client) {
                held.push(key);
            }
        }
        for key in held {
            self.take_back(key);
        }
    }

    /// A worker is dead, or was never born, and what it kept is gone.
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

    /// A worker takes no more streams: what it keeps ends when nobody is attached.
    pub(super) fn retire_keys(&mut self, worker: WorkerId) {
        for key in self.keys.of_worker(worker) {
            self.leave_worker(key);
        }
        if self.keys.of(worker) > 0 {
            self.actions.push(Action::Retire { worker });
        }
    }

    /// Whoever is to be attached in a worker that is to end waits until it has let go of the key; or
    /// has another worker, if it was not given it yet.
    fn leave_worker(&mut self, key: Key) {
        self.put_back(key);
        let kept = self.keys.entries.get(&key).is_some_and(|entry| entry.kept);
        if !kept {
            self.keys.place(key, None);
            self.grant_next(key);
        }
    }

    /// Who is to be attached, and does not know it, waits again.
    fn put_back(&mut self, key: Key) {
        self.keys.pending.remove(&key);
        if let Some(entry) = self.keys.entries.get_mut(&key)
            && let Some(holder) = entry.holder.take_if(|holder| !holder.told)
        {
            entry.line.push_front(holder.asker);
        }
    }

    /// No more keys are granted, or those only for which there is no worker: who waits is told.
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
            for asker in std::mem::take(&mut entry.line) {
                let reason = KeyRefusal::Failed(why.into());
                self.refuse_key(asker.client, asker.request, reason);
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
        let Some(asker) = entry.holder.as_ref().map(|holder| holder.asker) else {
            return;
        };
        let worker = match entry.worker {
            None => self.worker_for_key(now, asker, gauges),
            worker => worker,
        };
        let Some(worker) = worker else {
            if self.restarts.hopeless(asker.since) {
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
            .find(|(_, link)| link.client == asker.client && link.worker == worker)
            .map(|(id, link)| (*id, link.wait.is_none()));
        if let Some((link, true)) = link {
            return self.grant(key, link);
        }
        if link.is_none() {
            if let Some(workers) = self.quota_workers(asker.client)
                && !workers.contains(&worker)
            {
                let reason = self.over_quota(asker.client, &workers);
                return self.drop_holder(key, no_link(reason));
            }
            let Asker {
                client,
                request,
                limit,
                since,
            } = asker;
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
        asker: Asker,
        gauges: &impl Gauges,
    ) -> Option<WorkerId> {
        let within = self.quota_workers(asker.client);
        let allowed = |id| within.as_ref().is_none_or(|within| within.contains(id));
        let candidates: Vec<_> = self
            .workers
            .iter()
            .filter(|(id, worker)| worker.takes_links() && allowed(id))
            .map(|(id, worker)| {
                let residents: u32 = worker.links.iter().map(|l| gauges.residents(*l)).sum();
                let kept = u32::try_from(self.keys.of(*id)).unwrap_or(u32::MAX);
                Candidate {
                    worker: *id,
                    residents: residents.saturating_add(kept),
                    links: worker.links.len(),
                    running: worker.stage == Stage::Running,
                }
            })
            .collect();
        let least = least_loaded(candidates.iter().copied());
        let load = |id| candidates.iter().find(|c| Some(c.worker) == id);
        let idle = load(least).is_some_and(|candidate| candidate.residents == 0);
        let more = within.is_none() && self.serving() < asker.limit as usize;
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
        let Asker {
            client, request, ..
        } = holder.asker;
        let fresh = !std::mem::replace(&mut entry.kept, true);
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

    /// Gives a key that nobody has to the next in line; forgets it if nobody wants it.
    fn grant_next(&mut self, key: Key) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        let takes = |id| self.workers.get(&id).is_some_and(Worker::takes_links);
        // A worker that is to end lets go of it, and says so.
        if entry.holder.is_some() || entry.worker.is_some_and(|id| !takes(id)) {
            return;
        }
        match entry.line.pop_front() {
            Some(asker) => {
                let (told, left) = (false, false);
                entry.holder = Some(Holder { asker, told, left });
                self.keys.pending.insert(key);
            }
            None if !entry.kept => {
                self.keys.place(key, None);
                self.keys.entries.remove(&key);
            }
            None => {}
        }
    }

    /// Whoever has the key does not use it any more.
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

    /// Whoever is to be attached cannot be.
    fn drop_holder(&mut self, key: Key, why: String) {
        let Some(entry) = self.keys.entries.get_mut(&key) else {
            return;
        };
        self.keys.pending.remove(&key);
        if let Some(holder) = entry.holder.take() {
            let Asker {
                client, request, ..
            } = holder.asker;
            self.refuse_key(client, request, KeyRefusal::Failed(why));
        }
        self.grant_next(key);
    }

    /// The link for a key's holder could not be made.
    pub(super) fn key_failed(&mut self, key: Key, wait: &Wait, why: String) {
        let holder = |entry: &Entry| entry.holder.as_ref().map(|holder| holder.asker);
        let asker = self.keys.entries.get(&key).and_then(holder);
        if asker.is_some_and(|asker| (asker.client, asker.request) == (wait.client, wait.request)) {
            self.drop_holder(key, why);
        }
    }

    /// Nothing is kept under the key any more.
    fn end_key(&mut self, key: Key) {
        self.keys.place(key, None);
        if let Some(entry) = self.keys.entries.get_mut(&key) {
            entry.kept = false;
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
        Refusal::AtLimit => {
            "what is kept under this key runs in a worker that this event loop has \
            no link to, and its process has as many links as one client of the supervisor may have \
            (`--client-workers`)"
                .into()
        }
    }
}
