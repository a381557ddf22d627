//! A session as its Python owner holds it.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::function::eager::EagerRunner;
use crate::function::session::SessionPort;

/// A session: a stream under a key that outlives each of its users.
#[pyclass(frozen, module = "velo._core")]
pub struct Session {
    pub port: Arc<SessionPort>,
    /// Runs an inline function in the turn of its user. None in a worker.
    pub eager: Option<Arc<EagerRunner>>,
}

#[pymethods]
impl Session {
    /// Whether there is an attachment.
    #[getter]
    fn attached(&self, py: Python<'_>) -> bool {
        self.port.is_attached(py)
    }

    /// Detaches the user; see `SessionPort::leave`.
    fn leave(&self, py: Python<'_>) -> PyResult<bool> {
        self.port.leave(py, None)
    }

    /// Whether the function waits for an event.
    #[getter]
    fn waiting(&self, py: Python<'_>) -> bool {
        self.port.event_wait().is_waiting(py)
    }

    /// Calls `call()` once, when the function asks for its next event: what that raises, is raised there.
    /// It takes the place of an earlier call.
    fn when_asking(&self, py: Python<'_>, call: Py<PyAny>) -> PyResult<()> {
        self.port.when_asking(py, call)
    }

    /// Ends the input of a detached session.
    fn end_input(&self, py: Python<'_>) -> PyResult<()> {
        self.port.end_input(py)
    }
}
