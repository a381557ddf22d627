//! The worker's end of process-mode streams: one [`WorkerLink`] a client, one [`RingPort`] a
//! stream.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};
use velo_shm::{Consumer, Limits, LinkEnd, Producer, Spin};

use crate::cell::GilCell;
use crate::channel::Offer;
use crate::codec::{VecOut, codec};
use crate::control::{self, Control};
use crate::errors;
use crate::events::Events;
use crate::pace::Pace;
use crate::port::{Next, Port};
use crate::pump::Pump;
use crate::rings::{END, ERROR, Hold, ITEM, Rings, Sweep, spin};
use crate::wait::Wait;

/// The function's half of a process-mode stream.
pub struct RingPort {
    ends: GilCell<Ends>,
    link: Arc<Link>,
    slot: u32,
    /// The client's number of the stream.
    number: u64,
    event: Wait,
    space: Wait,
    event_loop: Py<PyAny>,
    this: Weak<dyn Sweep>,
}

struct Ends {
    /// None once the client has seen the end.
    rings: Option<Rings>,
    /// The event that the function has, until it asks for the next one.
    current: Option<Option<Arc<Hold>>>,
    input_ended: bool,
    /// The client wants neither events handled nor results sent.
    cancelled: bool,
    /// The end, while there is no room for it.
    unsent_end: Option<(u8, Vec<u8>)>,
}

impl RingPort {
    /// See [`Port::next_event`].
    #[inline]
    pub fn next_event(&self, py: Python<'_>) -> PyResult<Next> {
        let codec = codec(py)?;
        self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(Next::Ended);
            };
            if let Some(hold) = ends.current.take() {
                rings.done(hold);
            }
            if ends.input_ended {
                return Ok(Next::Ended);
            }
            let Some(received) = rings.decode(py, codec, &self.this)? else {
                return Ok(Next::Empty);
            };
            match received.kind {
                ITEM => {
                    ends.current = Some(received.hold);
                    Ok(Next::Event(received.value?.unbind()))
                }
                END => {
                    rings.done(received.hold);
                    ends.input_ended = true;
                    Ok(Next::Ended)
                }
                other => Err(errors::corrupted(format!(
                    "the client sent a frame of kind {other}"
                ))),
            }
        })?
    }

    /// See [`Port::wait_event`].
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let there = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return true;
            };
            spin(py, rings, &self.link.end, false, false);
            rings.consumer.has_data() || ends.input_ended
        })?;
        match there {
            true => Ok(None),
            false => self.event.start(self.event_loop.bind(py)).map(Some),
        }
    }

    /// Where the function waits for an event.
    pub fn event_wait(&self) -> &Wait {
        &self.event
    }

    /// See [`Port::push`].
    #[inline]
    pub fn push(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        let codec = codec(py)?;
        self.ends.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => Ok(matches!(
                rings.push(codec, result, ITEM, true)?,
                Offer::Sent
            )),
            None => Ok(true), // the client has gone: nobody wants it
        })?
    }

    /// See [`Port::show_results`].
    #[inline]
    pub fn show_results(&self, py: Python<'_>) {
        let news = self.ends.with(py, |ends| {
            ends.rings.as_mut().is_some_and(|r| r.producer.publish())
        });
        if news.unwrap_or(false) {
            self.link.end.notify(self.slot);
        }
    }

    /// See [`Port::flush`].
    #[inline]
    pub fn flush(&self, py: Python<'_>) {
        let news = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return false;
            };
            // Results first: who sees an event handled must see what came of it.
            let published = rings.producer.publish();
            rings.consumer.publish() || published
        });
        if news.unwrap_or(false) {
            self.link.end.notify(self.slot);
        }
    }

    /// See [`Port::wait_space`].
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let future = self.space.start(self.event_loop.bind(py))?;
        let there = self.ends.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => rings.has_space(),
            None => Ok(true),
        })??;
        if there {
            self.space.clear(py);
        }
        Ok((!there).then_some(future))
    }

    /// Where the function waits for room.
    pub fn space_wait(&self) -> &Wait {
        &self.space
    }

    /// See [`Port::finish`].
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        let (kind, payload) = match outcome {
            Ok(()) => (END, Vec::new()),
            Err(error) => (ERROR, self.pack_error(py, error)),
        };
        let sent = self.ends.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return;
            };
            if let Some(hold) = ends.current.take() {
                rings.done(hold);
            }
            ends.unsent_end = Some((kind, payload));
            ends.send_end();
        });
        if sent.is_ok() {
            self.flush(py);
            let _ = self.link.tell(
                py,
                &Control::Ended {
                    slot: self.slot,
                    stream: self.number,
                },
            );
        }
    }

    /// The client did something: the function looks again.
    fn wake(&self, py: Python<'_>) {
        let _ = self.ends.with(py, Ends::send_end);
        self.flush(py); // also gives back what views held that were dropped meanwhile
        self.event.wake(py);
        self.space.wake(py);
    }

    fn cancel(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| {
            ends.cancelled = true;
            ends.input_ended = true;
        });
    }

    /// See [`Port::is_cancelled`].
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.ends.with(py, |ends| ends.cancelled).unwrap_or(false)
    }

    /// The client has seen the end: the slot is given back once the last view of it is gone.
    fn close(&self, py: Python<'_>) {
        let _ = self.ends.with(py, |ends| ends.rings = None);
        self.event.wake(py);
        self.space.wake(py);
    }
}

