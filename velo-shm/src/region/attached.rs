//! The region that a side has attached to.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool as LocalBool, AtomicU64 as LocalU64};

use super::heap::Heap;
use super::ring_memory::RingMemory;
use super::setup::read_geometry;
use crate::cpu;
use crate::doorbell::Bells;
use crate::error::LinkError;
use crate::layout::{Direction, GROUP_SLOTS, Geometry, LinkHeader, RingHeader, WORDS, at};
use crate::segment::Segment;
use crate::side::Side;
use crate::sync::Ordering;

/// Everything that one side knows of a link.
pub(crate) struct Region {
    pub(crate) segment: Arc<dyn Segment>,
    pub(crate) geometry: Geometry,
    pub(crate) side: Side,
    /// Blocks for the rings that this side writes.
    pub(crate) heap: Heap,
    pub(crate) bells: Bells,
    pub(crate) core: Core,
    header: NonNull<LinkHeader>,
    /// Slots that something in this process still holds.
    held: [LocalU64; WORDS],
    /// Groups of slots whose pages are known to exist.
    committed: [LocalU64; WORDS],
}

/// Whether one side may wait for the core that the other runs on.
#[derive(Debug, Default)]
pub(crate) struct Core {
    /// This side has woken the other since it was last asked.
    pub(crate) rang: LocalBool,
    /// The other side has woken this one from the core that it was woken on.
    pub(crate) shared: LocalBool,
}

// SAFETY: `header` points into `segment`, which the region keeps alive and which may be reached from
// any thread; all that is reached through it is atomic. The rest is Send and Sync by itself.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Attaches to an initialised link, after checking its header.
    pub(crate) fn attach(
        segment: Arc<dyn Segment>,
        side: Side,
        bells: Bells,
    ) -> Result<Arc<Self>, LinkError> {
        let geometry = read_geometry(&*segment)?;
        Ok(Arc::new(Region {
            // SAFETY: offset 0 is inside every segment that has a geometry.
            header: unsafe { at(segment.base(), 0) },
            heap: Heap::new(segment.clone(), geometry.heap(side.peer())),
            segment,
            geometry,
            side,
            bells,
            core: Core::default(),
            held: std::array::from_fn(|_| LocalU64::new(0)),
            committed: std::array::from_fn(|_| LocalU64::new(0)),
        }))
    }

    #[inline]
    pub(crate) fn header(&self) -> &LinkHeader {
        // SAFETY: inside the segment and aligned, by `attach`; everything in it that is reached
        // through this reference is atomic.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    pub(crate) fn direction(&self, to: Side) -> &Direction {
        &self.header().directions[to as usize]
    }

    /// The header of the ring of a slot that `to` reads.
    pub(crate) fn ring_header(&self, slot: u32, to: Side) -> &RingHeader {
        debug_assert!(slot < self.geometry.slots);
        // SAFETY: the offset is inside the segment for every slot there is, and a multiple of 64;
        // a ring header is nothing but atomics.
        unsafe { at(self.segment.base(), self.geometry.ring_header(slot, to)).as_ref() }
    }

    /// The ring that a slot begins with, of those that `to` reads.
    pub(crate) fn ring_memory(&self, slot: u32, to: Side) -> RingMemory {
        assert!(slot < self.geometry.slots);
        let base = self.segment.base();
        // SAFETY: the geometry gives offsets inside the segment for every slot there is.
        let (header, data) = unsafe {
            (
                at(base, self.geometry.ring_header(slot, to)),
                at(base, self.geometry.ring_data(slot, to)),
            )
        };
        RingMemory {
            header,
            data,
            capacity: u64::from(self.geometry.ring_bytes),
        }
    }

    /// Tells the other side to look at a slot, after a publish; rings its doorbell if it sleeps, and
    /// is true then.
    #[inline]
    pub(crate) fn notify(&self, slot: u32) -> bool {
        self.mark(self.side.peer(), slot)
    }

    /// Tells this side to look at a slot: something other than the peer gave it work to do.
    #[inline]
    pub(crate) fn notify_self(&self, slot: u32) {
        let _ = self.mark(self.side, slot);
    }

    #[inline]
    fn mark(&self, to: Side, slot: u32) -> bool {
        assert!(slot < self.geometry.slots, "no slot `{slot}`");
        let asleep = self.direction(to).mark(slot);
        if asleep {
            self.ring_for(to);
        }
        asleep
    }

    /// Wakes a side that slept.
    #[cold]
    pub(crate) fn ring_for(&self, to: Side) {
        let counters = &self.direction(to).counters;
        counters.wakes.fetch_add(1, Ordering::Relaxed);
        if to == self.side {
            counters.rung_on.store(cpu::UNKNOWN, Ordering::Relaxed);
            self.bells.mine.ring();
        } else {
            counters.rung_on.store(cpu::current(), Ordering::Relaxed);
            self.bells.theirs.ring();
            self.core.rang.store(true, Ordering::Relaxed);
        }
    }

    /// Fails for a slot that there is not.
    pub(crate) fn check_slot(&self, slot: u32) -> Result<(), LinkError> {
        let slots = self.geometry.slots;
        if slot < slots {
            Ok(())
        } else {
            Err(LinkError::NoSuchSlot { slot, slots })
        }
    }

    /// Makes sure that the slot's pages exist; no system call if they are known to.
    pub(crate) fn commit_slot(&self, slot: u32) -> io::Result<()> {
        let group = (slot / GROUP_SLOTS) as usize;
        let (word, bit) = (&self.committed[group / 64], 1 << (group % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            let (offset, len) = self.geometry.group_range(group);
            self.segment.commit(offset, len)?;
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Holds a slot for this process; false if this process holds it already.
    pub(crate) fn hold(&self, slot: u32) -> bool {
        let (word, bit) = held_bit(slot);
        self.held[word].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Gives a slot back when the last thing of it is dropped in this process.
    pub(crate) fn let_go(&self, slot: u32) {
        self.reclaim();
        self.ring_header(slot, self.side.peer())
            .producer
            .held
            .store(0, Ordering::Release);
        let (word, bit) = held_bit(slot);
        self.held[word].fetch_and(!bit, Ordering::AcqRel);
    }

    /// Whether no side holds a producer, a consumer or a lease of the slot.
    pub(crate) fn slot_idle(&self, slot: u32) -> bool {
        if self.check_slot(slot).is_err() {
            return false;
        }
        let (word, bit) = held_bit(slot);
        self.held[word].load(Ordering::Acquire) & bit == 0
            && [Side::Client, Side::Worker].iter().all(|&to| {
                self.ring_header(slot, to)
                    .producer
                    .held
                    .load(Ordering::Acquire)
                    == 0
            })
    }

    /// Frees the blocks of the heap that nobody reads any more.
    pub(crate) fn reclaim(&self) {
        self.heap.sweep(|slot| self.slot_idle(slot));
    }

    /// Moves what a producer counted in its slot to the sum of those that are closed.
    pub(crate) fn close_counters(&self, slot: u32) {
        let to = self.side.peer();
        let line = &self.ring_header(slot, to).producer;
        let events = line.events.swap(0, Ordering::Relaxed);
        let bytes = line.bytes.swap(0, Ordering::Relaxed);
        let closed = &self.direction(to).counters;
        closed.closed_events.fetch_add(events, Ordering::Relaxed);
        closed.closed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("side", &self.side)
            .field("slots", &self.geometry.slots)
            .finish_non_exhaustive()
    }
}

fn held_bit(slot: u32) -> (usize, u64) {
    (slot as usize / 64, 1 << (slot % 64))
}
