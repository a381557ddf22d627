//! The worker's end of process-mode streams: one [`WorkerLink`] a client, one [`RingPort`] a
//! stream.

mod lane;
mod port;
mod serve;
mod slow_steps;
mod snapshot;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use velo_shm::{Consumer, Limits, Producer};

use crate::cell::GilCell;
use crate::errors;
use crate::function::deadline::Budget;
use crate::function::port::{FunctionSide, Port};
use crate::function::session::{Half, Kept, KeptPort};
use crate::function::stream_port::StreamPort;
use crate::process::control::{self, Control, Unsent};
use crate::process::ring_pair::Rings;
pub use lane::Frame;
use port::Ends;
pub use port::RingPort;
pub use watch::LinkWatch;

/// The worker's end of a link, shared by its streams.
struct Link {
    pub(super) end: velo_shm::Link,
    pub(super) state: GilCell<LinkState>,
    /// Nothing can be said on it any more.
    broken: AtomicBool,
}

struct LinkState {
    pub(super) control_out: Producer,
    pub(super) control_in: Consumer,
    pub(super) ports: HashMap<u32, Arc<RingPort>>,
    /// What the stream that is opened next is attached to.
    pub(super) keep: Option<Py<PyTuple>>,
}

impl Link {
    pub(super) fn tell(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        let sent = self.state.with(py, |state| {
            control::send(py, &mut state.control_out, message)
        })?;
        if let Err(Unsent::Broken(_)) = &sent {
            self.broken.store(true, Relaxed);
            self.end.notify_self(control::SLOT); // `process_ready` says so to this worker
        }
        sent?;
        self.end.notify(control::SLOT);
        Ok(())
    }

    fn port(&self, py: Python<'_>, slot: u32) -> Option<Arc<RingPort>> {
        self.state
            .with(py, |state| state.ports.get(&slot).cloned())
            .ok()
            .flatten()
    }

    /// The port of a stream that the client has opened.
    fn port_at(
        self: &Arc<Self>,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        place: (u32, u64),
        limits: (u32, u64, bool, bool, bool),
        function: Arc<FunctionSide>,
        kept: bool,
    ) -> PyResult<Arc<RingPort>> {
        let (slot, stream) = place;
        let (buffer, max_bytes, drops, recovers, restored) = limits;
        let limits = Limits {
            events: buffer,
            bytes: max_bytes,
        };
        let (producer, consumer) = self
            .end
            .open_slot(slot, limits)
            .map_err(|error| errors::corrupted(format!("cannot open slot {slot}: {error}")))?;
        let port = Arc::new_cyclic(|this: &Weak<RingPort>| RingPort {
            ends: GilCell::new(Ends {
                rings: Some(Rings::new(producer, consumer, max_bytes)),
                current: None,
                input_ended: false,
                asked: false,
                cancelled: false,
                ended_by: None,
                unsent_end: None,
                drops,
                recovers,
                restored,
                saving: None,
                unsaved: None,
            }),
            link: self.clone(),
            slot,
            number: stream,
            function,
            kept,
            event_loop,
            this: this.clone(),
            held: GilCell::default(),
            counted: AtomicBool::new(true),
        });
        self.state
            .with(py, |state| state.ports.insert(slot, port.clone()))?;
        port::one_more();
        Ok(port)
    }

    /// The port that the client has opened under this number, if it is there.
    fn known(&self, py: Python<'_>, (slot, stream): (u32, u64)) -> Option<Arc<RingPort>> {
        let port = self.port(py, slot);
        port.filter(|port| port.number == stream)
    }

    fn close(&self, py: Python<'_>, slot: u32) {
        if let Ok(Some(port)) = self.state.with(py, |state| state.ports.remove(&slot)) {
            port.close(py);
        }
    }
}

/// A link as the worker's Python code holds it.
#[pyclass(frozen, module = "velo._core")]
pub struct WorkerLink {
    link: Arc<Link>,
}

