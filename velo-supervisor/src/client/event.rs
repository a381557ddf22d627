//! The reports of a supervisor to a client.

use std::os::fd::OwnedFd;

use velo_shm::Link;

use crate::os::exit::Exit;
use crate::wire::protocol::{
    KeyRefusal, Killed, LinkId, Ran, Refusal, RequestId, Status, Welcome, WorkerInfo, WorkerLook,
};

/// A report of the supervisor to a client.
#[derive(Debug)]
pub enum ClientEvent {
    /// The supervisor's greeting: the first event.
    Hello(Welcome),
    /// A request is met.
    Link {
        /// The request.
        request: RequestId,
        /// The link's identity.
        link: LinkId,
        /// The worker on its other side.
        worker: WorkerInfo,
        /// This side of it.
        end: Link,
        /// From a standalone supervisor: a pidfd of the worker, readable when it has ended. It tells
        /// of that also when the supervisor is gone, which its workers outlive.
        process: Option<OwnedFd>,
    },
    /// A request cannot be met.
    Refused {
        /// The request.
        request: RequestId,
        /// Why not.
        reason: Refusal,
    },
    /// The link had no open stream for the idle timeout, and is gone. Ask for another one.
    LinkRetired {
        /// The link.
        link: LinkId,
    },
    /// The worker has outgrown what its streams allow: it takes no more of them, and is stopped once
    /// the last one has ended. Ask for another link for new ones.
    LinkLeaving {
        /// The link.
        link: LinkId,
    },
    /// The worker is dead, and with it all streams on the link.
    WorkerDied {
        /// The link.
        link: LinkId,
        /// The worker.
        worker: WorkerInfo,
        /// How it ended.
        exit: Exit,
        /// Which stream function it ran; the link's board says more of one that ran here.
        ran: Ran,
        /// What the supervisor has killed it for, if it did.
        why: Option<Killed>,
        /// The stacks of its threads as it died, if it could still write them.
        stack: String,
    },
    /// A module that some client asked for cannot be preloaded; workers go on without it.
    NotPreloaded {
        /// The module.
        module: String,
        /// Why not.
        why: String,
    },
    /// The answer to [`Order::Status`].
    Status(Status),
    /// A look at one worker, for [`Order::Look`]; after the last one comes [`ClientEvent::Done`].
    Looked(WorkerLook),
    /// Lines of the supervisor's log, for [`Order::Logs`].
    Log(Vec<String>),
    /// The supervisor has accepted an [`Order`].
    Done,
    /// The supervisor cannot obey an [`Order`], and says why.
    Unable(String),
    /// A request for a key is met. What is opened on the link under this key and grant, at once, is
    /// attached to what is kept there.
    KeyGranted {
        /// The request.
        request: RequestId,
        /// The link to the worker that has it.
        link: LinkId,
        /// The number of this attachment.
        grant: u64,
        /// Nothing was kept there before.
        fresh: bool,
    },
    /// A request for a key is not met.
    KeyRefused {
        /// The request.
        request: RequestId,
        /// Why not.
        reason: KeyRefusal,
    },
    /// The session that a `fresh` request for a key has begun has ended.
    KeyGone {
        /// The request.
        request: RequestId,
    },
    /// The supervisor is gone. Said once. Workers of an embedded one are gone with it; those of a
    /// standalone one serve the existing links until their streams have ended.
    Lost,
}