impl Ends {
    fn send_end(&mut self) {
        let (Some(rings), Some((kind, payload))) = (self.rings.as_mut(), self.unsent_end.take())
        else {
            return;
        };
        if !matches!(rings.push_bytes(&payload, kind, false), Ok(Offer::Sent)) {
            let _ = rings.has_space(); // asks to be told when there is room
            self.unsent_end = Some((kind, payload));
        }
    }
}

impl Sweep for RingPort {
    fn sweep(&self, py: Python<'_>) {
        self.flush(py);
    }
}

impl RingPort {
    /// The exception as it travels; in short when it is larger than anything that may be sent.
    fn pack_error(&self, py: Python<'_>, error: PyErr) -> Vec<u8> {
        static PACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let longest = self
            .ends
            .with(py, |ends| ends.rings.as_ref().map(|r| r.producer.max_len()));
        let longest = longest.ok().flatten().unwrap_or(u64::MAX);
        let pack = |error: &Py<PyAny>| -> PyResult<Vec<u8>> {
            let packed = PACK
                .import(py, "velo._remote", "pack")?
                .call1((error, longest))?;
            let mut out = VecOut::default();
            codec(py)?.encode(py, &packed, &mut out)?;
            Ok(out.into_vec())
        };
        let value = error.into_value(py).into_any();
        pack(&value)
            .or_else(|failed| pack(&failed.into_value(py).into_any()))
            .unwrap_or_default()
    }
}

/// The worker's end of a link, shared by its streams.
struct Link {
    end: Arc<LinkEnd>,
    state: GilCell<LinkState>,
}

struct LinkState {
    control_out: Producer,
    control_in: Consumer,
    ports: HashMap<u32, Arc<RingPort>>,
}

impl Link {
    fn tell(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.state.with(py, |state| {
            control::send(py, &mut state.control_out, message)
        })??;
        self.end.notify(control::SLOT);
        Ok(())
    }

    fn port(&self, py: Python<'_>, slot: u32) -> Option<Arc<RingPort>> {
        self.state
            .with(py, |state| state.ports.get(&slot).cloned())
            .ok()
            .flatten()
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
    pub fn new(end: Arc<LinkEnd>) -> PyResult<Self> {
        let (control_out, control_in) = control::open(&end)?;
        let state = LinkState {
            control_out,
            control_in,
            ports: HashMap::new(),
        };
        Ok(WorkerLink {
            link: Arc::new(Link {
                end,
                state: GilCell::new(state),
            }),
        })
    }
}

#[pymethods]
impl WorkerLink {
    /// The doorbell, for the selector to watch.
    fn fileno(&self) -> i32 {
        self.link.end.doorbell().as_fd().as_raw_fd()
    }

    /// Wakes the functions whose streams changed. Returns the control messages that came, as
    /// tuples `(what, ...)`.
    fn process_ready<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let mut ready = Vec::new();
        self.link.end.take_ready(|slot| ready.push(slot));
        let mut messages = Vec::new();
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(py, &mut messages)?;
            } else if let Some(port) = self.link.port(py, slot) {
                port.wake(py);
            }
        }
        Ok(messages)
    }

    /// The function's half of a stream that the client has opened.
    fn open(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        slot: u32,
        stream: u64,
        buffer: u32,
        max_bytes: u64,
    ) -> PyResult<StreamPort> {
        let limits = Limits {
            events: buffer,
            bytes: max_bytes,
        };
        let (producer, consumer) = self
            .link
            .end
            .open_slot(slot, limits)
            .map_err(|error| errors::corrupted(format!("cannot open slot {slot}: {error}")))?;
        let port = Arc::new_cyclic(|this: &Weak<RingPort>| RingPort {
            ends: GilCell::new(Ends {
                rings: Some(Rings::new(producer, consumer, max_bytes)),
                current: None,
                input_ended: false,
                cancelled: false,
                unsent_end: None,
            }),
            link: self.link.clone(),
            slot,
            number: stream,
            event: Wait::default(),
            space: Wait::default(),
            event_loop,
            this: this.clone(),
        });
        self.link
            .state
            .with(py, |state| state.ports.insert(slot, port.clone()))?;
        Ok(StreamPort {
            port: Port::Ring(port),
            pace: Arc::new(Pace::default()),
        })
    }

    /// Lets no more streams in: this worker is about to end.
    fn close_entry(&self) {
        self.link.end.close_entry();
    }

    /// Ends the input of a stream that its client has cancelled: what is queued is not handled.
    fn cancel(&self, py: Python<'_>, slot: u32) {
        if let Some(port) = self.link.port(py, slot) {
            port.cancel(py);
        }
    }

    /// How many streams are open on this link.
    #[getter]
    fn streams(&self) -> u32 {
        self.link.end.residents()
    }
}

