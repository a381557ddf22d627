//! One stream: events in, results out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use velo_shm::{
    Full, Link, Producer, ReserveError, RingCorrupted, Spin, cores_are_free, woke_worker,
};

use super::error::StreamError;
use super::hub::{CHECK_UP, Hub, State};
use super::link::{Failure, OpenedStream, RingPair, Told};
use super::values::{self, Written};
use crate::wire::control::{self, END, ERROR, ITEM};

/// Room that is asked for before the encoded size is known.
const GUESS: usize = 64;

/// One running copy of a Python stream function.
///
/// Dropping it before its function has ended cancels the function, whose `finally` blocks run; what is
/// left of it goes back to the worker at the next call on the connection that waits or opens.
///
/// A program that only sends blocks in the end, as the function waits for its results to be received;
/// [`feed`](Self::feed) does both.
pub struct Stream {
    hub: Arc<Hub>,
    key: u64,
    end: Link,
    slot: u32,
    /// None once the end was seen.
    pub(super) rings: Option<RingPair>,
    pub(super) told: Arc<Told>,
    name: String,
    spin: Spin,
    /// The end of the input is to be told, as soon as there is room for it.
    unsent_end: bool,
    input_ended: bool,
    /// A copy of the frame that is being read: the worker cannot write to it.
    scratch: Vec<u8>,
}

/// What came of a look for a result.
pub(super) enum Taken<R> {
    Result(R),
    Empty,
    Ended,
}

/// What came of an attempt to send.
pub(super) enum Offered {
    Sent,
    /// There is no room for this many bytes, or for one more event.
    Full(Option<usize>),
    /// The function takes no more. Why is told behind its last results.
    Over,
}

/// What a stream waits for.
#[derive(Clone, Copy)]
pub(super) enum Interest {
    Result,
    /// Room for one more event, or for this many bytes; also a result, for a feed.
    Room {
        bytes: Option<usize>,
        or_result: bool,
    },
    /// That all events are handled, or a result.
    Handled,
}

impl Stream {
    pub(super) fn new(hub: Arc<Hub>, place: OpenedStream, name: String) -> Self {
        let OpenedStream {
            key,
            end,
            slot,
            rings,
            told,
        } = place;
        Self {
            hub,
            key,
            end,
            slot,
            rings: Some(rings),
            told,
            name,
            spin: Spin::new(),
            unsent_end: false,
            input_ended: false,
            scratch: Vec::new(),
        }
    }

    /// What the stream is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends an event; waits while there is no room for it.
    ///
    /// # Errors
    ///
    /// [`StreamError::Ended`] when the function takes no more;
    /// [`StreamError::Encode`] and [`StreamError::TooLarge`] when it can never be sent;
    /// [`StreamError::WorkerDied`] when the worker has.
    pub fn send<E: Serialize + ?Sized>(&mut self, event: &E) -> Result<(), StreamError> {
        self.send_by(event, None)
    }

    /// As [`send`](Self::send), but waits for no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for `send`; [`StreamError::TimedOut`] when there was no room. Nothing was sent then.
    pub fn send_timeout<E: Serialize + ?Sized>(
        &mut self,
        event: &E,
        timeout: Duration,
    ) -> Result<(), StreamError> {
        self.send_by(event, Instant::now().checked_add(timeout))
    }

    fn send_by<E: Serialize + ?Sized>(
        &mut self,
        event: &E,
        deadline: Option<Instant>,
    ) -> Result<(), StreamError> {
        loop {
            match self.offer(event)? {
                Offered::Sent => {
                    self.show();
                    return Ok(());
                }
                Offered::Over => {
                    let failure = self.told.failure.get().cloned();
                    return Err(failure.map_or(StreamError::Ended, |why| self.failed(why)));
                }
                Offered::Full(bytes) => {
                    self.show();
                    let or_result = false;
                    self.wait(Interest::Room { bytes, or_result }, deadline)?;
                }
            }
        }
    }

    /// The next result; waits until there is one. None after the last one.
    ///
    /// # Errors
    ///
    /// [`StreamError::Function`] when the function has raised, [`StreamError::WorkerDied`] when its
    /// worker has died: after the results that came before, and once. [`StreamError::Decode`] when
    /// the result is no `R`.
    pub fn recv<R: DeserializeOwned>(&mut self) -> Result<Option<R>, StreamError> {
        self.recv_by(None)
    }

