//! Control messages as records of Python: of a supervisor to clients and to workers, and of clients to
//! workers.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_supervisor::{ClientEvent, Exit, KeyRefusal, Question, Ran, Refusal, WorkerControlEvent};

use crate::errors::pool_error;
use crate::module::worker_link::{SessionRequest, WorkerLink};
use crate::process::client::handle::ClientLinkHandle;

/// The death of a worker, as far as it is known.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct WorkerDeath {
    /// The signal that ended it, or its exit code.
    signal: Option<i32>,
    code: Option<i32>,
    /// The function that ran: `"here"` (of a stream of this link), `"elsewhere"` or `"nothing"`.
    ran: String,
    /// Whether it was killed because it made no progress.
    stalled: bool,
    /// Why the supervisor killed it, if it did.
    why: Option<String>,
    /// The stacks of its threads.
    stack: String,
}

#[pymethods]
impl WorkerDeath {
    /// A death that no supervisor has seen.
    #[staticmethod]
    fn unexplained(ran: String) -> Self {
        WorkerDeath {
            signal: None,
            code: None,
            ran,
            stalled: false,
            why: None,
            stack: String::new(),
        }
    }
}

/// A report of a supervisor to a client.
#[pyclass(frozen, module = "velo._core")]
pub enum Report {
    /// The supervisor greets. 0: it sets no maximum.
    Hello {
        velo: String,
        runtime: String,
        max_workers: u32,
        max_streams: u32,
    },
    /// The answer to `acquire`.
    Link {
        request: u64,
        link: u64,
        worker: u32,
        pid: i32,
        end: Py<ClientLinkHandle>,
    },
    /// The answer to `acquire` when there is no link. Without `why`, there are as many as allowed.
    Refused { request: u64, why: Option<String> },
    /// The supervisor has taken an idle link back.
    Retired { link: u64 },
    /// The worker of a link takes no more streams.
    Leaving { link: u64 },
    /// The worker of a link has died.
    Died { link: u64, death: Py<WorkerDeath> },
    /// A module was not preloaded.
    NotPreloaded { module: String, why: String },
    /// The answer to `status`, as JSON.
    Status { text: String },
    /// One worker's part of the answer to `look`, `inspect` or `end`, as JSON. `Done` follows the last.
    Looked { text: String },
    /// Lines of the supervisor's log.
    Log { lines: Vec<String> },
    /// The answer to `acquire_key`.
    KeyGranted {
        request: u64,
        link: u64,
        grant: u64,
        /// The key had no session.
        fresh: bool,
    },
    /// The answer to `acquire_key` when it is not granted. Without `why`, the key has an attachment.
    KeyRefused { request: u64, why: Option<String> },
    /// The session that began with this request has ended.
    KeyGone { request: u64 },
    /// An order was obeyed.
    Done {},
    /// An order was refused.
    Unable { why: String },
    /// The connection has ended.
    Lost {},
}

impl Report {
    /// The record of an event of the client's control connection.
    pub fn of(py: Python<'_>, event: ClientEvent) -> PyResult<Self> {
        Ok(match event {
            ClientEvent::Hello(hello) => Report::Hello {
                velo: hello.velo,
                runtime: hello.runtime,
                max_workers: hello.max_workers,
                max_streams: hello.max_streams,
            },
            ClientEvent::Link {
                request,
                link,
                worker,
                end,
                process,
            } => Report::Link {
                request: request.0,
                link: link.0,
                worker: worker.id,
                pid: worker.pid,
                end: Py::new(py, ClientLinkHandle::new(end, process)?)?,
            },
            ClientEvent::Refused { request, reason } => Report::Refused {
                request: request.0,
                why: match reason {
                    Refusal::AtLimit => None,
                    Refusal::Failed(why) => Some(why),
                },
            },
            ClientEvent::LinkRetired { link } => Report::Retired { link: link.0 },
            ClientEvent::LinkLeaving { link } => Report::Leaving { link: link.0 },
            ClientEvent::WorkerDied {
                link,
                exit,
                ran,
                why,
                stack,
                ..
            } => {
                let (signal, code) = match exit {
                    Exit::Signal(signal) => (Some(signal), None),
                    Exit::Code(code) => (None, Some(code)),
                    Exit::Unknown => (None, None),
                };
                let death = WorkerDeath {
                    signal,
                    code,
                    ran: match ran {
                        Ran::Nothing => "nothing".into(),
                        Ran::Here => "here".into(),
                        Ran::Elsewhere => "elsewhere".into(),
                    },
                    stalled: why.as_ref().is_some_and(|why| why.stalled()),
                    why: why.map(|why| why.to_string()),
                    stack,
                };
                Report::Died {
                    link: link.0,
                    death: Py::new(py, death)?,
                }
            }
            ClientEvent::NotPreloaded { module, why } => Report::NotPreloaded { module, why },
            ClientEvent::Status(status) => Report::Status {
                text: serde_json::to_string(&status).map_err(pool_error)?,
            },
            ClientEvent::Looked(look) => Report::Looked {
                text: serde_json::to_string(&look).map_err(pool_error)?,
            },
            ClientEvent::Log(lines) => Report::Log { lines },
            ClientEvent::KeyGranted {
                request,
                link,
                grant,
                fresh,
            } => Report::KeyGranted {
                request: request.0,
                link: link.0,
                grant,
                fresh,
            },
            ClientEvent::KeyRefused { request, reason } => Report::KeyRefused {
                request: request.0,
                why: match reason {
                    KeyRefusal::Taken => None,
                    KeyRefusal::Failed(why) => Some(why),
                },
            },
            ClientEvent::KeyGone { request } => Report::KeyGone { request: request.0 },
            ClientEvent::Done => Report::Done {},
            ClientEvent::Unable(why) => Report::Unable { why },
            ClientEvent::Lost => Report::Lost {},
        })
    }
}

