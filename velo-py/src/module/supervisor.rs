//! The supervisor for Python: a client's connection to it, the zygote, and what concerns forks.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use pyo3::exceptions::{
    PyConnectionError, PyConnectionRefusedError, PyOSError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use velo_supervisor::{
    Client, EmbeddedOptions, Key, LinkId, Order, Question, RequestId, SupervisorError, embedded,
    zygote,
};

use crate::errors::pool_error;
use crate::ffi::fd;
use crate::module::messages::Report;
use crate::module::worker_control::WorkerControlHandle;

fn options(
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    idle_timeout: f64,
) -> PyResult<EmbeddedOptions> {
    Ok(EmbeddedOptions {
        env,
        idle_timeout: seconds("idle_timeout", idle_timeout)?,
        ..EmbeddedOptions::new(command)
    })
}

/// A time that a user has set.
///
/// # Errors
/// When it is none: negative, or not finite.
pub fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        PyValueError::new_err(format!(
            "`{name}` must be a number of seconds, at least 0, not {value}"
        ))
    })
}

/// One event loop's connection to the supervisor.
#[pyclass(frozen, module = "velo._core")]
pub struct SupervisorClient {
    client: Mutex<Client>,
    fd: i32,
}

#[pymethods]
impl SupervisorClient {
    /// Connects to the supervisor of this process, which is started if it does not run.
    #[new]
    #[pyo3(signature = (command, env, *, idle_timeout=10.0, max_workers=None, min_workers=0))]
    fn new(
        command: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        idle_timeout: f64,
        max_workers: Option<u32>,
        min_workers: u32,
    ) -> PyResult<Self> {
        let options = EmbeddedOptions {
            max_workers,
            min_workers,
            ..options(command, env, idle_timeout)?
        };
        Ok(Self::from(embedded::connect(&options).map_err(pool_error)?))
    }

    /// Starts the supervisor of this process if it does not run, and the zygote, for a worker that is
    /// about to be asked for.
    #[staticmethod]
    #[pyo3(signature = (command, env, *, idle_timeout=10.0))]
    fn expect(
        command: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        idle_timeout: f64,
    ) -> PyResult<()> {
        embedded::expect(&options(command, env, idle_timeout)?).map_err(pool_error)
    }

    /// Connects to the standalone supervisor that listens at `path`. `ConnectionError` when none
    /// does, which is `ConnectionRefusedError` where one has left its socket; `TimeoutError` when one
    /// does and accepts no connection for a second.
    #[staticmethod]
    fn connect(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let connected = py.detach(|| Client::connect(&path));
        connected.map(Self::from).map_err(|error| match &error {
            SupervisorError::Nobody { source, .. } => match source.kind() {
                ErrorKind::ConnectionRefused => {
                    PyConnectionRefusedError::new_err(error.to_string())
                }
                _ => PyConnectionError::new_err(error.to_string()),
            },
            SupervisorError::Silent { .. } => PyTimeoutError::new_err(error.to_string()),
            _ => pool_error(error),
        })
    }

    /// Readable when `poll` has reports.
    fn fileno(&self) -> i32 {
        self.fd
    }

    /// Asks for a link to one more worker. Returns the number of the request.
    fn acquire(&self, max_workers: u32) -> PyResult<u64> {
        Ok(self.lock().acquire(max_workers).map_err(pool_error)?.0)
    }

    /// Has the worker of a link looked at, for streams that may hold it for `stall` seconds, and
    /// allow it `memory` bytes of its own.
    fn watch(&self, link: u64, stall: Option<f64>, memory: Option<u64>) -> PyResult<()> {
        let stall = stall.and_then(|stall| Duration::try_from_secs_f64(stall).ok());
        let watched = self.lock().watch(LinkId(link), stall, memory);
        watched.map_err(pool_error)
    }

    /// Has workers that are forked from now on import these modules before they serve.
    fn preload(&self, modules: Vec<String>, paths: Vec<OsString>) -> PyResult<()> {
        self.lock().preload(modules, paths).map_err(pool_error)
    }

    /// Asks for the state of the supervisor. Answered by `Report.Status`.
    fn status(&self) -> PyResult<()> {
        self.order(Order::Status)
    }

    /// Asks which streams there are. Answered by a `Report.Looked` for each worker, and then by
    /// `Report.Done`. Workers tell what they have opened after the moments that are `known` of them,
    /// and the detached sessions with numbers above the ones in `detached`.
    fn look(&self, known: Vec<(u32, u64)>, detached: Vec<(u32, u64)>) -> PyResult<()> {
        self.order(Order::Look(Question::Streams { known, detached }))
    }

    /// Asks where the function of a stream, or of a key of it, stands; answered as `look`.
    #[pyo3(signature = (stream, key=None))]
    fn inspect(&self, stream: String, key: Option<String>) -> PyResult<()> {
        self.order(Order::Look(Question::Inspect { stream, key }))
    }

    /// Has a stream ended, and its client told why; answered as `look`.
    fn end(&self, stream: String, why: String) -> PyResult<()> {
        self.order(Order::Look(Question::End { stream, why }))
    }

    /// Has the supervisor take no new streams, and end with the last one or after `bound` seconds.
    #[pyo3(signature = (bound=None))]
    fn drain(&self, bound: Option<f64>) -> PyResult<()> {
        let bound = bound.map(|seconds| (seconds * 1000.0) as u64);
        self.order(Order::Drain { bound })
    }

    /// Has the supervisor replace all workers; no stream is cut.
    fn restart(&self) -> PyResult<()> {
        self.order(Order::Restart)
    }

    /// Asks for the last lines of the supervisor's log, and with `follow` for all that come.
    fn logs(&self, follow: bool) -> PyResult<()> {
        self.order(Order::Logs { follow })
    }

