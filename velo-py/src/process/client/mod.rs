//! The client's end of process-mode streams: one [`ClientLink`] a worker, one [`RingChannel`] a
//! stream.

mod backlog;
mod channel;
mod journal;
mod lane;
mod link;
mod log;
mod recover;
mod ring_stream;
mod slow_steps;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use velo_shm::{Alarm, Coalesce, Consumer, Limits, LinkLoad, Producer};
use velo_supervisor::Key;
use velo_supervisor::client_side::SlotTable;

use crate::cell::GilCell;
use crate::errors;
use crate::ffi::destroy::destroy;
use crate::process::control::{self, Control};
use crate::process::ring_pair::Rings;
use crate::user::channel::{Cancel, Channel, WhenFull};
use crate::user::state::StreamCore;
use crate::user::stream::Opened;
use crate::wait::Waits;
use backlog::Backlog;
pub use channel::RingChannel;
use journal::{Death, Journal, Terms, Where};
pub use lane::Told;
use link::{Link, LinkState};
pub use recover::Recovery;
use ring_stream::{ClientEnds, Ends, Kept, Place};
use slow_steps::SlowStreams;

/// How workers are killed that cannot end by themselves.
const SIGKILL: i32 = 9;

/// A link as Python holds it.
#[pyclass(frozen, weakref, module = "velo._core")]
pub struct ClientLink {
    link: Arc<Link>,
    /// Readable when the worker has ended, where the supervisor has given it.
    process: Option<OwnedFd>,
}

impl ClientLink {
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
        let link = Link {
            end,
            load,
            state: GilCell::new(state),
            asleep: AtomicUsize::new(0),
            patient: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            on_broken: GilCell::default(),
            deliver_log: GilCell::default(),
            napping: AtomicBool::new(false),
            wake_soon: GilCell::default(),
            waking: AtomicBool::new(false),
            mentioned: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            slept: AtomicU64::new(0),
            coalesce: Coalesce::default(),
            alarm,
            dead: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            unwatched: AtomicBool::new(false),
            tell_slow: GilCell::default(),
            slow: GilCell::default(),
        };
        Ok(ClientLink {
            link: Arc::new(link),
            process,
        })
    }
}

