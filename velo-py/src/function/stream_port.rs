//! Starting a stream function on its half of a stream, in either mode.

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;

use crate::function::deadline::Deadline;
use crate::function::eager::EagerRunner;
use crate::function::events::Events;
use crate::function::flush_timer::FlushTimer;
use crate::function::port::Port;
use crate::function::pump::Pump;
use crate::function::source::Source;
use crate::function_side::Runner;

/// One stream's port before and while its function runs.
#[pyclass(frozen, module = "velo._core")]
pub struct StreamPort {
    source: Source,
}

impl StreamPort {
    /// A port for Python to run a function on, within its deadline.
    pub fn new(port: Port, deadline: Option<Arc<Deadline>>) -> Self {
        let timer = Arc::new(FlushTimer::default());
        StreamPort {
            source: Source {
                port,
                timer,
                deadline,
            },
        }
    }

    /// Calls the function with its events, and its state if it has one. Returns the coroutine that
    /// runs it, or None when the call failed: the stream has ended with the exception then.
    pub fn begin(&self, function: &Bound<'_, PyAny>, has_state: bool) -> PyResult<Option<Pump>> {
        let py = function.py();
        let events = Events::new(self.source.clone());
        let call = || match has_state {
            true => function.call1((events, self.source.port.state(py)?)),
            false => function.call1((events,)),
        };
        let generator = call().and_then(|made| {
            if made.hasattr(intern!(py, "__anext__"))? {
                return Ok(made);
            }
            Err(PyTypeError::new_err(format!(
                "a stream function must return an async iterator, not {}",
                made.get_type().name()?
            )))
        });
        match generator {
            Ok(generator) => {
                let source = self.source.clone();
                Ok(Some(Pump::new(py, generator.unbind(), source)))
            }
            Err(error) => {
                self.fail(py, error);
                Ok(None)
            }
        }
    }

    /// Runs what comes before the first step. Importing a module may take longer than any of those.
    fn observe_step<R>(&self, py: Python<'_>, begin: impl FnOnce() -> R) -> R {
        match &self.source.port {
            Port::Ring(port) => port.observe_step(py, None, begin),
            Port::Session(port, false) => port.observe_step(py, None, begin),
            Port::Inline(_) | Port::Session(_, true) | Port::Key(_) => begin(),
        }
    }

    /// Ends the stream with an exception, before there is a generator.
    fn fail(&self, py: Python<'_>, error: PyErr) {
        self.source.port.finish(py, Err(error));
        self.source.port.flush(py);
    }

    /// Begins with a function that was loaded before.
    pub fn start(&self, function: &Bound<'_, PyAny>, has_state: bool) -> PyResult<Option<Pump>> {
        self.observe_step(function.py(), || self.begin(function, has_state))
    }

    /// Begins with what `load` returns: the function, and whether it has a state. None when that
    /// failed, too.
    pub fn start_loaded<'py>(
        &self,
        py: Python<'py>,
        load: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Pump>> {
        let loaded = || load()?.extract::<(Bound<'_, PyAny>, bool)>();
        self.observe_step(py, || match loaded() {
            Ok((function, has_state)) => self.begin(&function, has_state),
            Err(error) => {
                self.fail(py, error);
                Ok(None)
            }
        })
    }
}

#[pymethods]
impl StreamPort {
    /// See `start_loaded`: returns the coroutine that runs the function.
    fn load_and_start(&self, load: &Bound<'_, PyAny>) -> PyResult<Option<Pump>> {
        self.start_loaded(load.py(), || load.call0())
    }

    /// The coroutine runs as `task`, in `context`. It has its first turn at once.
    pub fn attach(
        &self,
        py: Python<'_>,
        pump: Py<Pump>,
        task: Py<PyAny>,
        context: Py<PyAny>,
    ) -> PyResult<()> {
        let function = match &self.source.port {
            Port::Ring(port) if port.is_closed(py) => return Ok(()),
            Port::Ring(port) => port.function(),
            Port::Session(port, false) => port.function(),
            Port::Inline(_) | Port::Session(_, true) | Port::Key(_) => return Ok(()), // its user steps it
        };
        pump.get().runs_as(task.bind(py))?;
        let event_loop = self.source.port.event_loop().clone_ref(py);
        let eager = Arc::new(EagerRunner::of(event_loop, pump, task, Some(context)));
        function
            .eager
            .with(py, |place| *place = Some(eager.clone()))?;
        eager.run(py)
    }
}
