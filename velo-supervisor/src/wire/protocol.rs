//! The control messages between client, supervisor, zygote and worker. They carry identities and
//! life-cycle only, never an event. File descriptors travel beside a message, in the order that the
//! message's own documentation gives.
//!
//! Each conversation opens with a message that carries [`PROTOCOL_VERSION`]; a peer that speaks
//! another version is turned away by name instead of being misunderstood. For that, `Hello` is read
//! whatever fields it has or lacks: fields may be added to it, never taken away.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::os::exit::Exit;

/// The version of the control protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 9;

/// The environment variable that tells the zygote which descriptor leads to the supervisor.
pub const ZYGOTE_FD_ENV: &str = "VELO_ZYGOTE_FD";

/// One request for a link, unique within its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One link between a client and a worker, unique within its supervisor.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LinkId(pub u64);

/// The name of a session: a digest of its function and the user's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

/// Why a request to attach to a session was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyRefusal {
    /// Another stream is attached, and the request did not want to wait.
    Taken,
    /// There is no worker for it; the text says why.
    Failed(String),
}

/// Which worker process is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// The supervisor's name for it, never used twice.
    pub id: u32,
    /// Its process id, which the system may use again after its death.
    pub pid: i32,
}

/// Which stream function a worker ran when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ran {
    /// No function is to blame: all of them waited, or the cause was no function.
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
        /// By `event_timeout`, of which `ms` was left, instead of by `stall_timeout`.
        event: bool,
    },
    /// No function ran, and it did nothing although something waited for it.
    Still {
        /// How long that was.
        ms: u64,
    },
    /// It had more memory of its own than it may.
    Memory {
        /// How much it had, in bytes.
        used: u64,
        /// How much it may have.
        limit: u64,
        /// For how long it was asked to do with less; 0 when it had so much that it was not asked.
        ms: u64,
    },
}

impl Killed {
    /// Whether it is for standing still.
    pub fn stalled(&self) -> bool {
        matches!(self, Self::Step { .. } | Self::Still { .. })
    }
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
            Self::Memory { used, limit, ms: 0 } => write!(
                f,
                "it had {} MiB of memory of its own, twice as much as `max_worker_memory` allows \
                 ({} MiB), or more",
                used >> 20,
                limit >> 20
            ),
            Self::Memory { used, limit, ms } => write!(
                f,
                "it still had {} MiB of memory of its own, more than `max_worker_memory` allows ({} \
                 MiB), {} s after it was given no more streams",
                used >> 20,
                limit >> 20,
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

/// A look at a supervisor. Fields that are added later have a default, so that any client can read it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process id of the supervisor.
    pub pid: i32,
    /// The version of velo that it is.
    pub velo: String,
    /// What runs the functions of its workers, such as `cpython 3.11`.
    pub runtime: String,
    /// For how many seconds it has run.
    pub uptime: u64,
    /// Whether it takes no more streams and ends with those that are open.
    pub draining: bool,
    /// The ceiling of the number of workers; none if it is left to clients.
    pub max_workers: Option<u32>,
    /// How many workers stay when nothing is to do.
    pub min_workers: u32,
    /// The workers that are there, in the order of their ids.
    pub workers: Vec<WorkerStatus>,
    /// The clients that are connected, in the order in which they came.
    pub clients: Vec<ClientStatus>,
    /// The process id of the zygote, if one runs.
    pub zygote: Option<i32>,
    /// How many threads the zygote had when it became ready. More than 1 means that something it
    /// imported started a thread, which makes forking from it unsafe.
    pub zygote_threads: Option<u32>,
    /// Number of detached sessions.
    pub detached: u32,
    /// Number of key requests that wait in line, or for a worker.
    pub waiting: u32,
    /// Whether it is a part of a program, and serves that alone.
    pub embedded: bool,
    /// How many processes look at it, if it is; among the clients of a standalone one they are not
    /// told apart.
    pub viewers: u32,
    /// What it keeps of sessions in a checkpoint, as JSON of its Python half; empty without one.
    pub checkpoint: String,
}

/// One worker, as [`Status`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// The supervisor's name for it.
    pub id: u32,
    /// Its process id; 0 while it is being forked.
    pub pid: i32,
    /// How many open streams its links count.
    pub residents: u32,
    /// How many links it has.
    pub links: u32,
    /// Whether it takes no new streams and ends with those that are open.
    pub retiring: bool,
    /// Whether it has the order to stop.
    pub stopping: bool,
    /// Processor time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// Its resident memory in bytes, with the memory that it shares with other processes.
    pub memory: u64,
    /// Events that were sent to it so far.
    pub events: u64,
    /// Results that it has sent so far.
    pub results: u64,
    /// Events that wait there, or are being handled.
    pub queued: u64,
    /// Its detached sessions.
    pub detached: u32,
    /// Requests that wait for a key of it.
    pub waiting: u32,
}

