//! The client's end of process-mode streams: one [`ClientLink`] a worker, one [`RingChannel`] a
//! stream.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use velo_shm::{Consumer, Limits, LinkEnd, Producer};

use crate::cell::GilCell;
use crate::channel::{Channel, Offer, Take, Want};
use crate::codec::codec;
use crate::control::{self, Control};
use crate::errors;
use crate::rings::{END, ERROR, ITEM, Rings, Sweep, corruption, spin};
use crate::stream::{Opened, StreamCore};
use crate::wait::Waits;

/// One stream's rings as the client has them, until its end was seen.
pub struct ClientEnds {
    ends: GilCell<Ends>,
    slot: u32,
    /// Tells it from other streams of the link, before and after it.
    number: u64,
    link: Arc<Link>,
    waits: Arc<Waits>,
    /// A task sleeps on this stream.
    asleep: AtomicBool,
    /// The user has let go of the stream: its last results are dropped.
    orphaned: AtomicBool,
    this: Weak<dyn Sweep>,
    name: String,
}

struct Ends {
    /// None once the end was seen, or the worker has died and everything was drained.
    rings: Option<Rings>,
    /// The worker says that the function has ended; results may still be queued.
    ended: bool,
    failure: Option<PyErr>,
    progress: (u64, u64),
    bytes: (u64, u64),
}

/// The user's half of a process-mode stream.
pub struct RingChannel {
    shared: Arc<ClientEnds>,
}

impl Drop for RingChannel {
    fn drop(&mut self) {
        Python::attach(|py| {
            self.shared.orphaned.store(true, Relaxed);
            self.shared.drop_results(py);
        });
    }
}

