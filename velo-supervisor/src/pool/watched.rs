//! The limits that links ask the supervisor to watch, and the last look at each worker.

use std::time::{Duration, Instant};

use velo_shm::Progress;

use crate::wire::protocol::LinkId;

/// The limits of the streams of a link: the strictest of all that were ever open there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Watch {
    /// How long a step may take.
    pub(crate) stall: Option<Duration>,
    /// How many bytes of its own the worker may have.
    pub(crate) memory: Option<u64>,
}

impl Watch {
    pub(super) fn strictest(self, other: Watch) -> Watch {
        let stall = [self.stall, other.stall].into_iter().flatten().min();
        let memory = [self.memory, other.memory].into_iter().flatten().min();
        Watch { stall, memory }
    }
}

/// What the looks at a worker have shown.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) progress: Vec<(LinkId, Progress)>,
    /// When the progress last changed.
    pub(super) since: Instant,
    /// Since when input waits without progress.
    pub(super) waiting: Option<Instant>,
}

/// The stacks that a worker writes before it is killed.
#[derive(Debug)]
pub(super) struct Writing {
    /// How many bytes it had written at the last look.
    pub(super) written: u64,
    pub(super) next_look: Instant,
}
