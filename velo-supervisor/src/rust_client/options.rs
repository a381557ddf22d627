//! How a stream is opened.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of a stream. What Python calls `StreamConfig`, as far as it makes sense here.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// What the stream is called in logs and errors; the name of its function if it has none.
    pub name: Option<String>,
    /// Folders in which the worker looks for the function's module, besides its own.
    pub paths: Vec<PathBuf>,
    /// How many events may be sent that the function is not done with, and how many results may wait
    /// to be received. At the bound, sending waits, or the function does.
    pub buffer: u32,
    /// How many bytes the events, and the results, may take in shared memory, rounded up to a power of
    /// two. One event may take half of it.
    pub max_bytes: u64,
    /// How many workers this connection's streams are spread over at most; `None` for as many as this
    /// process may use cores.
    pub workers: Option<u32>,
    /// How long a function may be at one event. Past it, the stream fails.
    pub event_timeout: Option<Duration>,
    /// How long a function may hold its worker without waiting for anything. Past it, the worker is
    /// killed.
    pub stall_timeout: Option<Duration>,
    /// How many bytes of its own the worker may have. Past it, it takes no more streams; with twice as
    /// much, or when it does not do with less soon, it is killed.
    pub max_worker_memory: Option<u64>,
    /// How long opening may wait for a worker.
    pub open_timeout: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            name: None,
            paths: Vec::new(),
            buffer: 256,
            max_bytes: 256 << 20,
            workers: None,
            event_timeout: None,
            stall_timeout: None,
            max_worker_memory: None,
            open_timeout: Duration::from_secs(30),
        }
    }
}

impl StreamOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the worker look for the function's module in this folder too.
    #[must_use]
    pub fn path(mut self, folder: impl Into<PathBuf>) -> Self {
        self.paths.push(folder.into());
        self
    }

    /// Names the stream.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}
