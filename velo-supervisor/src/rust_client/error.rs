//! What can go wrong with a stream, and what a function and a worker have left to say.

use std::fmt;
use std::io;

use velo_shm::RingCorrupted;

use crate::error::SupervisorError;
use crate::os::exit::Exit;
use crate::wire::protocol::Killed;

/// Why a call on a connection or a stream failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The supervisor cannot be used, or is gone.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// There is no worker for the stream, and none could be made; or a quota is reached.
    #[error("{0}")]
    Pool(String),
    /// A name of a function that is none.
    #[error("`{0}` names no function; write `module:function`")]
    Name(String),
    /// It took longer than it may. Nothing was sent or taken, and the stream goes on.
    #[error("not within the time that was given")]
    TimedOut,
    /// The function takes no more events: it has ended, or its input was ended. What it raised, if it
    /// did, is what [`recv`](super::Stream::recv) says.
    #[error("the stream takes no more events: its function has ended, or its input was ended")]
    Ended,
    /// The event can never be sent. The stream goes on.
    #[error(
        "{len} bytes cannot be sent at once: the limit is {limit} bytes, half of `max_bytes`; raise \
         it in the `StreamOptions`"
    )]
    TooLarge {
        /// How long it is.
        len: usize,
        /// How long it may be.
        limit: u64,
    },
    /// The event cannot be written as MessagePack. The stream goes on.
    #[error("the event cannot be written as MessagePack: {0}")]
    Encode(String),
    /// The result is not of the type that was asked for. It is gone; the stream goes on.
    #[error("the result is not of the type that was asked for: {0}")]
    Decode(String),
    /// The function raised an exception.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The worker is dead, and with it the function's state.
    #[error(transparent)]
    WorkerDied(#[from] WorkerDied),
    /// Another process wrote over the stream's memory.
    #[error("{0}; another process wrote over this stream's memory, its events are lost")]
    Corrupted(String),
    /// There is no shared memory for the event. The stream goes on.
    #[error("no shared memory for an event: {0}")]
    NoMemory(#[source] io::Error),
    /// The system refused a call.
    #[error("could not wait for a stream: {0}")]
    System(#[source] io::Error),
}

impl From<RingCorrupted> for StreamError {
    fn from(found: RingCorrupted) -> Self {
        Self::Corrupted(found.to_string())
    }
}

/// What a stream function raised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct FunctionError {
    /// The type of the exception, with its module unless it is a builtin: `ValueError`,
    /// `decimal.Overflow`.
    pub kind: String,
    /// The message of the exception.
    pub message: String,
    /// The traceback in the worker, as Python prints it.
    pub traceback: String,
    /// Its notes.
    pub notes: Vec<String>,
}

/// A worker that has died.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct WorkerDied {
    /// The name of the stream.
    pub stream: String,
    /// The process id that the worker had.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
    /// How many events the function had not finished.
    pub in_flight: u64,
    /// Whether this stream's function was the one that ran, or another stream's. None: no function
    /// ran, or it is unknown.
    pub culprit: Option<bool>,
    /// Which event this stream's function had taken last, counted from 1, if it was the one that ran.
    pub event: Option<u64>,
    /// What the supervisor has killed it for, if it did.
    pub why: Option<Killed>,
    /// The stacks of its threads, if it could still write them.
    pub stack: String,
}

impl fmt::Display for WorkerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = match self.in_flight {
            1 => "1 event".to_owned(),
            more => format!("{more} events"),
        };
        let Self {
            stream, pid, exit, ..
        } = self;
        write!(
            f,
            "the worker of stream `{stream}` (pid {pid}) died ({exit}) with {events} in flight"
        )?;
        if let Some(why) = &self.why {
            write!(f, "; velo killed it: {why}")?;
        }
        match (self.culprit, self.event) {
            (Some(true), Some(event)) => {
                write!(
                    f,
                    "; it was running this stream's function, at event {event}"
                )
            }
            (Some(true), None) => {
                f.write_str("; it was running this stream's function, before its first event")
            }
            (Some(false), _) => f.write_str(
                "; it was running a function of another stream, which this one only lived beside",
            ),
            (None, _) => f.write_str("; it was running no stream function"),
        }
    }
}
