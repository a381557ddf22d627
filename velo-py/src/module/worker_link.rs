//! The worker's end of a link, as its Python code holds it.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use velo_shm::Link;
use velo_supervisor::Key;

use crate::function::deadline::Deadline;
use crate::function::port::Port;
use crate::function::session::{Attachment, SessionPort};
use crate::function::stream_port::StreamPort;
use crate::function_side::FunctionSide;
use crate::module::session::Session;
use crate::process::control::Control;
use crate::process::worker::control_line::ControlLine;
use crate::process::worker::ports::Ports;
use crate::process::worker::ring_port::Opening;

/// A stream that a client opens, and how long its function may take, in seconds.
pub struct Request {
    pub opening: Opening,
    pub function: u64,
    pub stall_timeout: Option<f64>,
    pub event_timeout: Option<f64>,
    pub name: String,
}

/// A client's stream that is to be attached to the session under a key.
#[pyclass(frozen, module = "velo._core")]
pub struct SessionRequest {
    pub request: Request,
    pub key: Key,
    /// The number of the grant by which the supervisor lets the client attach.
    #[pyo3(get)]
    pub grant: u64,
    /// After how many seconds without an attachment the session ends.
    #[pyo3(get)]
    pub timeout: Option<f64>,
    /// The key as its user wrote it.
    #[pyo3(get)]
    pub shown: String,
    pub stored: Vec<u8>,
}

#[pymethods]
impl SessionRequest {
    /// The digest of function and key.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.key.0)
    }

    /// How a checkpoint knows the session; empty for a function without a state.
    #[getter]
    fn stored<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.stored)
    }

    #[getter]
    fn slot(&self) -> u32 {
        self.request.opening.slot
    }

    /// The client's number of the stream.
    #[getter]
    fn stream(&self) -> u64 {
        self.request.opening.number
    }

    /// The client's number of the function.
    #[getter]
    fn function(&self) -> u64 {
        self.request.function
    }

    #[getter]
    fn name(&self) -> &str {
        &self.request.name
    }
}

/// A worker's end of the link to one client.
#[pyclass(frozen, module = "velo._core")]
pub struct WorkerLink {
    pub ports: Arc<Ports>,
}

impl WorkerLink {
    /// The worker's side of a fresh link.
    pub fn new(end: Link) -> PyResult<Self> {
        let line = ControlLine::new(end)?;
        Ok(WorkerLink {
            ports: Arc::new(Ports::new(line)),
        })
    }
}

#[pymethods]
impl WorkerLink {
    /// Begins a session. Returns the port to run its function on, and the session. `on_end(over, error,
    /// failed)` is called when an attachment has ended (`over` is false) or the function has. With
    /// `state`, the function gets that dict, if it has a state.
    #[pyo3(signature = (event_loop, request, on_end, state=None))]
    fn begin_session(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        request: &SessionRequest,
        on_end: Py<PyAny>,
        state: Option<Py<PyDict>>,
    ) -> PyResult<(StreamPort, Session)> {
        let request = &request.request;
        let function: Arc<FunctionSide> = Arc::default();
        let event_loop_of = || event_loop.clone_ref(py);
        let opening = &request.opening;
        let port = self
            .ports
            .open(py, event_loop_of(), opening, function.clone(), true)?;
        let attachment = Attachment::Ring(port);
        let session = SessionPort::new(attachment, function, event_loop_of(), on_end, state);
        let session = Arc::new(session);
        let port = Port::Session(session.clone(), false);
        let (stall, event) = (request.stall_timeout, request.event_timeout);
        let deadline = Deadline::new(py, request.name.clone(), &port, stall, event);
        let session = Session {
            port: session,
            eager: None,
        };
        Ok((StreamPort::new(port, deadline), session))
    }

    /// Attaches a client's stream to a detached session.
    fn attach(&self, py: Python<'_>, session: &Session, request: &SessionRequest) -> PyResult<()> {
        let port = &session.port;
        let (event_loop, function) = (port.event_loop().clone_ref(py), port.function().clone());
        let opening = &request.request.opening;
        let attachment = self.ports.open(py, event_loop, opening, function, true)?;
        port.attach(py, Attachment::Ring(attachment))
    }

    /// Detaches a client's stream from its session. False: another one is attached, or none.
    fn detach(&self, py: Python<'_>, session: &Session, slot: u32, stream: u64) -> PyResult<bool> {
        match self.ports.get_number(py, slot, stream) {
            Some(port) => session.port.leave(py, Some(&Attachment::Ring(port))),
            None => Ok(false), // it has ended
        }
    }

    /// Lets no more streams in unless one is open. True: none is.
    fn try_retire(&self) -> bool {
        self.ports.line.end.try_retire()
    }

    /// Lets no more streams in: this worker is about to end.
    fn close_entry(&self) {
        self.ports.line.end.close_entry();
    }

    /// Makes a snapshot of a stream's state as soon as its function is done with an event.
    fn snapshot(&self, py: Python<'_>, slot: u32, stream: u64) -> PyResult<()> {
        match self.ports.get_number(py, slot, stream) {
            Some(port) => port.snapshot(py),
            None => Ok(()), // it has ended
        }
    }

    /// Ends the input of a stream that its client has cancelled: events in the queue are not handled.
    fn cancel(&self, py: Python<'_>, slot: u32) {
        if let Some(port) = self.ports.get(py, slot) {
            port.cancel(py);
        }
    }

    /// Ends the input of a stream that its client has not ended. Whatever its function does now, the
    /// client gets `why`. False if there is no such stream.
    fn end(&self, py: Python<'_>, slot: u32, why: String) -> bool {
        let port = self.ports.get(py, slot);
        port.is_some_and(|port| port.end_for(py, why))
    }

    /// Sends a log record to the client; false when the client does not read them.
    fn log(&self, py: Python<'_>, record: Vec<u8>) -> bool {
        let line = &self.ports.line;
        let sent = line.send(py, &Control::Log { record });
        line.end.ring(); // the client may wait for nothing else on this link
        sent.is_ok()
    }

    /// How many streams are open on this link.
    #[getter]
    fn streams(&self) -> u32 {
        self.ports.line.end.residents()
    }
}
