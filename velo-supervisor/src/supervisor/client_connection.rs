//! One client as the supervisor sees it: its control connection and its process.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::os::process::Process;
use crate::supervisor::connection::Connection;

/// A client that has connected.
#[derive(Debug)]
pub(super) struct ClientConnection {
    pub(super) connection: Connection,
    /// Its process id. 0 for a client in the supervisor's own process.
    pub(super) pid: i32,
    /// The process, for workers that may outlive the supervisor.
    pub(super) pidfd: Option<OwnedFd>,
    /// Ends the connection when the client's process ends, because a child that the client has forked
    /// may hold the socket open.
    #[expect(dead_code, reason = "held for its effect on drop")]
    pub(super) process: Option<Process>,
    /// When it connected.
    pub(super) since: Instant,
    /// Whether it has sent a `Hello` of this version.
    pub(super) greeted: bool,
}
