//! The client's end of process-mode streams: one [`ClientLink`] a worker, one [`RingChannel`] a
//! stream.

mod backlog;
mod link;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use velo_shm::{Limits, LinkEnd};

use crate::cell::GilCell;
use crate::channel::{Channel, WhenFull};
use crate::control::{self, Control};
use crate::errors;
use crate::rings::Rings;
use crate::state::StreamCore;
use crate::stream::Opened;
use crate::wait::Waits;
use backlog::Backlog;
use link::{Link, LinkState};
pub use stream::RingChannel;
use stream::{ClientEnds, Ends};

/// A link as Python holds it.
#[pyclass(frozen, weakref, module = "velo._core")]
pub struct ClientLink {
    link: Arc<Link>,
    /// Readable when the worker has ended, where the supervisor has given it.
    process: Option<OwnedFd>,
}

impl ClientLink {
    /// The client's side of a fresh link.
    pub fn new(end: Arc<LinkEnd>, process: Option<OwnedFd>) -> PyResult<Self> {
        let (control_out, control_in) = control::open(&end)?;
        let state = LinkState {
            control_out,
            control_in,
            streams: HashMap::new(),
            free: VecDeque::new(),
            fresh: control::SLOT + 1,
        };
        let link = Link {
            end,
            state: GilCell::new(state),
            asleep: AtomicUsize::new(0),
            patient: AtomicUsize::new(0),
            start_nap: GilCell::default(),
            deliver_log: GilCell::default(),
            napping: AtomicBool::new(false),
            wake_soon: GilCell::default(),
            waking: AtomicBool::new(false),
            mentioned: AtomicUsize::new(0),
            woken: AtomicU64::new(0),
            no_naps: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            unwatched: AtomicBool::new(false),
            tell_slow: GilCell::default(),
            slow: AtomicUsize::new(0),
        };
        Ok(ClientLink {
            link: Arc::new(link),
            process,
        })
    }
}

impl Drop for ClientLink {
    /// The client lets go of the link: streams that never ended must not keep it alive.
    fn drop(&mut self) {
        Python::attach(|py| {
            self.link.dead.store(true, Relaxed);
            drop(
                self.link
                    .state
                    .with(py, |state| std::mem::take(&mut state.streams)),
            );
            self.link.count_busy(py);
        });
    }
}

#[pymethods]
impl ClientLink {
    /// The doorbell, for the event loop to watch.
    fn fileno(&self) -> i32 {
        self.link.end.doorbell().as_fd().as_raw_fd()
    }

