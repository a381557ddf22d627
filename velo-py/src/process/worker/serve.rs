//! What a client says to its worker, and how the streams begin that it opens.
//!
//! From the message to a function's first step there is no Python but what the task and the function
//! need: somebody waits for what the step brings, and what is run after a pause comes from memory.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple, PyType};

use super::Link;
use crate::errors;
use crate::ffi::turn;
use crate::function::deadline::Budget;
use crate::function::eager::note_name;
use crate::function::port::Port;
use crate::function::pump::Pump;
use crate::function::stream_port::StreamPort;
use crate::keys::frames::Terms;
use crate::keys::outlet::Outlet;
use crate::keys::runner::LaneRunner;
use crate::keys::table::KeyTable;
use crate::process::control::{self, Control};

/// A link, and what its client's streams run in.
pub struct Served {
    pub(super) link: Arc<Link>,
    event_loop: Py<PyAny>,
    /// The context that each stream has a copy of.
    context: Py<PyAny>,
    /// `(function, whether it has a state)` by number; `bytes` where it has yet to be loaded.
    functions: Py<PyDict>,
    /// Called with the number of a function that has yet to be loaded; returns what `functions` has
    /// then.
    load: Py<PyAny>,
    /// Called with what the client says, `(what, ...)`.
    handle: Py<PyAny>,
}

/// Where a stream is: its slot, and the client's number of it.
type Place = (u32, u64);
/// How many events and bytes, whether it drops events, recovers, and is restored.
type Limits = (u32, u64, bool, bool, bool);

/// A stream that a client opens.
struct Opening {
    place: Place,
    function: u64,
    limits: Limits,
    budgets: (Option<f64>, Option<f64>),
    name: String,
}

impl Served {
    /// Serves a link.
    pub fn new(
        link: Arc<Link>,
        event_loop: Py<PyAny>,
        context: Py<PyAny>,
        functions: Py<PyDict>,
        (load, handle): (Py<PyAny>, Py<PyAny>),
    ) -> Self {
        Served {
            link,
            event_loop,
            context,
            functions,
            load,
            handle,
        }
    }

    /// Whether there is something to do.
    pub fn has_something(&self) -> bool {
        self.link.end.any_ready()
    }

