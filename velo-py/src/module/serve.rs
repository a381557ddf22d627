//! What a worker does for its clients: it obeys their control messages and starts their streams.
//!
//! Between the message that opens a stream and the function's first step, only the task and the function
//! run Python code. The client waits for the first result, and after a pause each line of Python that
//! runs has to come from main memory.

use std::sync::Arc;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyType};
use velo_shm::Link;
use velo_supervisor::Key;

use crate::cell::GilCell;
use crate::errors;
use crate::ffi::turn;
use crate::function::deadline::Deadline;
use crate::function::eager::note_name;
use crate::function::port::Port;
use crate::function::pump::Pump;
use crate::function::stream_port::StreamPort;
use crate::keys::outlet::Outlet;
use crate::keys::runner::LaneRunner;
use crate::keys::table::KeyTable;
use crate::lane_frames::Terms;
use crate::module::messages::ClientMessage;
use crate::module::worker_link::{Request, SessionRequest};
use crate::process::control::{self, Control};
use crate::process::worker::ports::Ports;
use crate::process::worker::ring_port::Opening;

/// A link, and the context and functions of its client's streams.
pub struct Served {
    ports: Arc<Ports>,
    /// The session that the stream which is opened next is to be attached to.
    attaches: GilCell<Option<SessionKey>>,
    event_loop: Py<PyAny>,
    /// Each stream runs in a copy of this context.
    context: Py<PyAny>,
    /// `(function, whether it has a state)` by number; `bytes` where it has yet to be loaded.
    functions: Py<PyDict>,
    /// Loads the function of a number, and returns what `functions` has for it from then on.
    load: Py<PyAny>,
    /// Called with each [`ClientMessage`].
    handle: Py<PyAny>,
}

impl Served {
    /// Serves a link.
    pub fn new(
        ports: Arc<Ports>,
        event_loop: Py<PyAny>,
        context: Py<PyAny>,
        functions: Py<PyDict>,
        (load, handle): (Py<PyAny>, Py<PyAny>),
    ) -> Self {
        Served {
            ports,
            attaches: GilCell::default(),
            event_loop,
            context,
            functions,
            load,
            handle,
        }
    }

    /// The link's end.
    pub fn end(&self) -> &Link {
        &self.ports.line.end
    }

    /// Whether the client has set something ready.
    pub fn is_ready(&self) -> bool {
        self.end().any_ready()
    }

    /// Resumes the functions whose streams changed, and does what the client's messages ask for.
    pub fn process_ready(&self, py: Python<'_>) -> PyResult<()> {
        self.ports.line.check()?;
        let mut ready = Vec::new();
        self.end().take_ready(|slot| ready.push(slot));
        let mut messages = Vec::new();
        for slot in ready {
            if slot == control::SLOT {
                messages.append(&mut self.ports.line.receive(py)?);
            } else if let Some(port) = self.ports.get(py, slot) {
                port.wake(py);
            }
        }
        messages
            .into_iter()
            .try_for_each(|message| self.obey(py, message))
    }

    fn obey(&self, py: Python<'_>, message: Control) -> PyResult<()> {
        let message = match message {
            Control::Open {
                stream,
                slot,
                function,
                buffer,
                max_bytes,
                drops,
                recovers,
                restored,
                lane,
                stall_ms,
                event_ms,
                name,
            } => {
                let request = Request {
                    opening: Opening {
                        slot,
                        number: stream,
                        buffer,
                        max_bytes,
                        drops,
                        recovers,
                        restored,
                    },
                    function,
                    stall_timeout: seconds(stall_ms),
                    event_timeout: seconds(event_ms),
                    name,
                };
                return match self.attaches.with(py, Option::take)? {
                    Some(key) => self.attach(py, request, key),
                    None if lane => self.start_lane(py, request),
                    None => self.start(py, request),
                };
            }
            Control::Attach {
                key,
                grant,
                timeout_ms,
                shown,
                stored,
            } => {
                let key = SessionKey {
                    key,
                    grant,
                    timeout: seconds(timeout_ms),
                    shown,
                    stored,
                };
                return Ok(self.attaches.with(py, |next| *next = Some(key))?);
            }
            Control::Define {
                function,
                definition,
            } => ClientMessage::Define {
                function,
                definition: PyBytes::new(py, &definition).unbind(),
            },
            Control::Detach { slot, stream } => ClientMessage::Detach { slot, stream },
            Control::Levels { packed } => ClientMessage::Levels {
                packed: PyBytes::new(py, &packed).unbind(),
            },
            Control::Surroundings { packed } => ClientMessage::Surroundings {
                packed: PyBytes::new(py, &packed).unbind(),
            },
            Control::Forget { function } => ClientMessage::Forget { function },
            Control::Snapshot { slot, stream } => ClientMessage::Snapshot { slot, stream },
            Control::Cancel { slot } => ClientMessage::Cancel { slot },
            Control::Close { slot } => {
                self.ports.close(py, slot);
                return Ok(());
            }
            Control::Ended { .. }
            | Control::Asked { .. }
            | Control::Log { .. }
            | Control::Slow { .. } => {
                return Err(errors::corrupted(
                    "the client sent a message that only workers send",
                ));
            }
        };
        self.handle(py, message)
    }