impl ClientLink {
    /// A place for one more stream. None when the link has been retired.
    fn place(
        &self,
        py: Python<'_>,
        buffer: u32,
        max_bytes: u64,
    ) -> PyResult<Option<(Place, Producer, Consumer)>> {
        let link = &self.link;
        if link.dead.load(Relaxed) || !link.is_intact(py) || !link.end.enter() {
            return Ok(None);
        }
        let taken = link.take_slot(py);
        let Some(slot) = taken.inspect_err(|_| link.end.leave())? else {
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
        let (producer, consumer) = link.end.open_slot(slot, limits).map_err(|error| {
            link.give_back(py, slot);
            errors::pool(link::cannot_open(&error))
        })?;
        let place = Place {
            link: link.clone(),
            slot,
            number,
        };
        Ok(Some((place, producer, consumer)))
    }
}

impl Drop for ClientLink {
    /// The client lets go of the link: streams that never ended must not keep it alive.
    fn drop(&mut self) {
        destroy(|py| {
            self.link.dead.store(true, Relaxed);
            drop(self.link.state.with(py, |state| state.streams.clear()));
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

    /// What ends naps, for the event loop to watch: `nap_over` is called when it is readable.
    fn alarm_fileno(&self) -> i32 {
        self.link.alarm.as_fd().as_raw_fd()
    }

    /// How to have `wake` called at the loop's next turn.
    fn set_wake_soon(&self, py: Python<'_>, soon: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.wake_soon.with(py, |place| *place = Some(soon))?)
    }

    /// Wakes the worker for what it was told.
    fn wake(&self) {
        self.link.wake();
    }

    /// What to call when the link turns out to be broken: its streams have failed, and it is of no
    /// more use.
    fn set_broken(&self, py: Python<'_>, call: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.on_broken.with(py, |place| *place = Some(call))?)
    }

    /// Looks at everything that a peer's mistake could hide, now and then: see `Link::check_up`.
    fn check_up(&self, py: Python<'_>) {
        self.link.check_up(py);
    }

    /// What to call with the bytes of each log record of the worker.
    fn set_log(&self, py: Python<'_>, deliver: Py<PyAny>) -> PyResult<()> {
        Ok(self
            .link
            .deliver_log
            .with(py, |place| *place = Some(deliver))?)
    }

    /// What to call of a slow step: with the name of its stream, the seconds, whether others had to
    /// wait for it, and whether it was one of several.
    fn set_slow(&self, py: Python<'_>, tell: Py<PyAny>) -> PyResult<()> {
        Ok(self.link.tell_slow.with(py, |place| *place = Some(tell))?)
    }

    /// Whether a stream is open whose function has a habit of holding others up.
    #[getter]
    fn slow(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.link.slow.with(py, SlowStreams::any)?)
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
    ///
    /// `keep` is `(limit, has_state, max_restarts, recover)` for one that outlives its worker:
    /// `recover(recovery, error, poison)` is called when that dies. It is `(key, grant, timeout,
    /// shown)` for one that attaches to what is kept under a key, and outlives this stream.
    /// A `lane` runs the function for many keys.
    #[pyo3(signature = (event_loop, function, limits, name, keep=None, lane=false))]
    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        function: u64,
        limits: (u32, u64, String, Option<f64>, Option<f64>, Option<u64>),
        name: String,
        keep: Option<Keep>,
        lane: bool,
    ) -> PyResult<Option<Opened>> {
        let (keep, attaches) = match keep {
            Some(Keep::Journal(terms)) => (Some(terms), None),
            Some(Keep::Key((key, grant, timeout, shown))) => {
                let timeout_ms = milliseconds(timeout);
                let keep = Control::Keep {
                    key: Key(key),
                    grant,
                    timeout_ms,
                    shown,
                };
                (None, Some(keep))
            }
            None => (None, None),
        };
        let (buffer, max_bytes, full, stall, event, memory) = limits;
        let budgets = (stall, event, memory);
        let full: WhenFull = full.parse()?;
        let announced = self.link.announce();
        let Some((place, producer, consumer)) = self.place(py, buffer, max_bytes)? else {
            return Ok(None);
        };
        let mut rings = Rings::new(producer, consumer, max_bytes);
        let mut recover = None;
        let kept = match keep {
            Some((limit, has_state, max_restarts, call)) => {
                recover = Some(call);
                let mut journal = Journal::new(Terms {
                    buffer,
                    max_bytes,
                    limit,
                    has_state,
                    max_restarts,
                });
                journal.begin(&mut rings)?;
                Kept::All(Box::new(journal))
            }
            None if full == WhenFull::DropOldest => Kept::Newest(Backlog::new(buffer)),
            None => Kept::Nothing,
        };
        let open = Control::Open {
            stream: place.number,
            slot: place.slot,
            function,
            buffer,
            max_bytes,
            drops: matches!(kept, Kept::Newest(_)),
            recovers: matches!(kept, Kept::All(_)),
            restored: false,
            lane,
            stall_ms: milliseconds(budgets.0),
            event_ms: milliseconds(budgets.1),
            name: name.clone(),
        };
        let slot = place.slot;
        let waits = Arc::new(Waits::default());
        let shared = Arc::new_cyclic(|this: &Weak<ClientEnds>| ClientEnds {
            ends: GilCell::new(Ends {
                place,
                rings: Some(rings),
                ended: false,
                asked: false,
                failure: None,
                progress: (0, 0),
                bytes: (0, 0),
                kept,
                skipped: 0,
            }),
            waits: waits.clone(),
            recover,
            asleep: AtomicBool::new(false),
            looks: AtomicU32::new(0),
            patient: AtomicBool::new(false),
            left: AtomicU32::new(0),
            sending: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            detaches: AtomicBool::new(attaches.is_some()),
            budgets,
            this: this.clone(),
            name: name.clone(),
        });
        self.link.adopt(py, slot, &shared)?;
        if let Some(keep) = &attaches {
            self.link.mention(py, keep)?;
        }
        match announced {
            true => self.link.tell(py, &open)?,
            false => self.link.tell_soon(py, &open)?,
        }
        if self.link.dead.load(Relaxed) {
            // It turned out to be broken: the stream begins on another one.
            self.link.disown(py, slot)?;
            return Ok(None);
        }
        let cancel = CancelStream {
            stream: Arc::downgrade(&shared),
        };
        let channel = Channel::Ring(RingChannel { shared });
        Ok(Some(Opened::new(StreamCore::new(
            event_loop,
            channel,
            waits,
            Arc::new(cancel),
            full,
            name,
        ))))
    }

    /// Takes over a stream that has lost its worker. False when the link has been retired.
    fn reopen(&self, py: Python<'_>, recovery: &Recovery, function: u64) -> PyResult<bool> {
        let stream = &recovery.stream;
        let Some(terms) = recovery.terms(py)? else {
            return Ok(true); // it is wanted no more
        };
        let (buffer, max_bytes) = (terms.buffer, terms.max_bytes);
        let Some((place, producer, consumer)) = self.place(py, buffer, max_bytes)? else {
            return Ok(false);
        };
        let (slot, number) = (place.slot, place.number);
        self.link.adopt(py, slot, stream)?;
        let mut rings = Rings::new(producer, consumer, max_bytes);
        let restored = stream.ends.wait_with(py, |ends| {
            let Kept::All(journal) = &mut ends.kept else {
                return Ok(false);
            };
            let restored = journal.has_state();
            let begun = journal.begin(&mut rings);
            rings.producer.publish();
            ends.place = place;
            ends.rings = Some(rings);
            begun.map(|()| restored)
        })?;
        match restored {
            Ok(restored) => self.link.tell(
                py,
                &Control::Open {
                    stream: number,
                    slot,
                    function,
                    buffer,
                    max_bytes,
                    drops: false,
                    recovers: true,
                    restored,
                    lane: false,
                    stall_ms: milliseconds(stream.budgets.0),
                    event_ms: milliseconds(stream.budgets.1),
                    name: stream.name.clone(),
                },
            )?,
            Err(error) => stream.fail(py, error),
        }
        stream.catch_up(py)?;
        stream.waits.wake(py);
        Ok(true)
    }

    /// The stream whose function the worker runs, or ran when it died: its number, its name if this
    /// side still has it open, and the event that the function took last, counted from 1 (0 before
    /// the first). None: the worker ran none of this link.
    fn culprit(&self, py: Python<'_>) -> Option<(u64, Option<String>, u64)> {
        let running = self.link.end.running()?;
        let known = self.link.stream(py, running.slot).and_then(|stream| {
            let look = |ends: &mut Ends| {
                let same = ends.place.number == running.stream;
                same.then(|| (stream.name.clone(), ends.begun(running.event)))
            };
            stream.ends.wait_with(py, look).ok().flatten()
        });
        let (name, event) = known.unzip();
        Some((running.stream, name, event.unwrap_or(running.event)))
    }

    /// The worker has died, or has no more to do with the link: every stream on it fails with what
    /// `make(name, number, in_flight)` returns, or, after a death, is taken over by another worker.
    fn fail(&self, py: Python<'_>, make: &Bound<'_, PyAny>) -> PyResult<()> {
        self.link.process_ready(py); // what it has said counts
        self.link.dead.store(true, Relaxed);
        let running = self.link.end.running();
        for stream in self.link.all(py) {
            let (error, death, died) = stream.ends.wait_with(py, |ends| -> PyResult<_> {
                let place = &ends.place;
                let here = running.filter(|r| (r.slot, r.stream) == (place.slot, place.number));
                let number = place.number;
                let (sent, handled) = ends.progress_now();
                // The board is ahead of what a busy function has said to be handled.
                let begun = here.map_or(0, |running| ends.begun(running.event).saturating_sub(1));
                let in_flight = sent.saturating_sub(handled.max(begun));
                let error = make.call1((&stream.name, number, in_flight))?;
                let culprit = error.getattr_opt("culprit")?; // only of a `WorkerDied`
                let died = culprit.is_some();
                let signal = error.getattr_opt("signal")?;
                let death = Death {
                    place: match culprit.map(|is| is.extract()).transpose()?.flatten() {
                        Some(true) => Where::Here(here.map_or(0, |running| running.event)),
                        Some(false) => Where::Elsewhere,
                        None => Where::Unknown,
                    },
                    killed: signal.map(|is| is.extract()).transpose()?.flatten() == Some(SIGKILL),
                };
                Ok((PyErr::from_value(error), death, died))
            })??;
            if !died {
                // Which function has written over the link cannot be told: it would do so again.
                stream.fail(py, error);
                continue;
            }
            match stream.leaves_worker(py, Some((&error, death))) {
                Ok(true) => continue,
                Ok(false) => stream.fail(py, error),
                Err(failed) => {
                    failed.set_cause(py, Some(error));
                    stream.fail(py, failed);
                }
            }
        }
        Ok(())
    }

    /// Whether a stream with limits was opened that nobody has an eye on yet.
    fn take_unwatched(&self) -> bool {
        self.link.unwatched.swap(false, Relaxed)
    }

    /// Has other workers take over the streams that can be, or those of these names; with `slow`
    /// false not those that hold others up. Returns how many are to go.
    #[pyo3(signature = (names=None, slow=true))]
    fn send_away(&self, py: Python<'_>, names: Option<Vec<String>>, slow: bool) -> PyResult<usize> {
        let mut count = 0;
        for stream in self.link.all(py) {
            let named = names
                .as_ref()
                .is_none_or(|names| names.contains(&stream.name));
            let chosen = named && (slow || !stream.is_slow(py)?);
            count += usize::from(chosen && stream.leaves_worker(py, None)?);
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
        self.link.dead.load(Relaxed)
    }
}

/// What of a stream outlives something; see `ClientLink.open`.
#[derive(FromPyObject)]
enum Keep {
    Journal((usize, bool, u32, Py<PyAny>)),
    Key(([u8; 32], u64, Option<f64>, String)),
}

/// A limit as it travels: 0 for none.
fn milliseconds(seconds: Option<f64>) -> u64 {
    seconds.map_or(0, |seconds| ((seconds * 1000.0).ceil() as u64).max(1))
}

/// Cancels a stream's function in its worker.
struct CancelStream {
    stream: Weak<ClientEnds>,
}

impl Cancel for CancelStream {
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let Some(stream) = self.stream.upgrade() else {
            return Ok(());
        };
        let (open, homeless, link, slot) = stream.ends.with(py, |ends| {
            let homeless = match &mut ends.kept {
                Kept::All(journal) => {
                    journal.cancelled = true;
                    journal.homeless
                }
                _ => false,
            };
            let open = ends.rings.is_some() && ends.failure.is_none();
            (open, homeless, ends.place.link.clone(), ends.place.slot)
        })?;
        if homeless {
            stream.fail(py, errors::closed("the stream function was cancelled"));
        }
        match open && !link.dead.load(Relaxed) {
            true if stream.detaches.load(Relaxed) => stream.detach(py).map(drop),
            true => link.tell(py, &Control::Cancel { slot }),
            false => Ok(()),
        }
    }
}
