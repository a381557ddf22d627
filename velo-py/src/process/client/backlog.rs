//! The events that a stream with `full="drop_oldest"` keeps beside its ring.
//!
//! Only the consumer of a ring can free its front, and a busy function does not look. So events that
//! find the ring full wait here, encoded. The newest `buffer` events of ring and backlog together stay
//! wanted: the oldest of the backlog are dropped at once, those in the ring when the worker looks.

use std::collections::VecDeque;

use pyo3::prelude::*;
use velo_shm::lending_len;

use crate::codec::codec;
use crate::errors;
use crate::flow::Offer;
use crate::process::loan::{self, Encoded};
use crate::process::ring_pair::{ITEM, RingPair};

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
    pub(super) fn flush(&mut self, rings: &mut RingPair) -> PyResult<bool> {
        while let Some(event) = self.events.front() {
            match rings.push_bytes(&event.bytes, &event.parts, ITEM, true)? {
                Offer::Sent => drop(self.events.pop_front()),
                Offer::Full => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Queues an event behind all others. How many were dropped for it.
    pub(super) fn push(&mut self, rings: &mut RingPair, event: &Bound<'_, PyAny>) -> PyResult<u64> {
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