impl RingChannel {
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Ends) -> PyResult<R>) -> PyResult<R> {
        self.shared.ends.with(py, f)?
    }

    /// As `with`, for what may be asked from any thread.
    fn look<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Ends) -> R) -> PyResult<R> {
        Ok(self.shared.ends.wait_with(py, f)?)
    }

    /// See [`Channel::offer`].
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        let codec = codec(py)?;
        self.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) if !(ends.ended || ends.failure.is_some()) => {
                rings.push(codec, event, ITEM, true)
            }
            _ => Ok(Offer::Full),
        })
    }

    /// See [`Channel::flush_events`].
    #[inline]
    pub fn flush_events(&self, py: Python<'_>) -> PyResult<()> {
        let published = self.with(py, |ends| {
            Ok(ends.rings.as_mut().is_some_and(|r| r.producer.publish()))
        })?;
        let link = &self.shared.link;
        if published {
            link.end.notify(self.shared.slot);
        }
        if link.end.is_ready(control::SLOT) {
            link.process_ready(py); // a function that has ended takes no more events
        }
        Ok(())
    }

    /// See [`Channel::free_events`].
    #[inline]
    pub fn free_events(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) if !(ends.ended || ends.failure.is_some()) => {
                Ok(rings.producer.free_events() as usize)
            }
            _ => Ok(0),
        })
    }

    /// See [`Channel::take`].
    #[inline]
    pub fn take(&self, py: Python<'_>) -> PyResult<Take> {
        let codec = codec(py)?;
        let taken = self.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return match ends.failure.take() {
                    Some(error) => Err(error),
                    None => Ok(Taken::Take(Take::Ended)),
                };
            };
            let received = match rings.decode(py, codec, &self.shared.this) {
                Ok(Some(received)) => received,
                Ok(None) if ends.failure.is_some() => return Ok(Taken::Last(None)),
                Ok(None) => return Ok(Taken::Take(Take::Empty)),
                Err(corrupted) => return Ok(Taken::Last(Some(corrupted))),
            };
            let (kind, value) = (received.kind, received.value.map(Bound::unbind));
            rings.done(received.hold);
            match (kind, value) {
                (ITEM, Ok(value)) => Ok(Taken::Take(Take::Item(value))),
                (ITEM, Err(error)) => Err(error),
                (END, _) => Ok(Taken::Last(None)),
                (ERROR, Ok(packed)) => Ok(Taken::Last(Some(unpack_error(py, packed)))),
                (ERROR, Err(error)) => Ok(Taken::Last(Some(error))),
                (other, _) => {
                    let what = format!("the worker sent a frame of unknown kind {other}");
                    Ok(Taken::Last(Some(errors::corrupted(what))))
                }
            }
        })?;
        match taken {
            Taken::Take(take) => Ok(take),
            Taken::Last(error) => {
                let failure = self.shared.finish(py)?;
                error.or(failure).map_or(Ok(Take::Ended), Err)
            }
        }
    }

    /// See [`Channel::flush_results`].
    #[inline]
    pub fn flush_results(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.flush_results(py);
        Ok(())
    }

    /// See [`Channel::is_finished`].
    pub fn is_finished(&self, py: Python<'_>) -> PyResult<bool> {
        if self.shared.link.end.any_ready() {
            self.shared.link.process_ready(py);
        }
        self.with(py, |ends| Ok(ends.rings.is_none() || ends.has_ended()))
    }

    /// See [`Channel::progress`].
    #[inline]
    pub fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, Ends::progress_now)
    }

    /// See [`Channel::bytes`].
    pub fn bytes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.look(py, |ends| {
            ends.rings
                .as_ref()
                .map_or(ends.bytes, |rings| (rings.bytes_out, rings.bytes_in))
        })
    }

    /// See [`Channel::may_sleep`].
    pub fn may_sleep(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        let (shared, link) = (&self.shared, &self.shared.link);
        if self.is_there(py, want)? {
            return Ok(false);
        }
        if !shared.asleep.swap(true, Relaxed) {
            link.asleep.fetch_add(1, Relaxed);
        }
        link.end.arm();
        if link.end.any_ready() {
            link.process_ready(py);
            link.rearm(py);
        }
        let there = self.is_there(py, want)?;
        if there {
            shared.awake();
        }
        Ok(!there)
    }

    fn is_there(&self, py: Python<'_>, want: Want) -> PyResult<bool> {
        self.with(py, |ends| {
            if ends.ended && (want.space || want.handled) || ends.failure.is_some() {
                return Ok(true);
            }
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(true);
            };
            if want.results && rings.consumer.has_data() {
                return Ok(true);
            }
            if want.space && rings.has_space()? {
                return Ok(true);
            }
            if want.handled {
                rings
                    .producer
                    .watch_releases()
                    .map_err(|found| corruption(&found))?;
                return Ok(rings.producer.in_flight() == 0);
            }
            Ok(false)
        })
    }

    /// See [`Channel::spin`].
    #[inline]
    pub fn spin(&self, py: Python<'_>, want: Want) -> PyResult<()> {
        let end = &self.shared.link.end;
        self.with(py, |ends| {
            if let Some(rings) = ends.rings.as_mut() {
                spin(py, rings, end, want.space, want.handled);
            }
            Ok(())
        })
    }

    /// See [`Channel::end_input`].
    pub fn end_input(&self, py: Python<'_>) -> PyResult<Offer> {
        let offer = self.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => rings.push_bytes(&[], END, false),
            None => Ok(Offer::Sent),
        })?;
        self.flush_events(py)?;
        Ok(offer)
    }
}

enum Taken {
    Take(Take),
    /// The stream is over, for this reason.
    Last(Option<PyErr>),
}

impl Ends {
    /// Whether the function takes no more events. Results may still be queued.
    fn has_ended(&self) -> bool {
        self.ended || self.failure.is_some()
    }

    fn progress_now(&mut self) -> (u64, u64) {
        if let Some(rings) = self.rings.as_mut() {
            self.progress = (rings.producer.committed(), rings.producer.released());
        }
        self.progress
    }
}

impl ClientEnds {
    fn awake(&self) {
        if self.asleep.swap(false, Relaxed) {
            self.link.asleep.fetch_sub(1, Relaxed);
        }
    }

    fn flush_results(&self, py: Python<'_>) {
        let wanted = self.ends.with(py, |ends| {
            ends.rings
                .as_mut()
                .is_some_and(|rings| rings.consumer.publish())
        });
        if wanted.unwrap_or(false) {
            self.link.end.notify(self.slot);
        }
    }