    /// Starts a function on its half of a stream, as a task that has had its first turn.
    fn start(&self, py: Python<'_>, request: Request) -> PyResult<()> {
        let Request {
            opening,
            function,
            stall_timeout,
            event_timeout,
            name,
        } = request;
        let task_name = PyString::new(py, &name);
        let event_loop = self.event_loop.clone_ref(py);
        let port = self
            .ports
            .open(py, event_loop, &opening, Arc::default(), false)?;
        let port = Port::Ring(port);
        let deadline = Deadline::new(py, name, &port, stall_timeout, event_timeout);
        let port = StreamPort::new(port, deadline);
        let Some(pump) = self.pump(py, &port, function)? else {
            return Ok(());
        };
        let pump = Py::new(py, pump)?;
        let context = turn::copy_of(self.context.bind(py))?;
        note_name(context.bind(py), &task_name)?;
        let task = self.task(py, pump.bind(py), &task_name, &context)?;
        // The client may wait for what the first step brings.
        let ran = port.attach(py, pump, task.clone().unbind(), context);
        self.started(py, opening.slot, function, task, false)?;
        ran
    }

    /// Starts a key table on its half of a lane.
    fn start_lane(&self, py: Python<'_>, request: Request) -> PyResult<()> {
        let Request {
            opening,
            function,
            stall_timeout,
            event_timeout,
            name,
        } = request;
        let task_name = PyString::new(py, &name);
        let event_loop = self.event_loop.clone_ref(py);
        let port = self
            .ports
            .open(py, event_loop, &opening, Arc::default(), false)?;
        let known = match self.functions.bind(py).get_item(function)? {
            Some(known) if known.extract::<(Bound<'_, PyAny>, bool)>().is_ok() => Ok(known),
            // Importing its module is a part of it, and may fail, or worse.
            _ => port.observe_step(py, None, || self.load.bind(py).call1((function,))),
        };
        let known = match known.and_then(|known| known.extract::<(Py<PyAny>, bool)>()) {
            Ok(known) => known,
            Err(error) => {
                port.finish(py, Err(error));
                port.flush(py);
                return Ok(());
            }
        };
        let context = turn::copy_of(self.context.bind(py))?;
        note_name(context.bind(py), &task_name)?;
        let terms = Terms {
            window: opening.buffer,
            tells_all: false,
            restarts: false,
            recovers: false,
            on_request: false,
            traces: false,
        };
        let table = KeyTable::new(
            self.event_loop.clone_ref(py),
            context.clone_ref(py),
            known,
            name,
            (terms, stall_timeout, event_timeout),
            Outlet::Ring(port.clone()),
        );
        let runner = Py::new(py, LaneRunner::new(port, table))?;
        let task = self.task(py, runner.bind(py), &task_name, &context)?;
        self.started(py, opening.slot, function, task, true)
    }

    /// The coroutine that runs the function; None if the function failed to load or to begin, which ends
    /// the stream.
    fn pump(&self, py: Python<'_>, port: &StreamPort, function: u64) -> PyResult<Option<Pump>> {
        let known = self.functions.bind(py).get_item(function)?;
        match known.map(|known| known.extract::<(Bound<'_, PyAny>, bool)>()) {
            Some(Ok((function, has_state))) => port.start(&function, has_state),
            // Importing its module is a part of it, and may fail, or worse.
            _ => port.start_loaded(py, || self.load.bind(py).call1((function,))),
        }
    }

    fn task<'py>(
        &self,
        py: Python<'py>,
        pump: &Bound<'py, PyAny>,
        name: &Bound<'py, PyString>,
        context: &Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static TASK: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let options = PyDict::new(py);
        options.set_item(intern!(py, "loop"), &self.event_loop)?;
        options.set_item(intern!(py, "name"), name)?;
        options.set_item(intern!(py, "context"), context)?;
        TASK.import(py, "asyncio", "Task")?
            .call((pump,), Some(&options))
    }

    /// Has a stream attached to the session under a key.
    fn attach(&self, py: Python<'_>, request: Request, key: SessionKey) -> PyResult<()> {
        let request = SessionRequest {
            request,
            key: key.key,
            grant: key.grant,
            timeout: key.timeout,
            shown: key.shown,
            stored: key.stored,
        };
        let request = Py::new(py, request)?;
        self.handle(py, ClientMessage::Attach { request })
    }

    fn started(
        &self,
        py: Python<'_>,
        slot: u32,
        function: u64,
        task: Bound<'_, PyAny>,
        lane: bool,
    ) -> PyResult<()> {
        let message = ClientMessage::Started {
            slot,
            function,
            task: task.unbind(),
            lane,
        };
        self.handle(py, message)
    }

    /// Has Python code obey a message.
    fn handle(&self, py: Python<'_>, message: ClientMessage) -> PyResult<()> {
        self.handle.bind(py).call1((message,)).map(drop)
    }
}

/// The session that the next stream is to be attached to.
struct SessionKey {
    key: Key,
    grant: u64,
    timeout: Option<f64>,
    shown: String,
    stored: Vec<u8>,
}

/// A limit as it travels: 0 for none.
fn seconds(ms: u64) -> Option<f64> {
    (ms > 0).then(|| Duration::from_millis(ms).as_secs_f64())
}
