//! One client as the supervisor sees it: its control connection and its process.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::os::process::Process;
use crate::supervisor::connection::Connection;

/// What a process that has connected may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything.
    Full,
    /// To look at the supervisor of a program, and to end a stream of it.
    Look,
}

/// A client that has connected.
#[derive(Debug)]
pub(super) struct ClientConnection {
    pub(super) connection: Connection,
    /// Its process id.
    pub(super) pid: i32,
    /// The process, for workers that may outlive the supervisor.
    pub(super) pidfd: Option<OwnedFd>,
    /// Ends the connection when the client's process ends, because a child that the client has forked
    /// may hold the socket open.
    #[expect(dead_code, reason = "held for its effect on drop")]
    pub(super) process: Option<Process>,
    /// When it connected.
    pub(super) since: Instant,
    /// The orders that it may send.
    pub(super) access: Access,
    /// Whether it has sent a `Hello` of this version.
    pub(super) greeted: bool,
}

impl ClientConnection {
    /// Whether it is another process that has not greeted.
    pub(super) fn is_silent(&self) -> bool {
        !self.greeted && self.pidfd.is_some()
    }
}
