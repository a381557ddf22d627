//! Where one ring lies in memory.

use std::ptr::NonNull;

use crate::layout::RingHeader;

/// One ring in memory: where its header and data are, and how large it is.
#[derive(Clone, Copy)]
pub(crate) struct RingMemory {
    pub header: NonNull<RingHeader>,
    pub data: NonNull<u8>,
    pub capacity: u64,
}

impl RingMemory {
    #[inline]
    pub(crate) fn header(&self) -> &RingHeader {
        // SAFETY: a ring is only made of memory inside a segment that its owner keeps alive, and
        // a ring header is nothing but atomics.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    pub(crate) fn index(&self, position: u64) -> usize {
        (position & (self.capacity - 1)) as usize
    }

    /// How many bytes there are from here to the end of the ring; never zero.
    #[inline]
    pub(crate) fn until_end(&self, position: u64) -> u64 {
        self.capacity - (position & (self.capacity - 1))
    }

    /// The address of the byte at a position: inside the ring, whatever the position.
    #[inline]
    pub(crate) fn at(&self, position: u64) -> NonNull<u8> {
        // SAFETY: an index is below the capacity, and `capacity` bytes belong to the ring.
        unsafe { self.data.add(self.index(position)) }
    }

    /// Has the cache line at a position brought here, to be written to soon. The other side read it
    /// last, and a publish waits until all that was written before has a line of its own.
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    #[inline(always)]
    pub(crate) fn will_write(&self, position: u64) {
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
    pub(crate) fn will_write(&self, _position: u64) {}
}