    /// A descriptor that is readable when the worker has ended, from a standalone supervisor.
    fn process_fileno(&self) -> Option<i32> {
        self.process.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// How to have `nap_over` called after about a millisecond.
    fn set_nap(&self, py: Python<'_>, start: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.start_nap.with(py, |place| *place = Some(start))?)
    }

    /// How to have `wake` called at the loop's next turn.
    fn set_wake_soon(&self, py: Python<'_>, soon: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.wake_soon.with(py, |place| *place = Some(soon))?)
    }

    /// Wakes the worker for what it was told.
    fn wake(&self) {
        self.link.wake();
    }

    /// What to call with the bytes of each log record of the worker.
    fn set_log(&self, py: Python<'_>, deliver: Py<PyAny>) -> PyResult<()> {
        Ok(self
            .link
            .deliver_log
            .with(py, |place| *place = Some(deliver))?)
    }

    /// What to call with the name of a stream whose function held its neighbours up, and for how many
    /// seconds.
    fn set_slow(&self, py: Python<'_>, tell: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.tell_slow.with(py, |place| *place = Some(tell))?)
    }

    /// Whether a stream is open whose function holds others up, or would.
    #[getter]
    fn slow(&self) -> bool {
        self.link.slow.load(Relaxed) > 0
    }

    /// Has the worker log what this process would handle.
    fn set_levels(&self, py: Python<'_>, packed: Vec<u8>) -> PyResult<()> {
        self.link.tell(py, &Control::Levels { packed })
    }

    /// The nap is over.
    fn nap_over(&self, py: Python<'_>) {
        self.link.nap_over(py);
    }

    /// The doorbell rang.
    fn on_doorbell(&self, py: Python<'_>) {
        self.link.end.doorbell().drain();
        self.link.end.disarm();
        self.link.process_ready(py);
        self.link.rearm(py);
    }

    /// Teaches the worker a function under the number `function`.
    fn define(&self, py: Python<'_>, function: u64, definition: &[u8]) -> PyResult<()> {
        self.link.tell(
            py,
            &Control::Define {
                function,
                definition: definition.to_vec(),
            },
        )
    }

    /// Opens a stream of `function`. None when the link has been retired: use another.
    fn open(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        function: u64,
        limits: (u32, u64, String),
        budgets: (Option<f64>, Option<f64>, Option<u64>),
        name: String,
    ) -> PyResult<Option<Opened>> {
        let (buffer, max_bytes, full) = limits;
        let full: WhenFull = full.parse()?;
        let drops = full == WhenFull::DropOldest;
        let link = &self.link;
        if link.dead.load(Relaxed) || !link.end.enter() {
            return Ok(None);
        }
        let Some(slot) = link.take_slot(py)? else {
            link.end.leave();
            return Err(errors::pool(format!(
                "one worker cannot hold more than {} streams of one event loop; use more workers",
                link.end.slots() - 1
            )));
        };
        let number = link.opened.fetch_add(1, Relaxed);
        let limits = Limits {
            events: buffer,
            bytes: max_bytes,
        };
        let (producer, consumer) = link
            .end
            .open_slot(slot, limits)
            .map_err(|error| errors::pool(format!("cannot open a stream: {error}")))?;
        let waits = Arc::new(Waits::default());
        let shared = Arc::new_cyclic(|this: &Weak<ClientEnds>| ClientEnds {
            ends: GilCell::new(Ends {
                rings: Some(Rings::new(producer, consumer, max_bytes)),
                ended: false,
                asked: false,
                failure: None,
                progress: (0, 0),
                bytes: (0, 0),
                backlog: drops.then(|| Backlog::new(buffer)),
                skipped: 0,
            }),
            slot,
            number,
            link: link.clone(),
            waits: waits.clone(),
            asleep: AtomicBool::new(false),
            patient: AtomicBool::new(false),
            left: AtomicU32::new(0),
            orphaned: AtomicBool::new(false),
            limited: budgets != (None, None, None),
            slow: AtomicBool::new(false),
            this: this.clone(),
            name: name.clone(),
        });
        link.state
            .with(py, |state| state.streams.insert(slot, shared.clone()))?;
        link.count_busy(py);
        if shared.limited && link.end.begin_limit() {
            link.unwatched.store(true, Relaxed);
        }
        let (stall, event, _) = budgets;
        link.tell_soon(
            py,
            &Control::Open {
                stream: number,
                slot,
                function,
                buffer,
                max_bytes,
                drops,
                stall_ms: milliseconds(stall),
                event_ms: milliseconds(event),
                name,
            },
        )?;
        let name = shared.name.clone();
        let cancel = CancelStream {
            stream: Arc::downgrade(&shared),
        };
        let cancel = Py::new(py, cancel)?.into_any();
        let channel = Channel::Ring(RingChannel { shared });
        Ok(Some(Opened::new(StreamCore::new(
            event_loop, channel, waits, cancel, full, name,
        ))))
    }

    /// The stream whose function the worker runs, or ran when it died: its number, its name if this
    /// side still has it open, and the event that the function took last, counted from 1 (0 before
    /// the first). None: the worker ran none of this link.
    fn culprit(&self, py: Python<'_>) -> Option<(u64, Option<String>, u64)> {
        let running = self.link.end.running()?;
        let stream = self
            .link
            .stream(py, running.slot)
            .filter(|stream| stream.number == running.stream);
        let name = stream.map(|stream| stream.name.clone());
        Some((running.stream, name, running.event))
    }

    /// The worker has died: every stream on it fails with what `make(name, number, in_flight)`
    /// returns.
    fn fail(&self, py: Python<'_>, make: &Bound<'_, PyAny>) -> PyResult<()> {
        self.link.dead.store(true, Relaxed);
        let running = self.link.end.running();
        for stream in self.link.all(py) {
            let (sent, handled) = stream.ends.with(py, |ends| ends.progress_now())?;
            // The board is ahead of what a busy function has said to be handled.
            let here = running.filter(|r| (r.slot, r.stream) == (stream.slot, stream.number));
            let begun = here.map_or(0, |running| running.event.saturating_sub(1));
            let in_flight = sent.saturating_sub(handled.max(begun));
            let error = PyErr::from_value(make.call1((&stream.name, stream.number, in_flight))?);
            stream.fail(py, error);
            if stream.orphaned.load(Relaxed) {
                stream.drop_results(py);
            }
        }
        Ok(())
    }

    /// Whether a stream with limits was opened that nobody has an eye on yet.
    fn take_unwatched(&self) -> bool {
        self.link.unwatched.swap(false, Relaxed)
    }

    /// How many streams are open on this link.
    #[getter]
    fn streams(&self) -> u32 {
        self.link.end.residents()
    }

    /// Whether the worker behind it is gone.
    #[getter]
    fn dead(&self) -> bool {
        self.link.dead.load(Relaxed)
    }
}

/// A limit as it travels: 0 for none.
fn milliseconds(seconds: Option<f64>) -> u64 {
    seconds.map_or(0, |seconds| ((seconds * 1000.0).ceil() as u64).max(1))
}

/// Cancels a stream's function in its worker.
#[pyclass(frozen)]
struct CancelStream {
    stream: Weak<ClientEnds>,
}

#[pymethods]
impl CancelStream {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let Some(stream) = self.stream.upgrade() else {
            return Ok(());
        };
        let open = stream
            .ends
            .with(py, |ends| ends.rings.is_some() && ends.failure.is_none())?;
        match open && !stream.link.dead.load(Relaxed) {
            true => stream.link.tell(py, &Control::Cancel { slot: stream.slot }),
            false => Ok(()),
        }
    }
}
