//! What can go wrong, one enum for each side of the conversation.

use std::io;
use std::path::PathBuf;

use crate::os::limits::explain;
use crate::wire::transport::TransportError;

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
    /// No standalone supervisor listens there.
    #[error("no supervisor listens at `{}` ({source})", path.display())]
    Nobody {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A supervisor listens there, and accepts no connection.
    #[error(
        "the supervisor at `{}` accepts no connection: its process is stopped, or too busy",
        path.display()
    )]
    Silent {
        /// Where it listens.
        path: PathBuf,
    },
    /// The standalone supervisor belongs to another user.
    #[error(
        "the supervisor at `{}` is run by the user with id `{uid}`; use one of your own",
        path.display()
    )]
    Foreign {
        /// Where it listens.
        path: PathBuf,
        /// The user whom it belongs to.
        uid: u32,
    },
    /// The supervisor does not serve this client.
    #[error("the supervisor turned this client away: {0}")]
    TurnedAway(String),
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
    /// Its earlier messages can still be read.
    pub(crate) fn from_send(error: TransportError) -> Self {
        match error {
            TransportError::Closed => Self::Lost,
            other => other.into(),
        }
    }
}

/// Why a standalone supervisor could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another one serves at the same path.
    #[error(
        "a supervisor (pid `{pid}`) already serves `{}`; stop it with `velo supervisor stop`, or \
         choose another `--socket`",
        path.display()
    )]
    Running {
        /// Its process id.
        pid: i32,
        /// Where it listens.
        path: PathBuf,
    },
    /// The folder of the socket is not this user's alone.
    #[error("the folder `{}` {why}; velo listens only where nobody else can", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The fault of the folder.
        why: &'static str,
    },
    /// The socket's path names a file that is no socket.
    #[error("`{}` is no socket; choose another `--socket`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot listen at the path.
    #[error("cannot listen at `{}`: {source}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused another call.
    #[error("could not start the supervisor: {0}")]
    Start(#[from] io::Error),
}

/// Why a worker's call on its seat failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerControlError {
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
        /// The step that failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The environment does not say where the supervisor is.
    #[error(
        "`{}` is not set to a file descriptor; only a supervisor starts a zygote",
        crate::wire::protocol::ZYGOTE_FD_ENV
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
    /// The supervisor sent a message that does not belong here.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(&'static str),
    /// The control socket failed.
    #[error("the zygote's control socket failed: {0}")]
    Transport(#[from] TransportError),
}
