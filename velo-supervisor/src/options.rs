//! How a supervisor is set up: its pool, and what only a standalone one has.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::notes::Notes;

/// Options of an embedded supervisor. Those of the first connection hold for as long as the
/// supervisor runs.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The program that calls [`zygote::serve`](crate::zygote::serve), and its arguments.
    pub zygote_command: Vec<OsString>,
    /// Variables that are added to the zygote's environment.
    pub env: Vec<(OsString, OsString)>,
    /// The ceiling of the number of workers. `None` leaves it to each request; a request that does
    /// not say (0) gets as many as there are cores this process may use.
    pub max_workers: Option<u32>,
    /// How many workers stay when nothing is to do.
    pub min_workers: u32,
    /// How long a link, and after it a worker, may be idle before it is let go.
    pub idle_timeout: Duration,
    /// The time that a worker has to finish its streams when it has to stop, before `SIGTERM`.
    pub drain_bound: Duration,
    /// How long a worker may live after `SIGTERM`, before `SIGKILL`.
    pub terminate_bound: Duration,
}

impl EmbeddedOptions {
    /// Options with the defaults for everything but the zygote's command.
    pub fn new<I, S>(zygote_command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Self {
            zygote_command: zygote_command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            zygote_command: Vec::new(),
            env: Vec::new(),
            max_workers: None,
            min_workers: 0,
            idle_timeout: Duration::from_secs(10),
            drain_bound: Duration::from_secs(2),
            terminate_bound: Duration::from_secs(1),
        }
    }
}

/// Options of a standalone supervisor.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// Its workers.
    pub pool: EmbeddedOptions,
    /// Where it listens. `None` for [`default_socket`](crate::daemon::default_socket), whose folder
    /// is made if it is not there.
    pub socket: Option<PathBuf>,
    /// What runs the functions of its workers, such as `cpython 3.11`. Clients that run something
    /// else know by it that their functions are not understood.
    pub runtime: String,
    /// Modules that workers have imported before they serve.
    pub preload: Vec<String>,
    /// How its log is written.
    pub log_format: LogFormat,
    /// How many clients may be connected at a time. Each event loop of a program is one.
    pub max_clients: usize,
    /// How many links, which is how many workers, one client process may have.
    pub client_workers: Option<u32>,
    /// The most open streams of one client process. Clients get this number, and keep to it.
    pub client_streams: Option<u32>,
    /// How long open streams may go on when a signal ends the supervisor.
    pub stop_bound: Duration,
    /// How long a client may take to greet.
    pub hello_bound: Duration,
    /// What the program around it adds to its status.
    pub notes: Notes,
}

impl DaemonOptions {
    /// Options with the defaults for everything but the zygote's command.
    pub fn new<I, S>(zygote_command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Self {
            pool: EmbeddedOptions::new(zygote_command),
            socket: None,
            runtime: String::new(),
            preload: Vec::new(),
            log_format: LogFormat::Text,
            max_clients: 1000,
            client_workers: None,
            client_streams: None,
            stop_bound: Duration::from_secs(10),
            hello_bound: Duration::from_secs(5),
            notes: Notes::default(),
        }
    }
}

/// How a standalone supervisor writes its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    Text,
    /// A line of JSON for each event.
    Json,
}

/// Longer than any process lives, and short enough to be added to any point in time.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
