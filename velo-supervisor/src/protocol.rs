//! The control messages between client, supervisor, zygote and worker. They carry identities and
//! life-cycle only, never an event. File descriptors travel beside a message, in the order that the
//! message's own documentation gives.
//!
//! Each conversation opens with a message that carries [`PROTOCOL_VERSION`]; a peer that speaks
//! another version is turned away by name instead of being misunderstood.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The version of the control protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 3;

/// One request for a link, unique within its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One link between a client and a worker, unique within its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// Which worker process is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// The supervisor's name for it, never used twice.
    pub id: u32,
    /// Its process id, which the system may use again after its death.
    pub pid: i32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// A signal with this number ended it.
    Signal(i32),
    /// It ended by itself with this exit code.
    Code(i32),
    /// It ended, and nobody who could know its status was alive to tell.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by `{signal}`"),
                Err(_) => write!(f, "killed by signal `{number}`"),
            },
            Self::Code(code) => write!(f, "exit code `{code}`"),
            Self::Unknown => f.write_str("exit status unknown"),
        }
    }
}

/// Which stream function a worker ran when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ran {
    /// None: it waited, or something else than a function ran.
    Nothing,
    /// One of a stream on this link.
    Here,
    /// One of a stream on a link to another client.
    Elsewhere,
}

/// What the supervisor has killed a worker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Killed {
    /// A function held it for longer than it may.
    Step {
        /// How long it may.
        ms: u64,
        /// By `event_timeout`, of which so much was left, instead of by `stall_timeout`.
        event: bool,
    },
    /// No function ran, and it did nothing although something waited for it.
    Still {
        /// For so long.
        ms: u64,
    },
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        match *self {
            Self::Step { ms, event: false } => write!(
                f,
                "a function held it for longer than `stall_timeout` allows, {} s",
                seconds(ms)
            ),
            Self::Step { ms, event: true } => write!(
                f,
                "a function held it for longer than `event_timeout` allows, of which {} s were left",
                seconds(ms)
            ),
            Self::Still { ms } => write!(
                f,
                "it did nothing for {} s while events waited, and none of its functions ran: it was \
                 stopped, or something else held its event loop",
                seconds(ms)
            ),
        }
    }
}

/// Why a request for a link was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// As many workers as were asked for are there, and the client has a link to each of them.
    AtLimit,
    /// No worker could be made; the text says why.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLimit => f.write_str("all workers that were asked for are already linked"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A look at a supervisor, for metrics and tests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The workers that are there, in the order of their ids.
    pub workers: Vec<WorkerStatus>,
    /// The process id of the zygote, if one runs.
    pub zygote: Option<i32>,
    /// How many threads the zygote had when it became ready. More than 1 means that something it
    /// imported started a thread, which makes forking from it unsafe.
    pub zygote_threads: Option<u32>,
}

/// One worker, as [`Status`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The supervisor's name for it.
    pub id: u32,
    /// Its process id; 0 while it is being forked.
    pub pid: i32,
    /// How many open streams its links count.
    pub residents: u32,
    /// How many links it has.
    pub links: u32,
    /// Whether it has been told to stop.
    pub stopping: bool,
}

/// What a client says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromClient {
    /// The first message.
    Hello { version: u32 },
    /// Asks for a link to a worker that this client has no link to yet.
    Acquire {
        request: RequestId,
        max_workers: u32,
    },
    /// The client does not use the link any more. A `broken` one was written over: whatever did
    /// that lives in its worker.
    Release {
        link: LinkId,
        #[serde(default)]
        broken: bool,
    },
    /// Streams with limits are open on the link: its worker is to be looked at, until there are none.
    Watch { link: LinkId, stall_ms: Option<u64> },
    /// Workers that are forked from now on are to have imported these modules, which are looked for
    /// in these folders too.
    Preload {
        modules: Vec<String>,
        paths: Vec<String>,
    },
}

/// What a client is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToClient {
    /// The answer to `Hello`, whatever the version was.
    Hello { version: u32 },
    /// File descriptors: segment, the client's bell, the worker's bell.
    Link {
        request: RequestId,
        link: LinkId,
        worker: WorkerInfo,
    },
    /// The request cannot be met.
    Refused { request: RequestId, reason: Refusal },
    /// The link was idle and is gone.
    Retired { link: LinkId },
    /// A module cannot be preloaded. Workers go on without it.
    NotPreloaded { module: String, why: String },
    /// The worker behind the link is dead.
    Died {
        link: LinkId,
        worker: WorkerInfo,
        exit: Exit,
        ran: Ran,
        /// What it was killed for, if the supervisor did it.
        why: Option<Killed>,
        /// The stacks of its threads, if it could still write them.
        stack: String,
    },
}

/// What the zygote is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// The first message. File descriptor: a pidfd of the process whose death ends everything.
    Prepare { version: u32, grace_ms: u32 },
    /// Fork a worker. File descriptors: the worker's end of its control socket, its report.
    Spawn { worker: u32 },
    /// Import a module, for the workers that are forked after it.
    Preload { module: String, paths: Vec<String> },
}

/// What the zygote says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromZygote {
    /// The answer to `Prepare`.
    Ready { version: u32, threads: u32 },
    /// A worker was forked. File descriptor: its pidfd, taken while it could not yet be reaped.
    Spawned { worker: u32, pid: i32 },
    /// A worker could not be forked.
    SpawnFailed { worker: u32, why: String },
    /// A module was imported, or not.
    Preloaded {
        module: String,
        failure: Option<PreloadFailure>,
    },
    /// A worker ended.
    Exited { worker: u32, pid: i32, exit: Exit },
}

/// Why a module cannot be preloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreloadFailure {
    /// Importing it raised this.
    Import(String),
    /// Importing it left so many threads in all. Nothing is forked from a process with threads: what
    /// they hold at that moment would be held for ever in the worker.
    Threads(u32),
}

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Serve this link. File descriptors: segment, the worker's bell, the client's bell.
    Attach { link: LinkId },
    /// Nobody uses the link any more.
    Detach { link: LinkId },
    /// Finish or cancel the streams, then exit with 0.
    Drain,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// It looks at its control socket from now on, in the thread with this number.
    Started { thread: u64 },
    /// It serves the link.
    Attached { link: LinkId },
    /// It could not map the link.
    AttachFailed { link: LinkId, why: String },
    /// It has let go of a link that was detached.
    Detached { link: LinkId },
}
