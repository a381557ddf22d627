//! A worker's control connection to its supervisor, for Python.

use std::os::fd::AsRawFd;
use std::sync::Mutex;

use pyo3::prelude::*;
use velo_supervisor::{Key, LinkId, WorkerControl};

use crate::errors::pool_error;
use crate::module::messages::WorkerOrder;

/// A worker's end of the control connection to its supervisor.
#[pyclass(frozen, module = "velo._core", name = "WorkerControl")]
pub struct WorkerControlHandle {
    control: Mutex<WorkerControl>,
    fd: i32,
}

impl WorkerControlHandle {
    /// The worker's end.
    pub fn new(control: WorkerControl) -> Self {
        WorkerControlHandle {
            fd: control.as_fd().as_raw_fd(),
            control: Mutex::new(control),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WorkerControl> {
        self.control
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl WorkerControlHandle {
    /// Readable when `poll` has orders.
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

    /// The orders of the supervisor since the last call.
    fn poll(&self, py: Python<'_>) -> PyResult<Vec<WorkerOrder>> {
        let events = self.lock().poll().map_err(pool_error)?;
        let orders = events.into_iter().map(|event| WorkerOrder::of(py, event));
        orders.collect()
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