    /// The end was seen: the slot goes back. Gives what made the stream fail, if its worker did.
    fn finish(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        let (rings, failure) = self.ends.with(py, |ends| {
            ends.progress_now();
            let rings = ends.rings.take();
            if let Some(rings) = &rings {
                ends.bytes = (rings.bytes_out, rings.bytes_in);
            }
            ends.ended = true;
            (rings, ends.failure.take())
        })?;
        if let Some(rings) = rings {
            self.awake();
            drop(rings);
            self.link.recycle(py, self.slot);
        }
        self.waits.wake(py);
        Ok(failure)
    }

    /// Nobody wants the results: drops them up to the end, so that the slot comes back.
    fn drop_results(&self, py: Python<'_>) {
        let over = self.ends.wait_with(py, |ends| {
            let failed = ends.failure.is_some();
            let Some(rings) = ends.rings.as_mut() else {
                return false;
            };
            loop {
                match rings.consumer.peek() {
                    Ok(Some(frame)) => {
                        let kind = frame.kind;
                        rings.consumer.release();
                        if kind == END || kind == ERROR {
                            return true;
                        }
                    }
                    Ok(None) => return failed,
                    Err(_) => return true,
                }
            }
        });
        match over {
            Ok(true) => drop(self.finish(py)),
            _ => self.flush_results(py),
        }
    }

    fn fail(&self, py: Python<'_>, error: PyErr) {
        let _ = self.ends.with(py, |ends| ends.failure = Some(error));
        self.waits.wake(py);
    }
}

impl Sweep for ClientEnds {
    fn sweep(&self, py: Python<'_>) {
        self.flush_results(py);
    }
}

fn unpack_error(py: Python<'_>, packed: Py<PyAny>) -> PyErr {
    static UNPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let unpacked = UNPACK
        .import(py, "velo._remote", "unpack")
        .and_then(|f| f.call1((packed,)));
    unpacked.map_or_else(|error| error, PyErr::from_value)
}

/// The client's end of a link, shared by its streams.
pub struct Link {
    end: Arc<LinkEnd>,
    state: GilCell<LinkState>,
    /// Streams on which a task sleeps.
    asleep: AtomicUsize,
    dead: AtomicBool,
    /// How many streams were ever opened.
    opened: AtomicU64,
}

struct LinkState {
    control_out: Producer,
    control_in: Consumer,
    streams: HashMap<u32, Arc<ClientEnds>>,
    /// Slots of ended streams, in the order in which they ended.
    free: VecDeque<u32>,
    fresh: u32,
}

impl Link {
    /// Handles what the worker told: wakes streams, reads control messages.
    pub fn process_ready(&self, py: Python<'_>) {
        let mut ready = Vec::new();
        self.end.take_ready(|slot| ready.push(slot));
        for slot in ready {
            if slot == control::SLOT {
                self.read_control(py);
                continue;
            }
            let Some(stream) = self.stream(py, slot) else {
                continue;
            };
            stream.awake();
            if stream.orphaned.load(Relaxed) {
                stream.drop_results(py);
            } else {
                stream.flush_results(py); // views may have been dropped
                stream.waits.wake(py);
            }
        }
    }

    fn stream(&self, py: Python<'_>, slot: u32) -> Option<Arc<ClientEnds>> {
        self.state
            .with(py, |state| state.streams.get(&slot).cloned())
            .ok()
            .flatten()
    }

    fn read_control(&self, py: Python<'_>) {
        loop {
            let message = self
                .state
                .with(py, |state| control::receive(py, &mut state.control_in));
            match message {
                Ok(Ok(Some(Control::Ended {
                    slot,
                    stream: number,
                }))) => {
                    let Some(stream) = self.stream(py, slot) else {
                        continue;
                    };
                    if stream.number == number {
                        let _ = stream.ends.with(py, |ends| ends.ended = true);
                        stream.waits.wake(py);
                    } // else it is about one that had the slot before
                }
                Ok(Ok(None)) | Err(_) => return,
                Ok(Ok(Some(_))) => {
                    return self.fail_all(
                        py,
                        &errors::corrupted("the worker sent a message that only clients send"),
                    );
                }
                Ok(Err(error)) => return self.fail_all(py, &error),
            }
        }
    }

    fn fail_all(&self, py: Python<'_>, error: &PyErr) {
        self.dead.store(true, Relaxed);
        for stream in self.all(py) {
            stream.fail(py, error.clone_ref(py));
        }
    }