    /// As [`recv`](Self::recv), but waits for no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for `recv`; [`StreamError::TimedOut`] when no result came. None is lost by that.
    pub fn recv_timeout<R: DeserializeOwned>(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<R>, StreamError> {
        self.recv_by(Instant::now().checked_add(timeout))
    }

    fn recv_by<R: DeserializeOwned>(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<R>, StreamError> {
        loop {
            match self.take()? {
                Taken::Result(result) => return Ok(Some(result)),
                Taken::Ended => return Ok(None),
                Taken::Empty => self.wait(Interest::Result, deadline)?,
            }
        }
    }

    /// Ends the input: the function's loop ends, and what it still yields can be received. Never
    /// waits, and is no error where the function has already ended.
    ///
    /// # Errors
    ///
    /// [`StreamError::Corrupted`] when the stream's memory makes no sense.
    pub fn end(&mut self) -> Result<(), StreamError> {
        if !std::mem::replace(&mut self.input_ended, true) {
            self.unsent_end = true;
            self.send_end()?;
        }
        Ok(())
    }

    /// Writes an event into the ring; it is seen after [`show`](Self::show).
    pub(super) fn offer<E: Serialize + ?Sized>(
        &mut self,
        event: &E,
    ) -> Result<Offered, StreamError> {
        if self.end.is_ready(control::SLOT) {
            self.hub.look(&mut self.hub.lock());
        }
        let told = &self.told;
        let over = self.input_ended || told.ended.load(Relaxed) || told.failure.get().is_some();
        let Some(rings) = self.rings.as_mut().filter(|_| !over) else {
            return Ok(Offered::Over);
        };
        let producer = &mut rings.producer;
        match producer.reserve(GUESS, true) {
            Ok(mut room) => {
                if let Written::All(used) = values::encode(event, &mut room)? {
                    room.commit(ITEM, used);
                    return Ok(Offered::Sent);
                }
            }
            Err(ReserveError::Full(Full::Bytes)) => {}
            Err(refused) => return refuse(refused, GUESS),
        }
        let bytes = values::encode_alone(event)?;
        match producer.reserve(bytes.len(), true) {
            Ok(mut room) => {
                room[..bytes.len()].copy_from_slice(&bytes);
                room.commit(ITEM, bytes.len());
                Ok(Offered::Sent)
            }
            Err(refused) => refuse(refused, bytes.len()),
        }
    }

    /// Publishes the written events, and notifies the worker.
    pub(super) fn show(&mut self) {
        if let Some(rings) = &mut self.rings
            && rings.producer.publish()
            && self.end.notify(self.slot)
        {
            woke_worker();
        }
    }

    fn send_end(&mut self) -> Result<(), StreamError> {
        let Some(rings) = self.rings.as_mut().filter(|_| self.unsent_end) else {
            return Ok(());
        };
        match rings.producer.reserve(0, false) {
            Ok(room) => room.commit(END, 0),
            // A wait for results tries again.
            Err(ReserveError::Full(_) | ReserveError::NoMemory(_)) => return Ok(()),
            Err(refused) => return refuse(refused, 0).map(drop),
        }
        self.unsent_end = false;
        self.show();
        Ok(())
    }

    /// The next result, if it is there.
    pub(super) fn take<R: DeserializeOwned>(&mut self) -> Result<Taken<R>, StreamError> {
        self.send_end()?;
        let Some(rings) = &mut self.rings else {
            return Ok(Taken::Ended);
        };
        // Looked at before the ring: what came before a failure is in the ring by then.
        let failure = self.told.failure.get().cloned();
        let frame = match rings.consumer.peek() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                return match failure {
                    None => Ok(Taken::Empty),
                    Some(failure) => {
                        let error = self.failed(failure);
                        self.finish();
                        Err(error)
                    }
                };
            }
            Err(found) => {
                self.finish();
                return Err(found.into());
            }
        };
        let kind = frame.kind;
        self.scratch.clear();
        self.scratch.extend_from_slice(frame.payload);
        rings.consumer.release();
        if rings.consumer.publish() && self.end.notify(self.slot) {
            woke_worker();
        }
        match kind {
            ITEM => values::decode(&mut self.scratch).map(Taken::Result),
            END => {
                self.finish();
                Ok(Taken::Ended)
            }
            ERROR => {
                self.finish();
                Err(values::decode_error(&mut self.scratch).into())
            }
            other => {
                self.finish();
                let what = format!("the worker sent a frame of unknown kind {other}");
                Err(StreamError::Corrupted(what))
            }
        }
    }

