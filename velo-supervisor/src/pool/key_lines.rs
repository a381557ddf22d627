//! The record of each key: its worker, its current attachment, and the line of requests behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::ids::{ClientId, WorkerId};
use crate::wire::protocol::{Key, RequestId};

/// A request to attach to a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyRequest {
    pub(super) client: ClientId,
    pub(super) request: RequestId,
    /// Maximum number of workers for this client.
    pub(super) limit: u32,
    /// When the request came.
    pub(super) since: Instant,
}

/// The request that has the key now, or gets it as soon as there is a link.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) request: KeyRequest,
    /// Whether the grant was sent to the client.
    pub(super) told: bool,
    /// Whether the client has detached.
    pub(super) left: bool,
}

/// One key.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The worker of the session. None until one is chosen.
    pub(super) worker: Option<WorkerId>,
    /// Whether the worker has a session of this key: a grant was given, and the worker has not reported
    /// the session's end.
    pub(super) has_session: bool,
    /// The number of the last grant.
    pub(super) grant: u64,
    pub(super) holder: Option<Holder>,
    /// The waiting line.
    pub(super) line: VecDeque<KeyRequest>,
    /// The request whose grant began the session.
    pub(super) began: Option<(ClientId, RequestId)>,
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) last_grant: u64,
    /// Keys whose grant was not sent to their holder yet.
    pub(super) pending: BTreeSet<Key>,
    /// Number of keys of each worker.
    counts: BTreeMap<WorkerId, usize>,
}

impl Keys {
    /// Number of keys of a worker.
    pub(super) fn of(&self, worker: WorkerId) -> usize {
        self.counts.get(&worker).copied().unwrap_or(0)
    }

    /// Whether a holder waits for a worker, or for a link to it.
    pub(super) fn are_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The keys of a worker.
    pub(super) fn of_worker(&self, worker: WorkerId) -> Vec<Key> {
        let entries = self.entries.iter();
        let of_it = entries.filter(|(_, entry)| entry.worker == Some(worker));
        of_it.map(|(key, _)| *key).collect()
    }

    /// Sets the worker of a key.
    pub(super) fn place(&mut self, key: Key, worker: Option<WorkerId>) {
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
