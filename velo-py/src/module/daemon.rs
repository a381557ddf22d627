//! The standalone supervisor for Python: the same as the embedded one, in a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use velo_supervisor::{DaemonOptions, LogFormat, Notes, daemon, published};

use crate::errors::pool_error;
use crate::module::supervisor::seconds;

/// What the program around a standalone supervisor adds to its status and its log.
#[pyclass(frozen, module = "velo._core", name = "DaemonNotes")]
pub struct DaemonNotes(Notes);

#[pymethods]
impl DaemonNotes {
    #[new]
    fn new() -> Self {
        DaemonNotes(Notes::default())
    }

    /// Says what is kept of sessions in a checkpoint, as JSON.
    fn tell_checkpoint(&self, text: String) {
        self.0.tell_checkpoint(text);
    }

    /// Writes a line to the log.
    fn log(&self, py: Python<'_>, failure: bool, text: &str) {
        py.detach(|| self.0.log(failure, text));
    }
}

/// Runs a standalone supervisor in this process until it gets the order to stop. `ready` is called with the
/// path of its socket once clients can connect.
#[pyfunction]
#[pyo3(signature = (
    command, env, ready, *, runtime, socket=None, workers=(0, None), preload=Vec::new(), json=false,
    idle_timeout=10.0, stop_timeout=10.0, hello_timeout=5.0, max_clients=1000, client_workers=None,
    client_streams=None, notes=None,
))]
#[allow(clippy::too_many_arguments)]
pub fn serve_daemon(
    py: Python<'_>,
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    ready: Py<PyAny>,
    runtime: String,
    socket: Option<PathBuf>,
    workers: (u32, Option<u32>),
    preload: Vec<String>,
    json: bool,
    idle_timeout: f64,
    stop_timeout: f64,
    hello_timeout: f64,
    max_clients: usize,
    client_workers: Option<u32>,
    client_streams: Option<u32>,
    notes: Option<&DaemonNotes>,
) -> PyResult<()> {
    let mut options = DaemonOptions::new(command);
    let (min, max) = workers;
    options.pool.env = env;
    options.pool.min_workers = min;
    options.pool.max_workers = max;
    options.pool.idle_timeout = seconds("idle_timeout", idle_timeout)?;
    options.socket = socket;
    options.runtime = runtime;
    options.preload = preload;
    if json {
        options.log_format = LogFormat::Json;
    }
    options.max_clients = max_clients;
    options.client_workers = client_workers;
    options.client_streams = client_streams;
    if let Some(notes) = notes {
        options.notes = notes.0.clone();
    }
    options.stop_bound = seconds("stop_timeout", stop_timeout)?;
    options.hello_bound = seconds("hello_timeout", hello_timeout)?;
    let ready = |path: &Path| {
        Python::attach(|py| {
            if let Err(error) = ready.call1(py, (path,)) {
                error.write_unraisable(py, None);
            }
        });
    };
    py.detach(|| daemon::serve(options, ready))
        .map_err(pool_error)
}

/// The programs of this user that have a supervisor of their own: `(pid, path of its socket)`.
#[pyfunction]
pub fn programs() -> Vec<(i32, PathBuf)> {
    let found = published::programs().into_iter();
    found.map(|program| (program.pid, program.path)).collect()
}

/// Removes the socket of a program that listens there no more.
#[pyfunction]
pub fn forget_program(path: PathBuf) {
    published::forget(&path);
}

/// Where clients and standalone supervisors meet when nothing else is said.
#[pyfunction]
pub fn default_socket() -> PathBuf {
    daemon::default_socket()
}
