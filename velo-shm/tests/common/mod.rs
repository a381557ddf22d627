//! What several test files need: links in one process, on every kind of segment.
#![allow(dead_code, reason = "each test file uses its own part")]
#![cfg(not(loom))]

use std::sync::Arc;

use velo_shm::{
    Bells, Consumer, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Producer, Segment, Side,
    initialise,
};

/// Small enough to wrap and grow soon.
pub const SMALL: LinkSpec = LinkSpec {
    slots: 4,
    ring_bytes: 256,
    heap_bytes: 64 << 20,
};

pub const LIMITS: Limits = Limits {
    events: 1 << 20,
    bytes: 1 << 20,
};

/// Both ends of one link, in one process.
pub struct Pair {
    pub segment: Arc<dyn Segment>,
    pub client: Link,
    pub worker: Link,
}

pub fn memfd(len: usize) -> Arc<dyn Segment> {
    Arc::new(MemfdSegment::create(len).unwrap())
}

#[cfg(feature = "named")]
pub fn named(len: usize) -> Arc<dyn Segment> {
    Arc::new(velo_shm::NamedSegment::create(len).unwrap())
}

/// Every kind of segment that there is, by the function that creates one.
pub fn backends() -> Vec<fn(usize) -> Arc<dyn Segment>> {
    vec![
        memfd,
        #[cfg(feature = "named")]
        named,
    ]
}

impl Pair {
    pub fn new(spec: LinkSpec) -> Self {
        Self::on(memfd(spec.segment_len()), spec)
    }

    pub fn on(segment: Arc<dyn Segment>, spec: LinkSpec) -> Self {
        initialise(&*segment, &spec).unwrap();
        let (a, b) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        let bells = Bells {
            mine: a.try_clone().unwrap(),
            theirs: b.try_clone().unwrap(),
        };
        let client = Link::attach(segment.clone(), Side::Client, bells).unwrap();
        let bells = Bells { mine: b, theirs: a };
        let worker = Link::attach(segment.clone(), Side::Worker, bells).unwrap();
        Pair {
            segment,
            client,
            worker,
        }
    }

    /// The way in of a slot: what the client writes and the worker reads.
    pub fn way_in(&self, slot: u32, limits: Limits) -> (Producer, Consumer) {
        let (producer, _) = self.client.open_slot(slot, limits).unwrap();
        let (_, consumer) = self.worker.open_slot(slot, limits).unwrap();
        (producer, consumer)
    }
}

/// Sends one message, which there is room for.
#[track_caller]
pub fn send(producer: &mut Producer, message: &[u8]) {
    try_send(producer, message).unwrap();
    assert!(producer.publish());
}

pub fn try_send(producer: &mut Producer, message: &[u8]) -> Result<(), velo_shm::ReserveError> {
    let mut room = producer.reserve(message.len(), true)?;
    room[..message.len()].copy_from_slice(message);
    room.commit(2, message.len());
    Ok(())
}

/// Receives one message, if there is one.
#[track_caller]
pub fn receive(consumer: &mut Consumer) -> Option<Vec<u8>> {
    let payload = consumer
        .peek()
        .unwrap()
        .map(|frame| frame.payload.to_vec())?;
    consumer.release();
    consumer.publish();
    Some(payload)
}

/// `len` bytes that say which message they are.
pub fn message(number: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (number as u8).wrapping_mul(31).wrapping_add(i as u8))
        .collect()
}