/// One connection of a client, as [`Status`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    /// The supervisor's name for it, never used twice.
    pub id: u64,
    /// The process id of the client.
    pub pid: i32,
    /// How many links to workers it has.
    pub links: u32,
    /// How many streams are open on them.
    pub streams: u32,
    /// For how many seconds it has been connected.
    pub connected: u64,
}

/// A question of a viewer to the workers, which know more of their streams than the
/// supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Which streams they run.
    Streams {
        /// Up to which moment of a worker its streams are known; what it opened after that is told.
        known: Vec<(u32, u64)>,
        /// For each worker, the highest number of a detached session that is known. Sessions with a
        /// higher number are told.
        detached: Vec<(u32, u64)>,
    },
    /// Where the function of this stream stands, and with what.
    Inspect {
        /// Its name, its key, or its place: its link and slot as `LINK:SLOT`; of a detached session its
        /// worker's process id and the number of its detachment as `detached:PID:NUMBER`.
        stream: String,
        /// Of the function or lane `stream`, the key that is meant.
        #[serde(default)]
        key: Option<String>,
    },
    /// End this stream; queued events are not handled. The input of a detached session is ended.
    End {
        /// As in `Inspect`.
        stream: String,
        /// The reason for its client.
        why: String,
    },
}

impl Question {
    /// What of it one worker is asked.
    pub(crate) fn to_worker(&self, worker: u32) -> Question {
        match self {
            Question::Streams { known, detached } => {
                let of_it = |all: &[(u32, u64)]| {
                    let mut all = all.iter().copied();
                    all.find(|(id, _)| *id == worker).into_iter().collect()
                };
                Question::Streams {
                    known: of_it(known),
                    detached: of_it(detached),
                }
            }
            other => other.clone(),
        }
    }
}

/// A look at one worker, for a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLook {
    /// The supervisor's name for it.
    pub worker: u32,
    /// Its process id.
    pub pid: i32,
    /// Its answer as JSON; none if it did not answer in time.
    pub answer: Option<String>,
    /// The stacks of its threads, if it was asked where a function stands and did not answer.
    pub stack: String,
    /// Its links.
    pub links: Vec<LinkLook>,
}

/// One link, as [`WorkerLook`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkLook {
    /// Which one.
    pub link: LinkId,
    /// The process id of its client.
    pub client: i32,
    /// The stream whose function runs right now.
    pub running: Option<RunningLook>,
    /// Streams that are open on it, as far as they are shown.
    pub streams: Vec<StreamLook>,
    /// How many more there are.
    pub omitted: u32,
}

/// The stream whose function a worker runs, as [`LinkLook`] shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunningLook {
    /// Its place on the link.
    pub slot: u32,
    /// The number of the event that its function has.
    pub event: u64,
}

/// One stream, as [`LinkLook`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamLook {
    /// Its place on the link.
    pub slot: u32,
    /// Events that were sent.
    pub events: u64,
    /// Events that wait, or are being handled.
    pub queued: u64,
    /// Results that its function has sent.
    pub results: u64,
    /// Results that its client has not taken.
    pub results_queued: u64,
    /// Bytes of all events.
    pub bytes_in: u64,
    /// Bytes of all results.
    pub bytes_out: u64,
    /// Median of how long events take, in nanoseconds; 0 if it is not known.
    pub latency_p50: u64,
    /// As `latency_p50`, the 99th percentile.
    pub latency_p99: u64,
    /// Of a lane: keys that were ended because others needed their places.
    pub evicted: u32,
}

/// The description of a supervisor and its limits, for a new client.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// The process id of the supervisor.
    pub pid: i32,
    /// The version of velo that it is.
    pub velo: String,
    /// What runs the functions of its workers, such as `cpython 3.11`.
    pub runtime: String,
    /// The most workers for one client; 0 leaves it to the client.
    pub max_workers: u32,
    /// The most open streams for one client process; 0 for any number.
    pub max_streams: u32,
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
    Watch {
        link: LinkId,
        stall_ms: Option<u64>,
        memory: Option<u64>,
    },
    /// Workers that are forked from now on are to have imported these modules, which are looked for
    /// in these folders too.
    Preload {
        modules: Vec<String>,
        paths: Vec<OsString>,
    },
    /// An order to the supervisor itself.
    Admin(Order),
    /// Asks to attach to the session of a key, in a worker that may be a new one.
    AcquireKey {
        request: RequestId,
        key: Key,
        max_workers: u32,
        /// In line, if another stream is attached; otherwise it is refused.
        wait: bool,
    },
    /// What an `AcquireKey` has asked for is not wanted any more, and was not used.
    ReleaseKey { request: RequestId, key: Key },
    /// The attachment with this number has ended, as its worker has reported to the client.
    LeftKey { key: Key, grant: u64 },
}