    fn all(&self, py: Python<'_>) -> Vec<Arc<ClientEnds>> {
        self.state
            .with(py, |state| state.streams.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Sleeps on, if anybody still does.
    fn rearm(&self, py: Python<'_>) {
        while self.asleep.load(Relaxed) > 0 {
            self.end.arm();
            if !self.end.any_ready() {
                return;
            }
            self.process_ready(py);
        }
    }

    fn tell(&self, py: Python<'_>, message: &Control) -> PyResult<()> {
        self.state.with(py, |state| {
            control::send(py, &mut state.control_out, message)
        })??;
        self.end.notify(control::SLOT);
        Ok(())
    }

    fn recycle(&self, py: Python<'_>, slot: u32) {
        self.end.leave();
        let dead = self.dead.load(Relaxed);
        if !dead {
            let _ = self.tell(py, &Control::Close { slot });
        }
        let _ = self.state.with(py, |state| {
            state.streams.remove(&slot);
            state.free.push_back(slot);
        });
    }

    /// A slot that nobody uses, made as good as new.
    fn take_slot(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        let slots = self.end.slots();
        Ok(self.state.with(py, |state| {
            // A slot is idle once the worker has let go of it too, and the last view of its memory
            // is gone on both sides. The one that was freed first is the likeliest.
            let looks = if state.fresh < slots {
                LOOKS
            } else {
                state.free.len()
            };
            for _ in 0..looks.min(state.free.len()) {
                let slot = state.free.pop_front()?;
                if self.end.reset_slot(slot) {
                    return Some(slot);
                }
                state.free.push_back(slot);
            }
            let slot = (state.fresh < slots).then_some(state.fresh)?;
            state.fresh += 1;
            self.end.reset_slot(slot).then_some(slot)
        })?)
    }
}

/// How many freed slots are looked at before a fresh one is taken.
const LOOKS: usize = 4;

/// A link as Python holds it.
#[pyclass(frozen, module = "velo._core")]
pub struct ClientLink {
    link: Arc<Link>,
}

impl ClientLink {
    /// The client's side of a fresh link.
    pub fn new(end: Arc<LinkEnd>) -> PyResult<Self> {
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
            dead: AtomicBool::new(false),
            opened: AtomicU64::new(0),
        };
        Ok(ClientLink {
            link: Arc::new(link),
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
        });
    }
}

#[pymethods]
impl ClientLink {
    /// The doorbell, for the event loop to watch.
    fn fileno(&self) -> i32 {
        self.link.end.doorbell().as_fd().as_raw_fd()
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
        buffer: u32,
        max_bytes: u64,
        name: String,
    ) -> PyResult<Option<Opened>> {
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
                failure: None,
                progress: (0, 0),
                bytes: (0, 0),
            }),
            slot,
            number,
            link: link.clone(),
            waits: waits.clone(),
            asleep: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            this: this.clone(),
            name: name.clone(),
        });
        link.state
            .with(py, |state| state.streams.insert(slot, shared.clone()))?;
        link.tell(
            py,
            &Control::Open {
                stream: number,
                slot,
                function,
                buffer,
                max_bytes,
                name,
            },
        )?;
        let cancel = CancelStream {
            stream: Arc::downgrade(&shared),
        };
        let cancel = Py::new(py, cancel)?.into_any();
        let channel = Channel::Ring(RingChannel { shared });
        Ok(Some(Opened::new(StreamCore::new(
            event_loop, channel, waits, cancel,
        ))))
    }

    /// The worker has died: every stream on it fails with what `make(name, in_flight)` returns.
    fn fail(&self, py: Python<'_>, make: &Bound<'_, PyAny>) -> PyResult<()> {
        self.link.dead.store(true, Relaxed);
        for stream in self.link.all(py) {
            let (sent, handled) = stream.ends.with(py, |ends| ends.progress_now())?;
            let error =
                PyErr::from_value(make.call1((&stream.name, sent.saturating_sub(handled)))?);
            stream.fail(py, error);
            if stream.orphaned.load(Relaxed) {
                stream.drop_results(py);
            }
        }
        Ok(())
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