impl WorkerLink {
    /// The worker's side of a fresh link.
    pub fn new(end: velo_shm::Link) -> PyResult<Self> {
        let (control_out, control_in) = control::open(&end)?;
        let state = LinkState {
            control_out,
            control_in,
            ports: HashMap::new(),
            keep: None,
        };
        Ok(WorkerLink {
            link: Arc::new(Link {
                end,
                state: GilCell::new(state),
                broken: AtomicBool::new(false),
            }),
        })
    }
}

#[pymethods]
impl WorkerLink {
    /// The half of a stream whose function is kept: `tell(over, error)` is called when an attachment is
    /// over, or the function. Returns what keeps it, too.
    fn keep(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        place: (u32, u64),
        limits: (u32, u64, bool, bool, bool),
        terms: ((Option<f64>, Option<f64>), String),
        tell: Py<PyAny>,
    ) -> PyResult<(StreamPort, Kept)> {
        let ((stall, event), name) = terms;
        let function: Arc<FunctionSide> = Arc::default();
        let event_loop_of = || event_loop.clone_ref(py);
        let port = self
            .link
            .port_at(py, event_loop_of(), place, limits, function.clone(), true)?;
        let kept = KeptPort::new(Half::Ring(port), function, event_loop_of(), tell);
        let kept = Arc::new(kept);
        let port = Port::Kept(kept.clone(), false);
        let budget = Budget::new(name, &port, stall, event);
        Ok((StreamPort::new(port, budget), Kept::in_worker(kept)))
    }

    /// Attaches the client to a function that is kept, and parked.
    fn attach(
        &self,
        py: Python<'_>,
        kept: &Kept,
        place: (u32, u64),
        limits: (u32, u64, bool, bool, bool),
    ) -> PyResult<()> {
        let port = &kept.port;
        let (event_loop, function) = (port.event_loop().clone_ref(py), port.function().clone());
        let half = self
            .link
            .port_at(py, event_loop, place, limits, function, true)?;
        port.attach(py, Half::Ring(half))
    }

    /// The client lets go of a kept function, if it is the one that is attached.
    fn detach(&self, py: Python<'_>, kept: &Kept, place: (u32, u64)) -> PyResult<bool> {
        match self.link.known(py, place) {
            Some(port) => kept.port.leave(py, Some(&Half::Ring(port))),
            None => Ok(false), // it has ended
        }
    }

    /// Lets no more streams in unless one is open; whether that is done.
    fn try_retire(&self) -> bool {
        self.link.end.try_retire()
    }

    /// Lets no more streams in: this worker is about to end.
    fn close_entry(&self) {
        self.link.end.close_entry();
    }

    /// Makes a snapshot of a stream's state as soon as its function is done with something.
    fn snapshot(&self, py: Python<'_>, slot: u32, stream: u64) -> PyResult<()> {
        match self.link.port(py, slot) {
            Some(port) if port.number == stream => port.snapshot(py),
            _ => Ok(()), // it has ended
        }
    }

    /// Ends the input of a stream that its client has cancelled: what is queued is not handled.
    fn cancel(&self, py: Python<'_>, slot: u32) {
        if let Some(port) = self.link.port(py, slot) {
            port.cancel(py);
        }
    }

    /// Ends the input of a stream that somebody else than its client ends: whatever its function
    /// does now, the client is told `why`. False if there is no such stream.
    fn end(&self, py: Python<'_>, slot: u32, why: String) -> bool {
        let port = self.link.port(py, slot);
        port.is_some_and(|port| port.end_for(py, why))
    }

    /// Sends a log record to the client; false when it does not read them.
    fn log(&self, py: Python<'_>, record: Vec<u8>) -> bool {
        let sent = self.link.tell(py, &Control::Log { record });
        self.link.end.ring(); // nobody may be waiting for anything else there
        sent.is_ok()
    }

    /// How many streams are open on this link.
    #[getter]
    fn streams(&self) -> u32 {
        self.link.end.residents()
    }
}