/// What an operator may order of a standalone supervisor, on any connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Answered by the state that it is in.
    Status,
    /// Take no new streams, and end when the last open one has ended; after the bound, if there is
    /// one, those that are left are cancelled. Answered at once.
    Drain {
        /// In milliseconds.
        bound: Option<u64>,
    },
    /// Replace every worker, and what they are forked from: new streams go to new workers, old
    /// workers end with their last stream. Answered at once.
    Restart,
    /// Ask the workers. Answered by a look at each one, and then that it is done.
    Look(Question),
    /// Send the last lines of the log; with `follow`, also the next ones.
    Logs {
        /// Until the connection ends.
        follow: bool,
    },
}

/// Messages to a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToClient {
    /// The answer to `Hello`, whatever the version was.
    Hello {
        version: u32,
        #[serde(default)]
        welcome: Welcome,
    },
    /// The supervisor does not serve this client, and hangs up.
    TurnedAway { why: String },
    /// File descriptors: segment, the client's bell, the worker's bell; from a standalone
    /// supervisor also a pidfd of the worker, which outlives the supervisor.
    Link {
        request: RequestId,
        link: LinkId,
        worker: WorkerInfo,
    },
    /// The request cannot be met.
    Refused { request: RequestId, reason: Refusal },
    /// The link was idle and is gone.
    Retired { link: LinkId },
    /// The worker has outgrown its limit: no more streams are let in on the link, and it is retired
    /// once the last one has ended.
    Leaving { link: LinkId },
    /// A module cannot be preloaded. Workers go on without it.
    NotPreloaded { module: String, why: String },
    /// The worker behind the link is dead.
    Died {
        link: LinkId,
        worker: WorkerInfo,
        exit: Exit,
        ran: Ran,
        /// The reason for killing it, if the supervisor did.
        why: Option<Killed>,
        /// The stacks of its threads, if it could still write them.
        stack: String,
    },
    /// The answer to `Order::Status`.
    Status(Status),
    /// One worker, for `Order::Look`.
    Looked(WorkerLook),
    /// Lines of the supervisor's log.
    Log { lines: Vec<String> },
    /// The order was accepted.
    Done,
    /// The order makes no sense here.
    Unable { why: String },
    /// An `AcquireKey` is met: this client is attached, over a link that it has.
    KeyGranted {
        request: RequestId,
        link: LinkId,
        /// The number of this attachment.
        grant: u64,
        /// The key had no session.
        fresh: bool,
    },
    /// An `AcquireKey` is not met.
    KeyRefused {
        request: RequestId,
        reason: KeyRefusal,
    },
    /// The session that began with this client's `fresh` grant has ended.
    KeyGone { request: RequestId },
}

/// Messages to the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// The first message. File descriptor: a pidfd of the supervisor's process, whose death ends
    /// everything. With `outlive_ms`, workers go on until their clients are gone too, or have had no
    /// stream open for so long.
    Prepare {
        version: u32,
        grace_ms: u32,
        outlive_ms: Option<u64>,
    },
    /// Fork a worker. File descriptors: the worker's end of its control socket, its report.
    Spawn { worker: u32 },
    /// Import a module, for the workers that are forked after it.
    Preload {
        module: String,
        paths: Vec<OsString>,
    },
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
    /// Importing it left this many threads in all. Nothing is forked from a process with threads: what
    /// they hold at that moment would be held for ever in the worker.
    Threads(u32),
}

/// Messages to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Serve this link. File descriptors: segment, the worker's bell, the client's bell; from a
    /// standalone supervisor also a pidfd of the client.
    Attach { link: LinkId },
    /// The client has released the link.
    Detach { link: LinkId },
    /// Answer this, under this number.
    Ask { ask: u64, question: Question },
    /// Finish or cancel the streams, then exit with 0.
    Drain,
    /// The attachment with this number has ended: answer with `Key` when it is over, or at
    /// once if there is none.
    ReleaseKey { key: Key, grant: u64 },
    /// End each session when it is detached.
    Retire,
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
    /// The answer to a question, as JSON.
    Told { ask: u64, answer: String },
    /// The attachment with this number has ended. `live`: the session of the key goes on.
    Key { key: Key, grant: u64, live: bool },
}