impl WorkerLink {
    fn read_control<'py>(
        &self,
        py: Python<'py>,
        messages: &mut Vec<Bound<'py, PyTuple>>,
    ) -> PyResult<()> {
        loop {
            let message = self
                .link
                .state
                .with(py, |state| control::receive(py, &mut state.control_in))??;
            messages.push(match message {
                None => return Ok(()),
                Some(Control::Define {
                    function,
                    definition,
                }) => ("define", function, PyBytes::new(py, &definition)).into_pyobject(py)?,
                Some(Control::Open {
                    stream,
                    slot,
                    function,
                    buffer,
                    max_bytes,
                    name,
                }) => {
                    ("open", slot, stream, function, buffer, max_bytes, name).into_pyobject(py)?
                }
                Some(Control::Cancel { slot }) => ("cancel", slot).into_pyobject(py)?,
                Some(Control::Close { slot }) => {
                    self.link.close(py, slot);
                    ("close", slot).into_pyobject(py)?
                }
                Some(Control::Ended { .. }) => {
                    return Err(errors::corrupted(
                        "the client sent a message that only workers send",
                    ));
                }
            });
        }
    }
}

/// One stream's port before and while its function runs.
#[pyclass(frozen, module = "velo._core")]
pub struct StreamPort {
    port: Port,
    pace: Arc<Pace>,
}

impl StreamPort {
    /// A port for Python to run a function on.
    pub fn new(port: Port) -> Self {
        StreamPort {
            port,
            pace: Arc::new(Pace::default()),
        }
    }
}

#[pymethods]
impl StreamPort {
    /// Calls the function with its events. Returns the coroutine that runs it, or None when the
    /// call failed: the stream has ended with the exception then.
    pub fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<Option<Pump>> {
        let py = function.py();
        let events = Events::new(self.port.clone(), self.pace.clone());
        let generator = function.call1((events,)).and_then(|made| {
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
                let (port, pace) = (self.port.clone(), self.pace.clone());
                Ok(Some(Pump::new(py, generator.unbind(), port, pace)))
            }
            Err(error) => {
                self.port.finish(py, Err(error));
                self.port.flush(py);
                Ok(None)
            }
        }
    }

    /// Ends the stream with an exception, before there is a generator.
    fn fail(&self, error: &Bound<'_, PyAny>) {
        let py = error.py();
        self.port.finish(py, Err(PyErr::from_value(error.clone())));
        self.port.flush(py);
    }
}

/// Waits, with the GIL released and for as long as it has been paying off, until one of several
/// links has something.
#[pyclass(module = "velo._core")]
pub struct LinkWatch {
    ends: Vec<Arc<LinkEnd>>,
    spin: Spin,
}

#[pymethods]
impl LinkWatch {
    #[new]
    fn new() -> Self {
        LinkWatch {
            ends: Vec::new(),
            spin: Spin::new(),
        }
    }

    /// Watches these links from now on.
    fn watch(&mut self, links: Vec<Bound<'_, WorkerLink>>) {
        self.ends = links
            .iter()
            .map(|link| link.get().link.end.clone())
            .collect();
    }

    /// Whether a link has something.
    fn ready(&self) -> bool {
        self.ends.iter().any(|end| end.any_ready())
    }

    /// Whether a link has something after a short look.
    fn look(&mut self, py: Python<'_>) -> bool {
        if self.ready() {
            return true;
        }
        let LinkWatch { ends, spin } = self;
        let Some(budget) = spin.budget() else {
            return false;
        };
        py.detach(|| spin.spin_for(budget, || ends.iter().any(|end| end.any_ready())))
    }

    /// Has every doorbell ring from now on. True if something is there already: do not sleep.
    fn arm(&self) -> bool {
        for end in &self.ends {
            end.arm();
        }
        self.ready()
    }

    /// Awake: no doorbell needs to ring.
    fn disarm(&self) {
        for end in &self.ends {
            end.disarm();
        }
    }

    /// Empties the doorbells.
    fn drain(&self) {
        for end in &self.ends {
            end.doorbell().drain();
        }
    }
}