    /// Waits until the wanted thing may be there.
    pub(super) fn wait(
        &mut self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> Result<(), StreamError> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        let at_once = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if !at_once {
            if interest.may_be_met(rings) {
                return Ok(());
            }
            if cores_are_free()
                && let Some(plan) = self.spin.plan(|| self.end.may_share_core())
                && self.spin.run(plan, || interest.may_be_met(rings))
            {
                return Ok(());
            }
        }
        let (told, unsent_end) = (&self.told, self.unsent_end);
        let (hub, end, slot) = (&self.hub, &self.end, self.slot);
        let (mut reminded, mut looks) = (Instant::now(), 0u32);
        let ready = |_: &mut State| {
            // Whatever the worker has written over is said again: while events wait for it, and
            // otherwise less and less often, so that idle streams cost nothing.
            if reminded.elapsed() >= CHECK_UP {
                reminded = Instant::now();
                looks += 1;
                rings.producer.restate();
                rings.consumer.restate();
                if rings.producer.in_flight() > 0 || looks.is_power_of_two() {
                    end.notify(slot);
                }
            }
            let over = told.failure.get().is_some()
                || (told.ended.load(Relaxed) && !matches!(interest, Interest::Result));
            let end_fits = unsent_end && !rings.producer.wait_for_bytes(0)?;
            let met = interest.is_met(rings, told)?;
            Ok((over || end_fits || met).then_some(()))
        };
        let who = Some((self.key, self.slot));
        hub.wait(hub.lock(), deadline, who, ready).map(drop)
    }

    fn failed(&mut self, failure: Failure) -> StreamError {
        let mut error = StreamError::from(failure);
        if let (StreamError::WorkerDied(died), Some(rings)) = (&mut error, &mut self.rings) {
            died.in_flight = u64::from(rings.producer.in_flight());
        }
        error
    }

    /// The end was seen: the slot goes back.
    fn finish(&mut self) {
        self.told.ended.store(true, Relaxed);
        if self.rings.take().is_some() {
            self.hub.close((self.key, self.slot));
        }
    }
}

impl Interest {
    /// A cheap look, for spinning. True only if what is wanted can be had, or nearly so: a wait that
    /// ends too early over and over would be one that never sleeps.
    fn may_be_met(self, rings: &mut RingPair) -> bool {
        let RingPair { producer, consumer } = rings;
        match self {
            Self::Result => consumer.has_data(),
            Self::Room { bytes, or_result } => {
                (or_result && consumer.has_data())
                    || (bytes.is_none() && producer.free_events() > 0)
            }
            Self::Handled => {
                consumer.has_data() || (producer.committed() > 0 && producer.in_flight() == 0)
            }
        }
    }

    /// Whether it is there; if not, the worker is asked to tell when it may be.
    fn is_met(self, rings: &mut RingPair, told: &Told) -> Result<bool, RingCorrupted> {
        let RingPair { producer, consumer } = rings;
        match self {
            Self::Result => Ok(consumer.has_data()),
            Self::Room { bytes, or_result } => {
                let room = has_room(producer, bytes)?;
                Ok(room || (or_result && consumer.has_data()))
            }
            Self::Handled => {
                producer.watch_releases()?;
                let begun = told.asked.load(Relaxed) || producer.committed() > 0;
                // In this order: who sees an event handled sees what came of it.
                let handled = begun && producer.in_flight() == 0;
                Ok(handled || consumer.has_data())
            }
        }
    }
}

fn has_room(producer: &mut Producer, bytes: Option<usize>) -> Result<bool, RingCorrupted> {
    match bytes {
        Some(len) => producer.wait_for_bytes(len),
        None => producer.wait_for_space(),
    }
    .map(|full| !full)
}

/// The outcome of a refused reservation: a full ring, or an error.
fn refuse(refused: ReserveError, len: usize) -> Result<Offered, StreamError> {
    match refused {
        ReserveError::Full(Full::Events) => Ok(Offered::Full(None)),
        ReserveError::Full(Full::Bytes) => Ok(Offered::Full(Some(len))),
        ReserveError::TooLarge { len, limit } => Err(StreamError::TooLarge { len, limit }),
        ReserveError::NoMemory(error) => Err(StreamError::NoMemory(error)),
        ReserveError::Corrupted(found) => Err(found.into()),
        other => Err(StreamError::Corrupted(other.to_string())),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(rings) = self.rings.take() {
            self.hub.abandon((self.key, self.slot), rings);
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("name", &self.name)
            .field("open", &self.rings.is_some())
            .finish_non_exhaustive()
    }
}
