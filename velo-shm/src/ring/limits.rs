//! How much a ring may hold.

use crate::layout::{Geometry, MAX_RING, PAGE};

/// How much a ring may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many counted events may be in flight: the user's bound for backpressure.
    pub events: u32,
    /// How many bytes the ring may grow to; rounded up to a power of two, and never less than what
    /// it begins with, nor more than fits the link's heap. A single frame can take a little less
    /// than half of it.
    pub bytes: u64,
}

impl Limits {
    /// The largest capacity that a ring of such a link may have.
    pub(super) fn ceiling(&self, geometry: &Geometry) -> u64 {
        let heap = geometry.heap_bytes.saturating_sub(PAGE as u64);
        let fits = 1 << heap.clamp(1, MAX_RING).ilog2();
        let asked = self.bytes.clamp(1, MAX_RING).next_power_of_two();
        u64::from(geometry.ring_bytes).max(asked.min(fits))
    }
}