    /// Lets the functions go on whose streams changed, and does what the client says.
    pub fn process_ready(&self, py: Python<'_>) -> PyResult<()> {
        if self.link.broken.load(Relaxed) {
            return Err(errors::corrupted(
                "the control messages of a link were written over",
            ));
        }
        let mut ready = Vec::new();
        self.link.end.take_ready(|slot| ready.push(slot));
        let mut messages = Vec::new();
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(py, &mut messages)?;
            } else if let Some(port) = self.link.port(py, slot) {
                port.wake(py);
            }
        }
        messages
            .into_iter()
            .try_for_each(|message| self.obey(py, message))
    }

    fn read_control(&self, py: Python<'_>, messages: &mut Vec<Control>) -> PyResult<()> {
        self.link.state.with(py, |state| {
            while let Some(message) = control::receive(py, &mut state.control_in)? {
                messages.push(message);
            }
            Ok(())
        })?
    }

    fn obey(&self, py: Python<'_>, message: Control) -> PyResult<()> {
        let told = match message {
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
                let opening = Opening {
                    place: (slot, stream),
                    function,
                    limits: (buffer, max_bytes, drops, recovers, restored),
                    budgets: (seconds(stall_ms), seconds(event_ms)),
                    name,
                };
                return match self.link.state.with(py, |state| state.keep.take())? {
                    Some(keep) => self.keep(py, opening, keep),
                    None if lane => self.start_lane(py, opening),
                    None => self.start(py, opening),
                };
            }
            Control::Keep {
                key,
                grant,
                timeout_ms,
                shown,
            } => {
                let key = PyBytes::new(py, &key.0);
                let keep = (key, grant, seconds(timeout_ms), shown).into_pyobject(py)?;
                let keep = Some(keep.unbind());
                return Ok(self.link.state.with(py, |state| state.keep = keep)?);
            }
            Control::Define {
                function,
                definition,
            } => ("define", function, PyBytes::new(py, &definition)).into_pyobject(py)?,
            Control::Detach { slot, stream } => ("detach_kept", slot, stream).into_pyobject(py)?,
            Control::Levels { packed } => {
                ("levels", PyBytes::new(py, &packed)).into_pyobject(py)?
            }
            Control::Snapshot { slot, stream } => ("snapshot", slot, stream).into_pyobject(py)?,
            Control::Cancel { slot } => ("cancel", slot).into_pyobject(py)?,
            Control::Close { slot } => {
                self.link.close(py, slot);
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
        self.tell(py, told)
    }

    /// Starts a function on its half of a stream, as a task that has had its first turn.
    fn start(&self, py: Python<'_>, opening: Opening) -> PyResult<()> {
        let Opening {
            place,
            function,
            limits,
            budgets: (stall, event),
            name,
        } = opening;
        let task_name = PyString::new(py, &name);
        let event_loop = self.event_loop.clone_ref(py);
        let port = self
            .link
            .port_at(py, event_loop, place, limits, Arc::default(), false)?;
        let port = Port::Ring(port);
        let budget = Budget::new(name, &port, stall, event);
        let port = StreamPort::new(port, budget);
        let Some(pump) = self.pump(py, &port, function)? else {
            return Ok(());
        };
        let pump = Py::new(py, pump)?;
        let context = turn::copy_of(self.context.bind(py))?;
        note_name(context.bind(py), &task_name)?;
        let task = self.task(py, pump.bind(py), &task_name, &context)?;
        // Somebody may wait for what its first step brings.
        let stepped = port.attach(py, pump, task.clone().unbind(), context);
        self.tell(py, ("started", place.0, function, task).into_pyobject(py)?)?;
        stepped
    }

    /// Starts a key table on its half of a lane.
    fn start_lane(&self, py: Python<'_>, opening: Opening) -> PyResult<()> {
        let Opening {
            place,
            function,
            limits,
            budgets: (stall, event),
            name,
        } = opening;
        let task_name = PyString::new(py, &name);
        let event_loop = self.event_loop.clone_ref(py);
        let port = self
            .link
            .port_at(py, event_loop, place, limits, Arc::default(), false)?;
        let known = match self.functions.bind(py).get_item(function)? {
            Some(known) if known.extract::<(Bound<'_, PyAny>, bool)>().is_ok() => Ok(known),
            // Importing its module is a part of it, and may fail, or worse.
            _ => port.on_board(py, None, || self.load.bind(py).call1((function,))),
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
            window: limits.0,
            tells_all: false,
        };
        let table = KeyTable::new(
            self.event_loop.clone_ref(py),
            context.clone_ref(py),
            known,
            name,
            (terms, stall, event),
            Outlet::Ring(port.clone()),
        );
        let runner = Py::new(py, LaneRunner::new(port, table))?;
        let task = self.task(py, runner.bind(py), &task_name, &context)?;
        self.tell(py, ("started", place.0, function, task).into_pyobject(py)?)
    }

    /// What runs the function; None if there is none to run, and the stream has ended.
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

    /// Attaches a stream to a function that is kept.
    fn keep(&self, py: Python<'_>, opening: Opening, keep: Py<PyTuple>) -> PyResult<()> {
        let Opening {
            place,
            function,
            limits,
            budgets,
            name,
        } = opening;
        let told = ("keep", keep, place, function, limits, (budgets, name));
        self.tell(py, told.into_pyobject(py)?)
    }

    fn tell(&self, py: Python<'_>, what: Bound<'_, PyTuple>) -> PyResult<()> {
        self.handle.bind(py).call1(what).map(drop)
    }
}

/// A limit as it travels: 0 for none.
fn seconds(ms: u64) -> Option<f64> {
    (ms > 0).then(|| Duration::from_millis(ms).as_secs_f64())
}
