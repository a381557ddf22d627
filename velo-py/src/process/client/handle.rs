//! A client's end of a link, as Python holds it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use pyo3::prelude::*;
use velo_shm::{Alarm, Coalesce, LinkLoad, fork};
use velo_supervisor::client_side::SlotTable;

use super::link::{ClientLink, LinkState};
use super::opening;
use super::ring_stream::Recovery;
use crate::cell::GilCell;
use crate::errors;
use crate::ffi::destroy::destroy;
use crate::process::control::{self, Control};

/// A link as Python holds it.
#[pyclass(frozen, weakref, module = "velo._core", name = "ClientLink")]
pub struct ClientLinkHandle {
    pub link: Arc<ClientLink>,
    /// Readable when the worker has ended, where the supervisor has given it.
    process: Option<OwnedFd>,
}

/// The stream whose function a worker ran when it died.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct Culprit {
    /// The stream's number.
    stream: u64,
    /// The stream's name, if this client still has it open.
    name: Option<String>,
    /// The event that the function took last, counted from 1; 0 before the first.
    event: u64,
}

impl ClientLinkHandle {
    /// The client's side of a fresh link.
    pub fn new(end: velo_shm::Link, process: Option<OwnedFd>) -> PyResult<Self> {
        let (control_out, control_in) = control::open(&end)?;
        let state = LinkState {
            control_out,
            control_in,
            streams: SlotTable::default(),
        };
        let alarm =
            Alarm::create().map_err(|error| errors::pool(format!("cannot use a link: {error}")))?;
        let load = LinkLoad::new(&end);
        let link = ClientLink {
            end,
            load,
            state: GilCell::new(state),
            asleep: AtomicUsize::new(0),
            batching: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            on_broken: GilCell::default(),
            on_log: GilCell::default(),
            coalescing: AtomicBool::new(false),
            wake_soon: GilCell::default(),
            waking: AtomicBool::new(false),
            posted: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            slept: AtomicU64::new(0),
            coalescer: Coalesce::default(),
            alarm,
            dead: AtomicBool::new(false),
            born: fork::generation(),
            opened: AtomicU64::new(0),
            unwatched: AtomicBool::new(false),
            on_slow: GilCell::default(),
            slow: GilCell::default(),
        };
        Ok(ClientLinkHandle {
            link: Arc::new(link),
            process,
        })
    }
}

impl Drop for ClientLinkHandle {
    /// Forgets the link's streams: those that never ended must not keep the link alive.
    fn drop(&mut self) {
        destroy(|py| {
            self.link.dead.store(true, Relaxed);
            drop(self.link.state.with(py, |state| state.streams.clear()));
            self.link.count_busy(py);
        });
    }
}

#[pymethods]
impl ClientLinkHandle {
    /// The doorbell, for the event loop to watch.
    fn fileno(&self) -> i32 {
        self.link.end.doorbell().as_fd().as_raw_fd()
    }

