//! The decisions of the pool, which the supervisor carries out.

use super::ids::{ClientId, WorkerId};
use crate::os::exit::Exit;
use crate::wire::protocol::{Key, KeyRefusal, Killed, LinkId, Refusal, RequestId, WorkerInfo};

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have a worker forked.
    Spawn {
        worker: WorkerId,
    },
    /// Make a link and give the worker its end.
    Attach {
        worker: WorkerId,
        link: LinkId,
        client: ClientId,
    },
    /// Give the client its end.
    Deliver {
        client: ClientId,
        request: RequestId,
        link: LinkId,
        worker: WorkerInfo,
    },
    Refuse {
        client: ClientId,
        request: RequestId,
        reason: Refusal,
    },
    /// Tell the client that it may attach to the session.
    GrantKey {
        client: ClientId,
        request: RequestId,
        link: LinkId,
        grant: u64,
        fresh: bool,
    },
    RefuseKey {
        client: ClientId,
        request: RequestId,
        reason: KeyRefusal,
    },
    /// Tell the client that the session which its request began has ended.
    KeyGone {
        client: ClientId,
        request: RequestId,
    },
    /// Tell the worker that this attachment has ended.
    ReleaseKey {
        worker: WorkerId,
        key: Key,
        grant: u64,
    },
    /// Tell the worker to end its detached sessions.
    Retire {
        worker: WorkerId,
    },
    /// Tell the worker that the link is released, and forget it.
    Detach {
        worker: WorkerId,
        link: LinkId,
    },
    /// Tell the client that the link is gone.
    Retired {
        client: ClientId,
        link: LinkId,
    },
    /// Tell the client that the worker is dead, and forget the link.
    Died {
        client: ClientId,
        link: LinkId,
        worker: WorkerInfo,
        exit: Exit,
        why: Option<Killed>,
    },
    /// Tell the client that the worker takes no more streams.
    Leaving {
        client: ClientId,
        link: LinkId,
    },
    /// Have the worker write down the stacks of its threads.
    AskForStacks {
        worker: WorkerId,
    },
    Stop {
        worker: WorkerId,
        step: Step,
    },
    /// The worker is gone: drop its record.
    Forget {
        worker: WorkerId,
    },
    /// The link was never used: drop it.
    ForgetLink {
        link: LinkId,
    },
}

/// The steps in which a worker is stopped, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Drain,
    Terminate,
    Kill,
}