/// An order of a supervisor to a worker.
#[pyclass(frozen, module = "velo._core")]
pub enum WorkerOrder {
    /// Serve this link.
    Attach { link: u64, end: Py<WorkerLink> },
    /// Cancel the remaining streams of this link, and confirm it with `detached`.
    Detach { link: u64 },
    /// Tell which streams were opened after the moment `since`, and which sessions were detached under
    /// numbers above `detached`.
    Streams { ask: u64, since: u64, detached: u64 },
    /// Tell where the function of a stream, or of a key of it, stands.
    Inspect {
        ask: u64,
        stream: String,
        key: Option<String>,
    },
    /// End a stream, and tell which one that was.
    End {
        ask: u64,
        stream: String,
        why: String,
    },
    /// Say with `key_free` when this attachment has ended.
    ReleaseKey { key: [u8; 32], grant: u64 },
    /// End each session as soon as it is detached.
    Retire {},
    /// End or cancel all streams, then exit.
    Drain {},
    /// The supervisor is gone: exit.
    Lost {},
    /// The supervisor is gone: serve the links that there are, then exit.
    Orphaned {},
}

impl WorkerOrder {
    /// The record of an event of the worker's control connection.
    pub fn of(py: Python<'_>, event: WorkerControlEvent) -> PyResult<Self> {
        Ok(match event {
            WorkerControlEvent::Attach { link, end } => WorkerOrder::Attach {
                link: link.0,
                end: Py::new(py, WorkerLink::new(end)?)?,
            },
            WorkerControlEvent::Detach { link } => WorkerOrder::Detach { link: link.0 },
            WorkerControlEvent::Ask { ask, question } => match question {
                Question::Streams { known, detached } => {
                    // The supervisor has left out the known streams of other workers.
                    let own = |of: &[(u32, u64)]| of.first().map_or(0, |(_, known)| *known);
                    let (since, detached) = (own(&known), own(&detached));
                    WorkerOrder::Streams {
                        ask,
                        since,
                        detached,
                    }
                }
                Question::Inspect { stream, key } => WorkerOrder::Inspect { ask, stream, key },
                Question::End { stream, why } => WorkerOrder::End { ask, stream, why },
            },
            WorkerControlEvent::Drain => WorkerOrder::Drain {},
            WorkerControlEvent::ReleaseKey { key, grant } => {
                WorkerOrder::ReleaseKey { key: key.0, grant }
            }
            WorkerControlEvent::Retire => WorkerOrder::Retire {},
            WorkerControlEvent::Lost => WorkerOrder::Lost {},
            WorkerControlEvent::Orphaned => WorkerOrder::Orphaned {},
        })
    }
}

/// A message of a client that Python code of its worker obeys.
#[pyclass(frozen, module = "velo._core")]
pub enum ClientMessage {
    /// Streams may be opened of this function from now on.
    Define {
        function: u64,
        definition: Py<PyBytes>,
    },
    /// No stream is opened of this function any more.
    Forget { function: u64 },
    /// The client handles log records of these levels.
    Levels { packed: Py<PyBytes> },
    /// The client's folder, environment and module search path.
    Surroundings { packed: Py<PyBytes> },
    /// A stream was opened, and its task has had its first turn.
    Started {
        slot: u32,
        function: u64,
        task: Py<PyAny>,
        /// Whether it runs the keys of the function.
        lane: bool,
    },
    /// A stream is to be attached to a session.
    Attach { request: Py<SessionRequest> },
    /// A stream is to be detached from its session.
    Detach { slot: u32, stream: u64 },
    /// A snapshot of a stream's state is wanted.
    Snapshot { slot: u32, stream: u64 },
    /// The function of a stream is to be cancelled.
    Cancel { slot: u32 },
}