    /// Asks to attach to the session of a key. Returns the number of the request.
    fn acquire_key(&self, key: [u8; 32], max_workers: u32, wait: bool) -> PyResult<u64> {
        let request = self.lock().acquire_key(Key(key), max_workers, wait);
        Ok(request.map_err(pool_error)?.0)
    }

    /// Withdraws a request for a key.
    fn release_key(&self, request: u64, key: [u8; 32]) -> PyResult<()> {
        let released = self.lock().release_key(RequestId(request), Key(key));
        released.map_err(pool_error)
    }

    /// Says that the end of an attachment was seen.
    fn left_key(&self, key: [u8; 32], grant: u64) -> PyResult<()> {
        self.lock().left_key(Key(key), grant).map_err(pool_error)
    }

    /// Gives a link back.
    fn release(&self, link: u64) -> PyResult<()> {
        self.lock().release(LinkId(link)).map_err(pool_error)
    }

    /// Gives a link back whose memory its worker wrote over; the worker is replaced.
    fn release_broken(&self, link: u64) -> PyResult<()> {
        self.lock().release_broken(LinkId(link)).map_err(pool_error)
    }

    /// The reports of the supervisor since the last call.
    fn poll(&self, py: Python<'_>) -> PyResult<Vec<Report>> {
        let events = self.lock().poll().map_err(pool_error)?;
        let reports = events.into_iter().map(|event| Report::of(py, event));
        reports.collect()
    }
}

impl From<Client> for SupervisorClient {
    fn from(client: Client) -> Self {
        let fd = client.as_fd().as_raw_fd();
        SupervisorClient {
            client: Mutex::new(client),
            fd,
        }
    }
}

impl SupervisorClient {
    fn order(&self, order: Order) -> PyResult<()> {
        self.lock().order(order).map_err(pool_error)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Client> {
        self.client
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Stops the supervisor of this process and all of its workers; waits for at most `bound` seconds.
#[pyfunction]
#[pyo3(signature = (bound=5.0))]
pub fn shutdown(py: Python<'_>, bound: f64) -> PyResult<()> {
    let bound = seconds("bound", bound)?;
    py.detach(|| embedded::shutdown(bound));
    Ok(())
}

/// The state of the supervisor of this process.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct PoolStatus {
    workers: Vec<PoolWorker>,
    /// The process id of the zygote, if one runs.
    zygote: Option<i32>,
}

/// One worker of the supervisor of this process.
#[pyclass(frozen, get_all, module = "velo._core")]
#[derive(Clone)]
pub struct PoolWorker {
    worker: u32,
    pid: i32,
    /// Number of open streams.
    streams: u32,
}

/// The state of the supervisor of this process. None: none runs.
#[pyfunction]
pub fn status(py: Python<'_>) -> Option<PoolStatus> {
    let status = py.detach(embedded::status)?;
    let workers = status.workers.iter().map(|worker| PoolWorker {
        worker: worker.id,
        pid: worker.pid,
        streams: worker.residents,
    });
    Some(PoolStatus {
        workers: workers.collect(),
        zygote: status.zygote,
    })
}

/// Has processes that this one forks begin with the default action of these signals.
#[pyfunction]
pub fn default_in_children(signals: Vec<i32>) {
    signals
        .into_iter()
        .for_each(velo_shm::fork::default_in_children);
}

/// Has processes that this one forks get dead descriptors in place of these, which stay open for as long
/// as this process lives.
#[pyfunction]
pub fn keep_from_children(fds: Vec<i32>) {
    fds.into_iter().for_each(fd::keep_from_children);
}

/// Shows a title for this process in `ps`, `top` and `htop`.
#[pyfunction]
pub fn set_title(title: &str) {
    velo_supervisor::set_title(title);
}

/// To be called before a fork.
#[pyfunction]
pub fn before_fork() {
    embedded::before_fork();
}

/// To be called after a fork, in the parent.
#[pyfunction]
pub fn after_fork_parent() {
    embedded::after_fork_parent();
}

/// To be called after a fork, in the child.
#[pyfunction]
pub fn after_fork_child() {
    embedded::after_fork_child();
}

/// Serves as the zygote. Returns a `WorkerControl` in each forked worker, and None in the zygote at
/// its end. `fork` is `os.fork`; `preload(module, paths)` imports a module.
#[pyfunction]
pub fn serve_zygote(
    py: Python<'_>,
    fork: Py<PyAny>,
    preload: Py<PyAny>,
) -> PyResult<Option<WorkerControlHandle>> {
    // SAFETY: a zygote's main function calls this once, and nothing else in the process knows of
    // the descriptor.
    let fd = unsafe { zygote::inherited_fd() }.map_err(pool_error)?;
    let forked = || -> std::io::Result<i32> {
        let pid = fork.call0(py).and_then(|pid| pid.extract::<i32>(py));
        pid.map_err(|error| match error_number(py, &error) {
            Some(number) => std::io::Error::from_raw_os_error(number),
            None => std::io::Error::other(error.to_string()),
        })
    };
    let imported = |module: &str, paths: &[OsString]| match preload.call1(py, (module, paths)) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    match zygote::serve(fd, forked, imported).map_err(pool_error)? {
        zygote::Role::Worker(control) => Ok(Some(WorkerControlHandle::new(control))),
        zygote::Role::Done => Ok(None),
    }
}

/// The system's number in an `OSError`.
fn error_number(py: Python<'_>, error: &PyErr) -> Option<i32> {
    if !error.is_instance_of::<PyOSError>(py) {
        return None;
    }
    error.value(py).getattr("errno").ok()?.extract().ok()
}
