//! The supervisor's three ends for Python: the client's, the zygote's and the worker's.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use pyo3::exceptions::{PyConnectionError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use velo_supervisor::{
    Client, ClientEvent, EmbeddedOptions, Exit, Key, KeyRefusal, LinkId, Order, Question, Ran,
    Refusal, RequestId, SupervisorError, WorkerControl, WorkerControlEvent, embedded, zygote,
};

use crate::errors;
use crate::ffi::fd;
use crate::module::worker_link::WorkerLink;
use crate::process::client::handle::ClientLinkHandle;

pub fn pool_error(error: impl std::fmt::Display) -> PyErr {
    errors::pool(error.to_string())
}

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
    /// does.
    #[staticmethod]
    fn connect(path: PathBuf) -> PyResult<Self> {
        match Client::connect(&path) {
            Ok(client) => Ok(Self::from(client)),
            Err(error @ SupervisorError::Nobody { .. }) => {
                Err(PyConnectionError::new_err(error.to_string()))
            }
            Err(error) => Err(pool_error(error)),
        }
    }

    /// Readable when `poll` has something to say.
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

    /// Asks what the supervisor does. Answered by `("status", text)`, JSON.
    fn status(&self) -> PyResult<()> {
        self.order(Order::Status)
    }

    /// Asks which streams there are. Answered by `("looked", text)` for each worker, JSON, and then
    /// `("done",)`. Workers tell what they have opened after the moments that are `known` of them,
    /// and the detached sessions with numbers above the ones in `detached`.
    fn look(&self, known: Vec<(u32, u64)>, detached: Vec<(u32, u64)>) -> PyResult<()> {
        self.order(Order::Look(Question::Streams { known, detached }))
    }

    /// Asks where the function of a stream stands; answered as `look`.
    fn inspect(&self, stream: String) -> PyResult<()> {
        self.order(Order::Look(Question::Inspect { stream }))
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

    /// What the supervisor has said since, as tuples `(what, ...)`.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = self.lock().poll().map_err(pool_error)?;
        events
            .into_iter()
            .map(|event| client_event(py, event))
            .collect()
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

fn client_event(py: Python<'_>, event: ClientEvent) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        ClientEvent::Hello(hello) => (
            "hello",
            hello.velo,
            hello.runtime,
            hello.max_workers,
            hello.max_streams,
        )
            .into_pyobject(py),
        ClientEvent::Link {
            request,
            link,
            worker,
            end,
            process,
        } => {
            let end = ClientLinkHandle::new(end, process)?;
            (
                "link",
                request.0,
                link.0,
                worker.id,
                worker.pid,
                Py::new(py, end)?,
            )
                .into_pyobject(py)
        }
        ClientEvent::Refused { request, reason } => {
            let why = match reason {
                Refusal::AtLimit => None,
                Refusal::Failed(why) => Some(why),
            };
            ("refused", request.0, why).into_pyobject(py)
        }
        ClientEvent::LinkRetired { link } => ("retired", link.0).into_pyobject(py),
        ClientEvent::LinkLeaving { link } => ("leaving", link.0).into_pyobject(py),
        ClientEvent::WorkerDied {
            link,
            worker,
            exit,
            ran,
            why,
            stack,
        } => {
            let (signal, code) = match exit {
                Exit::Signal(signal) => (Some(signal), None),
                Exit::Code(code) => (None, Some(code)),
                Exit::Unknown => (None, None),
            };
            let ran = match ran {
                Ran::Nothing => "nothing",
                Ran::Here => "here",
                Ran::Elsewhere => "elsewhere",
            };
            let why = why.map(|why| (why.stalled(), why.to_string()));
            let who = (worker.id, worker.pid);
            ("died", link.0, who, (signal, code), ran, why, stack).into_pyobject(py)
        }
        ClientEvent::NotPreloaded { module, why } => {
            ("not_preloaded", module, why).into_pyobject(py)
        }
        ClientEvent::Status(status) => {
            let text = serde_json::to_string(&status).map_err(pool_error)?;
            ("status", text).into_pyobject(py)
        }
        ClientEvent::Looked(look) => {
            let text = serde_json::to_string(&look).map_err(pool_error)?;
            ("looked", text).into_pyobject(py)
        }
        ClientEvent::Log(lines) => ("log", lines).into_pyobject(py),
        ClientEvent::KeyGranted {
            request,
            link,
            grant,
            fresh,
        } => ("key_granted", request.0, link.0, grant, fresh).into_pyobject(py),
        ClientEvent::KeyRefused { request, reason } => {
            let why = match reason {
                KeyRefusal::Taken => None,
                KeyRefusal::Failed(why) => Some(why),
            };
            ("key_refused", request.0, why).into_pyobject(py)
        }
        ClientEvent::KeyGone { request } => ("key_gone", request.0).into_pyobject(py),
        ClientEvent::Done => ("done",).into_pyobject(py),
        ClientEvent::Unable(why) => ("unable", why).into_pyobject(py),
        ClientEvent::Lost => ("lost",).into_pyobject(py),
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

/// `(workers, zygote)` of this process's supervisor, or None if none runs. Workers are tuples
/// `(id, pid, open streams)`.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn status(py: Python<'_>) -> Option<(Vec<(u32, i32, u32)>, Option<i32>)> {
    let status = py.detach(embedded::status)?;
    let workers = status
        .workers
        .iter()
        .map(|w| (w.id, w.pid, w.residents))
        .collect();
    Some((workers, status.zygote))
}