    /// A descriptor that is readable when the worker has ended, from a standalone supervisor.
    fn process_fileno(&self) -> Option<i32> {
        self.process.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The alarm that wakes batching streams, for the event loop to watch: it calls `on_alarm`.
    fn alarm_fileno(&self) -> i32 {
        self.link.alarm.as_fd().as_raw_fd()
    }

    /// How to have `wake` called at the loop's next turn.
    fn set_wake_soon(&self, py: Python<'_>, soon: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.wake_soon.with(py, |place| *place = Some(soon))?)
    }

    /// Wakes the worker for the messages that were posted.
    fn wake(&self) {
        self.link.wake();
    }

    /// What to call when the link turns out to be broken, after its streams have failed.
    fn set_broken(&self, py: Python<'_>, call: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.on_broken.with(py, |place| *place = Some(call))?)
    }

    /// Looks at everything that a peer's mistake could hide; see `ClientLink::check_up`.
    fn check_up(&self, py: Python<'_>) {
        self.link.check_up(py);
    }

    /// What to call with the bytes of each log record of the worker.
    fn set_log(&self, py: Python<'_>, deliver: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.on_log.with(py, |place| *place = Some(deliver))?)
    }

    /// What to call for each slow step: with the name of its stream, the seconds that it took, whether
    /// other streams had to wait for it, and whether it was one of several.
    fn set_slow(&self, py: Python<'_>, tell: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.on_slow.with(py, |place| *place = Some(tell))?)
    }

    /// Whether a stream is open whose function makes a habit of slow steps.
    #[getter]
    fn slow(&self, py: Python<'_>) -> PyResult<bool> {
        self.link.has_slow_stream(py)
    }

    /// Has the worker send the log records that this process would handle.
    fn set_levels(&self, py: Python<'_>, packed: Vec<u8>) -> PyResult<()> {
        self.link.send(py, &Control::Levels { packed })
    }

    /// Has the worker know where this process is: see `velo._process.surroundings`.
    fn set_surroundings(&self, py: Python<'_>, packed: Vec<u8>) -> PyResult<()> {
        self.link.send(py, &Control::Surroundings { packed })
    }

    /// Has the worker forget a function, of which no stream is opened any more. It can wait.
    fn forget(&self, py: Python<'_>, function: u64) -> PyResult<()> {
        match self.link.is_dead() {
            true => Ok(()),
            false => self.link.post(py, &Control::Forget { function }),
        }
    }

    /// Wakes the batching streams.
    fn on_alarm(&self, py: Python<'_>) {
        if self.link.is_dead() {
            return;
        }
        self.link.on_alarm(py);
    }

    /// The doorbell rang.
    fn on_doorbell(&self, py: Python<'_>) {
        if self.link.is_dead() {
            return;
        }
        self.link.end.doorbell().drain();
        self.link.end.disarm();
        self.link.process_ready(py);
        self.link.rearm(py);
    }

    /// Teaches the worker a function under the number `function`.
    fn define(&self, py: Python<'_>, function: u64, definition: &[u8]) -> PyResult<()> {
        self.link.send(
            py,
            &Control::Define {
                function,
                definition: definition.to_vec(),
            },
        )
    }

    /// Takes over a stream that has lost its worker. False when the link has been retired.
    fn reopen(&self, py: Python<'_>, recovery: &Recovery, function: u64) -> PyResult<bool> {
        opening::reopen(py, &self.link, recovery, function)
    }

    /// Whether a stream is still on this link, and another worker could take it over.
    fn may_lose(&self, py: Python<'_>, recovery: &Recovery) -> PyResult<bool> {
        recovery.may_leave_link(py, &self.link)
    }

    /// The stream of this link whose function the worker runs, or ran when it died; None if it ran none.
    fn culprit(&self, py: Python<'_>) -> Option<Culprit> {
        let running = self.link.end.running()?;
        let known = self.link.stream(py, running.slot).and_then(|stream| {
            let event = stream.event_in_worker(py, running)?;
            Some((stream.name().to_owned(), event))
        });
        let (name, event) = known.unzip();
        Some(Culprit {
            stream: running.stream,
            name,
            event: event.unwrap_or(running.event),
        })
    }

    /// The worker has died, or does no more for the link: every stream on it fails with what
    /// `make(name, number, in_flight)` returns, or another worker takes it over.
    /// `replace(recovery, error)` is called for those that the worker had not opened when it died.
    fn fail(
        &self,
        py: Python<'_>,
        make: &Bound<'_, PyAny>,
        replace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.link.process_ready(py); // what the worker has written counts
        self.link.dead.store(true, Relaxed);
        let running = self.link.end.running();
        for stream in self.link.all(py) {
            stream.on_worker_gone(py, running, (make, replace))?;
        }
        Ok(())
    }

    /// Whether a stream with limits was opened since the supervisor was last asked to watch the worker.
    fn take_unwatched(&self) -> bool {
        self.link.unwatched.swap(false, Relaxed)
    }

    /// Has other workers take over the streams that can be, or those of these names; without `slow`,
    /// not those that make a habit of slow steps. Returns how many are to go.
    #[pyo3(signature = (names=None, slow=true))]
    fn send_away(&self, py: Python<'_>, names: Option<Vec<String>>, slow: bool) -> PyResult<usize> {
        let mut count = 0;
        for stream in self.link.all(py) {
            let named = names
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name == stream.name()));
            let chosen = named && (slow || !stream.is_slow(py)?);
            count += usize::from(chosen && stream.send_away(py)?);
        }
        Ok(count)
    }

    /// How many streams are open on this link.
    #[getter]
    fn streams(&self, py: Python<'_>) -> u32 {
        self.link.streams(py) // not the shared count, which the worker could write over
    }

    /// Whether the worker behind it is gone.
    #[getter]
    fn dead(&self) -> bool {
        self.link.is_dead()
    }
}
