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

    /// Ends the input of a detached session.
    fn end_input(&self, py: Python<'_>) -> PyResult<()> {
        self.port.end_input(py)
    }
}
