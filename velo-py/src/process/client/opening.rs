//! Opening a stream on a link, and taking over one that has lost its worker.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;
use velo_shm::{Consumer, Limits, Producer};
use velo_supervisor::Key;

use super::backlog::Backlog;
use super::journal::{Journal, Terms};
use super::link::{ClientLink, LinkedStream, cannot_open};
use super::ring_stream::{Origin, Recovery, RingStream, Store, StreamSlot, UsageLimits};
use crate::errors;
use crate::flow::WhenFull;
use crate::process::control::Control;
use crate::process::ring_pair::RingPair;

/// A stream that is to be opened.
pub struct NewStream {
    pub name: String,
    /// The number under which the worker knows the function.
    pub function: u64,
    /// How many events may be accepted and not handled.
    pub buffer: u32,
    /// How large its rings may grow.
    pub max_bytes: u64,
    pub full: WhenFull,
    pub limits: UsageLimits,
    /// With `recover="replay"`.
    pub recovery: Option<NewJournal>,
    /// Of a stream that attaches to a session.
    pub session: Option<SessionKey>,
    /// It runs the function for many keys.
    pub lane: bool,
    /// What finds another worker if this one dies before it opens the stream; see [`Origin`].
    pub origin: Option<Py<PyAny>>,
}

/// How a stream outlives its worker.
pub struct NewJournal {
    pub limit: usize,
    pub has_state: bool,
    pub max_restarts: u32,
    /// Called with `(recovery, error, poison)` when the stream needs another worker.
    pub recover: Py<PyAny>,
}

/// The session that a stream attaches to.
pub struct SessionKey {
    pub key: Key,
    /// The number of the grant by which the supervisor lets this client attach.
    pub grant: u64,
    /// After how many seconds without an attachment the session ends.
    pub timeout: Option<f64>,
    /// The key as its user wrote it.
    pub shown: String,
    /// How a checkpoint knows the session; empty for a function without a state.
    pub stored: Vec<u8>,
}

/// Opens a stream. None when the link has been retired: another link has to be used.
pub fn open(
    py: Python<'_>,
    link: &Arc<ClientLink>,
    new: NewStream,
) -> PyResult<Option<Arc<RingStream>>> {
    let prewoken = link.prewake();
    let Some((at, producer, consumer)) = take_slot(py, link, new.buffer, new.max_bytes)? else {
        return Ok(None);
    };
    let mut rings = RingPair::new(producer, consumer, new.max_bytes);
    let mut recover = None;
    let store = match new.recovery {
        Some(recovery) => {
            recover = Some(recovery.recover);
            let mut journal = Journal::new(Terms {
                buffer: new.buffer,
                limit: recovery.limit,
                has_state: recovery.has_state,
                max_restarts: recovery.max_restarts,
            });
            journal.begin(&mut rings)?;
            Store::Journal(Box::new(journal))
        }
        None if new.full == WhenFull::DropOldest => Store::Backlog(Backlog::new(new.buffer)),
        None => Store::None,
    };
    let (slot, number) = (at.slot, at.number);
    let attaches = new.session.is_some();
    let origin = Origin {
        buffer: new.buffer,
        max_bytes: new.max_bytes,
        drops: matches!(store, Store::Backlog(_)),
        recovers: matches!(store, Store::Journal(_)),
        lane: new.lane,
        place: new.origin,
    };
    let stream = RingStream::new(
        (new.name, origin),
        at,
        rings,
        store,
        recover,
        new.limits,
        (attaches, new.lane),
    );
    let message = open_message(&stream, (slot, number), new.function, false);
    let linked: Arc<dyn LinkedStream> = stream.clone();
    link.adopt(py, slot, &linked)?;
    if let Some(session) = new.session {
        link.post(
            py,
            &Control::Attach {
                key: session.key,
                grant: session.grant,
                timeout_ms: milliseconds(session.timeout),
                shown: session.shown,
                stored: session.stored,
            },
        )?;
    }
    match prewoken {
        true => link.send(py, &message)?,
        false => link.post_deferred(py, &message)?,
    }
    if link.is_dead() {
        // The link turned out to be broken: the stream begins on another one.
        link.disown(py, slot)?;
        return Ok(None);
    }
    Ok(Some(stream))
}