/// The number of cores that this process may use, within its affinity and cgroup quota. Read once,
/// because the system calls are slow.
#[pyfunction]
pub fn usable_cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(velo_shm::cores)
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
        zygote::Role::Worker(control) => {
            let fd = control.as_fd().as_raw_fd();
            Ok(Some(WorkerControlHandle {
                control: Mutex::new(control),
                fd,
            }))
        }
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

/// A worker's end of the control connection to its supervisor.
#[pyclass(frozen, module = "velo._core", name = "WorkerControl")]
pub struct WorkerControlHandle {
    control: Mutex<WorkerControl>,
    fd: i32,
}

impl WorkerControlHandle {
    fn lock(&self) -> std::sync::MutexGuard<'_, WorkerControl> {
        self.control
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl WorkerControlHandle {
    /// Readable when `poll` has something to say.
    fn fileno(&self) -> i32 {
        self.fd
    }

    /// The number of this worker.
    #[getter]
    fn worker(&self) -> u32 {
        self.lock().worker()
    }

    /// Notes that this process is a worker; then as `velo_supervisor::WorkerControl::start_watchdog`:
    /// ends this process, whatever it is doing, when its client is gone.
    fn start_watchdog(&self) {
        crate::codec::say_result();
        self.lock().start_watchdog();
    }

    /// What the supervisor wants, as tuples `(what, ...)`.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = self.lock().poll().map_err(pool_error)?;
        events
            .into_iter()
            .map(|event| match event {
                WorkerControlEvent::Attach { link, end } => {
                    ("attach", link.0, Py::new(py, WorkerLink::new(end)?)?).into_pyobject(py)
                }
                WorkerControlEvent::Detach { link } => ("detach", link.0).into_pyobject(py),
                WorkerControlEvent::Ask { ask, question } => match question {
                    Question::Streams { known, detached } => {
                        let first = |of: &[(u32, u64)]| of.first().map_or(0, |(_, known)| *known);
                        ("streams", ask, first(&known), first(&detached)).into_pyobject(py)
                    }
                    Question::Inspect { stream } => ("inspect", ask, stream).into_pyobject(py),
                    Question::End { stream, why } => ("end", ask, stream, why).into_pyobject(py),
                },
                WorkerControlEvent::Drain => ("drain",).into_pyobject(py),
                WorkerControlEvent::ReleaseKey { key, grant } => {
                    ("release_key", PyBytes::new(py, &key.0), grant).into_pyobject(py)
                }
                WorkerControlEvent::Retire => ("retire",).into_pyobject(py),
                WorkerControlEvent::Lost => ("lost",).into_pyobject(py),
                WorkerControlEvent::Orphaned => ("orphaned",).into_pyobject(py),
            })
            .collect()
    }

    /// The descriptor of the report, where the stacks of this process are to be written when it
    /// dies.
    #[getter]
    fn report(&self) -> i32 {
        self.lock().report().as_raw_fd()
    }

    /// The signal at which the stacks of this process are to be written to the report.
    #[getter]
    fn stacks_signal(&self) -> i32 {
        self.lock().stacks_signal()
    }

    /// Whether several programs may use this worker.
    #[getter]
    fn shared(&self) -> bool {
        self.lock().is_shared()
    }

    /// How many seconds an orphaned worker stays that no stream is open on.
    #[getter]
    fn outlive(&self) -> f64 {
        self.lock().outlive().unwrap_or_default().as_secs_f64()
    }

    /// A descriptor that is readable when the client of a link has ended, where the supervisor has
    /// given it. It is open until `detached`.
    fn client_fileno(&self, link: u64) -> Option<i32> {
        self.lock().client_fd(LinkId(link))
    }

    /// Answers a question of the supervisor, with JSON of `MOST_TOLD` bytes at most.
    fn tell(&self, ask: u64, answer: String) -> PyResult<()> {
        self.lock().tell(ask, answer).map_err(pool_error)
    }

    /// The longest answer, in bytes.
    #[classattr]
    const MOST_TOLD: usize = WorkerControl::MOST_TOLD;

    /// Tells the supervisor that an attachment is over, and whether its function goes on.
    fn key_free(&self, key: [u8; 32], grant: u64, live: bool) -> PyResult<()> {
        let told = self.lock().key_free(Key(key), grant, live);
        told.map_err(pool_error)
    }

    /// Tells the supervisor that a detached link is not used any more.
    fn detached(&self, link: u64) -> PyResult<()> {
        self.lock().detached(LinkId(link)).map_err(pool_error)
    }
}
