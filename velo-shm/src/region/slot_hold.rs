//! Keeps a slot in use for as long as anything of it is.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc as LocalArc;

use super::attached::Region;
use super::ring_memory::RingMemory;

/// Keeps a slot in use, and the region alive, for as long as anything of the slot is.
pub(crate) struct SlotHold {
    pub(crate) region: LocalArc<Region>,
    pub(crate) slot: u32,
}

impl SlotHold {
    /// Tells a model what is read or written of the link's memory; nothing otherwise.
    #[inline]
    pub(crate) fn track(&self, _at: NonNull<u8>, _len: usize, _write: bool) {
        #[cfg(loom)]
        {
            let segment = &self.region.segment;
            let offset = _at.as_ptr().addr() - segment.base().as_ptr().addr();
            segment.track(offset, _len, _write);
        }
    }

    /// Tells a model what is read or written of a ring; nothing otherwise.
    #[inline]
    pub(crate) fn track_ring(&self, ring: &RingMemory, position: u64, len: u64, write: bool) {
        self.track(ring.at(position), len as usize, write);
    }
}

impl Drop for SlotHold {
    fn drop(&mut self) {
        self.region.let_go(self.slot);
    }
}

impl fmt::Debug for SlotHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} of {:?}", self.slot, self.region)
    }
}
