//! What can go wrong, one enum for each side of the conversation.

use std::io;

use crate::limits::explain;
use crate::transport::TransportError;

/// Why a client's call to the supervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The supervisor's thread or one of its descriptors could not be made.
    #[error("could not start the supervisor: {}", explain(.0))]
    Start(#[source] io::Error),
    /// No command was given to start the zygote with.
    #[error("no zygote command is configured; name the program that calls `zygote::serve`")]
    NoCommand,
    /// The supervisor is gone; connect again.
    #[error("the supervisor is gone; connect again")]
    Lost,
    /// The supervisor speaks another version of the protocol.
    #[error(
        "the supervisor speaks protocol version `{theirs}`, this program `{ours}`; run the same \
         version of velo on both sides"
    )]
    Version {
        /// The supervisor's version.
        theirs: u32,
        /// This program's version.
        ours: u32,
    },
    /// The control socket failed.
    #[error("the supervisor's control socket failed: {0}")]
    Transport(#[from] TransportError),
}

impl SupervisorError {
    /// A supervisor that has closed its end is gone, which callers want to know apart from the rest.
    /// What it had said before can still be read.
    pub(crate) fn from_send(error: TransportError) -> Self {
        match error {
            TransportError::Closed => Self::Lost,
            other => other.into(),
        }
    }
}

/// Why a worker's call on its seat failed.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// The control socket failed.
    #[error("the worker's control socket failed: {0}")]
    Transport(#[from] TransportError),
}

/// Why the zygote stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// A system call failed.
    #[error("the zygote could not {what}: {source}")]
    Io {
        /// What it was about to do.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The environment does not say where the supervisor is.
    #[error(
        "`{}` is not set to a file descriptor; only a supervisor starts a zygote",
        crate::zygote::ZYGOTE_FD_ENV
    )]
    NoSupervisor,
    /// The supervisor speaks another version of the protocol.
    #[error(
        "the supervisor speaks protocol version `{theirs}`, this zygote `{ours}`; run the same \
         version of velo on both sides"
    )]
    Version {
        /// The supervisor's version.
        theirs: u32,
        /// This program's version.
        ours: u32,
    },
    /// The supervisor said something that does not belong here.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(&'static str),
    /// The control socket failed.
    #[error("the zygote's control socket failed: {0}")]
    Transport(#[from] TransportError),
}
