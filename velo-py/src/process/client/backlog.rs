//! What a stream with `full="drop_oldest"` keeps beside its ring.
//!
//! Only the consumer of a ring can free its front, and a busy function does not look. So events that
//! find the ring full wait here, encoded, and the newest `buffer` of ring and backlog together stay
//! wanted: the oldest of the backlog are dropped at once, those in the ring by the worker when it
//! looks.

use std::collections::VecDeque;

use pyo3::prelude::*;
use velo_shm::lending_len;

use super::ring_stream::{ClientEnds, Kept};
use crate::codec::codec;
use crate::errors;
use crate::process::loan::{self, Encoded};
use crate::process::ring_pair::{ITEM, Rings};
use crate::user::channel::{Offer, Want};

/// Room for an event.
const ROOM: Want = Want {
    space: true,
    ..Want::NOTHING
};

/// Encoded events, oldest first.
pub struct Backlog {
    events: VecDeque<Encoded>,
    buffer: usize,
    pub dropped: u64,
}

impl Backlog {
    /// Of a stream that keeps `buffer` events.
    pub fn new(buffer: u32) -> Self {
        Backlog {
            events: VecDeque::new(),
            buffer: buffer as usize,
            dropped: 0,
        }
    }

    /// How many events are here.
    pub fn len(&self) -> u64 {
        self.events.len() as u64
    }

    /// Whether events are here.
    pub fn waits(&self) -> bool {
        !self.events.is_empty()
    }

    /// Puts what fits into the ring. True if nothing is left.
    fn flush(&mut self, rings: &mut Rings) -> PyResult<bool> {
        while let Some(event) = self.events.front() {
            match rings.push_bytes(&event.bytes, &event.parts, ITEM, true)? {
                Offer::Sent => drop(self.events.pop_front()),
                Offer::Full => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Queues an event behind all others. How many were dropped for it.
    fn push(&mut self, rings: &mut Rings, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        let codec = codec(event.py())?;
        if self.flush(rings)? && matches!(rings.push(codec, event, ITEM, true)?, Offer::Sent) {
            return Ok(0);
        }
        let encoded = Encoded::new(codec, event, &rings.producer)?;
        let len = lending_len(encoded.bytes.len(), encoded.parts.len());
        if !rings.producer.would_fit(len) {
            return Err(errors::too_large(rings.too_large(len)));
        }
        loan::seal(event.py(), &encoded.parts)?;
        self.events.push_back(encoded);
        let too_many = self.events.len().saturating_sub(self.buffer);
        self.events.drain(..too_many);
        self.dropped += too_many as u64;
        // Of those in the ring, the newest that the backlog leaves room for.
        let keep = self.buffer.saturating_sub(self.events.len()) as u64;
        let first = rings.producer.committed().saturating_sub(keep);
        rings.producer.want_from(first);
        Ok(too_many as u64)
    }
}

impl ClientEnds {
    /// See [`Channel::offer_newest`](crate::user::channel::Channel::offer_newest).
    pub(super) fn offer_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<u64> {
        let dropped = self
            .ends
            .with(py, |ends| match (&mut ends.rings, &mut ends.kept) {
                (Some(rings), Kept::Newest(backlog)) => backlog.push(rings, event),
                _ => Ok(0),
            })??;
        self.flush_backlog(py)?;
        Ok(dropped)
    }

    /// Moves the backlog into the ring as far as there is room, and asks to be woken for the rest.
    /// True if nothing is left.
    pub(super) fn flush_backlog(&self, py: Python<'_>) -> PyResult<bool> {
        loop {
            let done = self.ends.with(py, |ends| -> PyResult<_> {
                let (Some(rings), Kept::Newest(backlog)) = (&mut ends.rings, &mut ends.kept) else {
                    return Ok(true);
                };
                let done = backlog.flush(rings)?;
                if rings.producer.publish() {
                    ends.place.notify();
                }
                Ok(done)
            })??;
            if done || self.may_sleep(py, ROOM)? {
                return Ok(done);
            }
            if self.ends.with(py, |ends| ends.has_ended())? {
                return Ok(true); // nobody wants it any more
            }
        }
    }
}