/// The message that opens a stream. `restored`: it begins with the state that it had elsewhere.
fn open_message(
    stream: &RingStream,
    (slot, number): (u32, u64),
    function: u64,
    restored: bool,
) -> Control {
    let origin = &stream.origin;
    Control::Open {
        stream: number,
        slot,
        function,
        buffer: origin.buffer,
        max_bytes: origin.max_bytes,
        drops: origin.drops,
        recovers: origin.recovers,
        restored,
        lane: origin.lane,
        stall_ms: milliseconds(stream.limits.stall_timeout),
        event_ms: milliseconds(stream.limits.event_timeout),
        name: stream.name.clone(),
    }
}

/// Takes over a stream that has lost its worker. False when the link has been retired.
pub fn reopen(
    py: Python<'_>,
    link: &Arc<ClientLink>,
    recovery: &Recovery,
    function: u64,
) -> PyResult<bool> {
    let stream = &recovery.stream;
    if !recovery.wanted(py)? {
        return Ok(true);
    }
    let (buffer, max_bytes) = (stream.origin.buffer, stream.origin.max_bytes);
    let Some((at, producer, consumer)) = take_slot(py, link, buffer, max_bytes)? else {
        return Ok(false);
    };
    let (slot, number) = (at.slot, at.number);
    let linked: Arc<dyn LinkedStream> = stream.clone();
    link.adopt(py, slot, &linked)?;
    let mut rings = RingPair::new(producer, consumer, max_bytes);
    if !stream.origin.recovers {
        return begin_elsewhere(py, link, stream, (at, rings), function);
    }
    let restored = stream.state.wait_with(py, |state| {
        let Store::Journal(journal) = &mut state.store else {
            return Ok(false);
        };
        let restored = journal.has_state();
        let begun = journal.begin(&mut rings);
        rings.producer.publish();
        state.at = at;
        state.rings = Some(rings);
        begun.map(|()| restored)
    })?;
    match restored {
        Ok(restored) => link.send(
            py,
            &open_message(stream, (slot, number), function, restored),
        )?,
        Err(error) => stream.fail(py, error),
    }
    stream.catch_up(py)?;
    stream.waits.wake(py);
    Ok(true)
}

/// Opens a stream in a fresh slot that the worker before never opened, with the events that were sent
/// to that one.
fn begin_elsewhere(
    py: Python<'_>,
    link: &Arc<ClientLink>,
    stream: &Arc<RingStream>,
    (at, rings): (StreamSlot, RingPair),
    function: u64,
) -> PyResult<bool> {
    let place = (at.slot, at.number);
    let (left, moved) = stream.move_unstarted(py, at, rings)?;
    stream.let_go(py, left);
    moved?;
    link.send(py, &open_message(stream, place, function, false))?;
    stream.flush_backlog(py)?;
    stream.waits.wake(py);
    Ok(true)
}

/// A slot for one more stream. None when the link has been retired.
fn take_slot(
    py: Python<'_>,
    link: &Arc<ClientLink>,
    buffer: u32,
    max_bytes: u64,
) -> PyResult<Option<(StreamSlot, Producer, Consumer)>> {
    if link.is_dead() || !link.is_intact(py) || !link.end.enter() {
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
        errors::pool(cannot_open(&error))
    })?;
    let at = StreamSlot {
        link: link.clone(),
        slot,
        number,
    };
    Ok(Some((at, producer, consumer)))
}

/// A limit as it travels: 0 for none.
fn milliseconds(seconds: Option<f64>) -> u64 {
    seconds.map_or(0, |seconds| ((seconds * 1000.0).ceil() as u64).max(1))
}
