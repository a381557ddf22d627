//! A ring carries framed messages one way: one producer, one consumer, one contiguous slice each.
//!
//! The producer reserves room, writes into it and commits; what it committed becomes visible when
//! it publishes. The consumer peeks at a frame in place and releases it, or leases its memory for
//! as long as it likes. Neither copies, neither waits, and neither believes what it reads from the
//! other without checking it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc as LocalArc;

use crate::error::RingCorrupted;
use crate::layout::{Geometry, MAX_RING, PAGE, RingHeader, at};
use crate::link::LinkEnd;
use crate::side::Side;

mod consumer;
mod frame;
pub(crate) mod growth;
mod lease;
mod loan;
mod producer;

pub use consumer::{Consumer, Frame};
pub use frame::FIRST_KIND;
pub use lease::Lease;
pub use loan::{Loan, Part};
pub use producer::{Full, Producer, Reservation, ReserveError, lending_len};

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
    fn ceiling(&self, geometry: &Geometry) -> u64 {
        let heap = geometry.heap_bytes.saturating_sub(PAGE as u64);
        let fits = 1 << heap.clamp(1, MAX_RING).ilog2();
        let asked = self.bytes.clamp(1, MAX_RING).next_power_of_two();
        u64::from(geometry.ring_bytes).max(asked.min(fits))
    }
}

/// One ring in memory: where its header and data are, and how large it is.
#[derive(Clone, Copy)]
struct Ring {
    header: NonNull<RingHeader>,
    data: NonNull<u8>,
    capacity: u64,
}

impl Ring {
    /// The ring that every slot begins with.
    fn of_slot(link: &LinkEnd, slot: u32, to: Side) -> Self {
        assert!(slot < link.geometry.slots);
        let base = link.segment.base();
        // SAFETY: the geometry gives offsets inside the segment for every slot there is.
        let (header, data) = unsafe {
            (
                at(base, link.geometry.ring_header(slot, to)),
                at(base, link.geometry.ring_data(slot, to)),
            )
        };
        Ring {
            header,
            data,
            capacity: u64::from(link.geometry.ring_bytes),
        }
    }

    #[inline]
    fn header(&self) -> &RingHeader {
        // SAFETY: a ring is only made of memory inside a segment that its owner keeps alive, and
        // a ring header is nothing but atomics.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    fn index(&self, position: u64) -> usize {
        (position & (self.capacity - 1)) as usize
    }

    /// How many bytes there are from here to the end of the ring; never zero.
    #[inline]
    fn until_end(&self, position: u64) -> u64 {
        self.capacity - (position & (self.capacity - 1))
    }

    /// The address of the byte at a position: inside the ring, whatever the position.
    #[inline]
    fn at(&self, position: u64) -> NonNull<u8> {
        // SAFETY: an index is below the capacity, and so many bytes belong to the ring.
        unsafe { self.data.add(self.index(position)) }
    }

    /// Has the cache line at a position brought here, to be written to soon. The other side read it
    /// last, and a publish waits until all that was written before has a line of its own.
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    #[inline(always)]
    fn will_write(&self, position: u64) {
        // SAFETY: a prefetch is a hint: it changes nothing and faults nowhere, and a processor that has no
        // `prefetchw` does nothing for it.
        unsafe {
            std::arch::asm!(
                "prefetchw [{line}]",
                line = in(reg) self.at(position).as_ptr(),
                options(nostack, preserves_flags),
            );
        }
    }

    /// As above, where it is left to the processor.
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    fn will_write(&self, _position: u64) {}

    /// Tells a model what is read or written; nothing otherwise.
    #[inline]
    fn track(&self, hold: &SlotHold, position: u64, len: u64, write: bool) {
        hold.track(self.at(position), len as usize, write);
    }
}

/// Keeps a slot in use, and the link alive, for as long as anything of the slot is.
pub(crate) struct SlotHold {
    pub(crate) link: LocalArc<LinkEnd>,
    pub(crate) slot: u32,
}

impl SlotHold {
    /// Tells a model what is read or written of the link's memory; nothing otherwise.
    #[inline]
    fn track(&self, _at: NonNull<u8>, _len: usize, _write: bool) {
        #[cfg(loom)]
        {
            let segment = &self.link.segment;
            let offset = _at.as_ptr().addr() - segment.base().as_ptr().addr();
            segment.track(offset, _len, _write);
        }
    }
}

impl Drop for SlotHold {
    fn drop(&mut self) {
        self.link.let_go(self.slot);
    }
}

impl fmt::Debug for SlotHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} of {:?}", self.slot, self.link)
    }
}
