//! Questions of clients about workers and streams, until every worker has answered or the time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::pool::{ClientId, WorkerId};
use crate::wire::protocol::Question;

/// One question, and the answers so far.
#[derive(Debug)]
pub(super) struct Look {
    /// The client that asks.
    pub(super) client: ClientId,
    pub(super) question: Question,
    /// When it is answered, also without the workers that have not answered by then.
    pub(super) until: Instant,
    /// The workers that have not answered.
    pub(super) waiting: BTreeSet<WorkerId>,
    pub(super) answers: BTreeMap<WorkerId, String>,
    /// Whether the workers that have not answered were asked for their stacks.
    pub(super) stacks: bool,
}

/// The open questions.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pub(super) next: u64,
    pub(super) open: BTreeMap<u64, Look>,
}

impl Looks {
    /// Notes the answer of a worker, unless it comes too late.
    pub(super) fn told(&mut self, ask: u64, worker: WorkerId, answer: String) {
        if let Some(look) = self.open.get_mut(&ask)
            && look.waiting.remove(&worker)
        {
            look.answers.insert(worker, answer);
        }
    }

    /// When the next question is answered in any case.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.open.values().map(|look| look.until).min()
    }
}
