//! Everything that two processes see of each other: the shared structs and where they lie.
//!
//! A segment is laid out as
//!
//! ```text
//! LinkHeader | slot 0 | slot 1 | … | heap to client | heap to worker
//! slot = RingHeader to client, RingHeader to worker, data to client, data to worker
//! ```
//!
//! Nothing here is trusted after it was read once: [`Geometry`] is computed from three numbers,
//! checked, and kept in private memory.

use std::cell::UnsafeCell;
use std::mem::size_of;
use std::ptr::NonNull;

use crate::cpu;
use crate::error::LinkError;
use crate::side::Side;
use crate::spec::{LinkSpec, MAX_SLOTS, VERSION};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Blocks and heaps are aligned to this, whatever the machine's own page size is.
pub(crate) const PAGE: usize = 4096;
/// The smallest ring: one event of 16 bytes always fits an empty one.
pub(crate) const MIN_RING: u64 = 128;
/// The largest ring: a frame's length has to fit 32 bits.
pub(crate) const MAX_RING: u64 = 1 << 32;

/// How many slots get their memory with one system call: some tens of KiB.
pub(crate) const GROUP_SLOTS: u32 = 16;

pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"velolink");

pub(crate) const WORDS: usize = MAX_SLOTS.div_ceil(64) as usize;
pub(crate) const SUMMARIES: usize = WORDS.div_ceil(64);

/// Added to `residents` once no more streams are let in.
pub(crate) const CLOSED: u32 = 1 << 31;

/// `residents` of a link that takes no more streams.
pub(crate) const RETIRED: u32 = u32::MAX;

/// Keeps what one side writes away from the cache line that the other side writes.
#[repr(C, align(64))]
pub(crate) struct CacheLine<T>(pub T);

impl<T> std::ops::Deref for CacheLine<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the producer of a ring writes.
#[repr(C)]
pub(crate) struct ProducerLine {
    /// End of the published frames.
    pub tail: AtomicU64,
    /// Counted events published so far (slot header only; statistics).
    pub events: AtomicU64,
    /// Payload bytes of all frames published so far (slot header only; statistics).
    pub bytes: AtomicU64,
    /// 1 while the producer's process holds anything of the slot (slot header only).
    pub held: AtomicU32,
    /// Keys of a lane that were ended for others (slot header only; statistics).
    pub evicted: AtomicU32,
    /// Counted events before this one are not wanted any more (slot header only).
    pub wanted: AtomicU64,
    /// Median of how long events take, in nanoseconds; 0 before any is known (slot header only;
    /// statistics).
    pub median: AtomicU64,
    /// As `median`, the 99th percentile.
    pub p99: AtomicU64,
}

/// What the consumer of a ring writes.
#[repr(C)]
pub(crate) struct ConsumerLine {
    /// Everything before this may be overwritten.
    pub head: AtomicU64,
    /// Counted events that are done with (slot header; goes on across moves). Of a block on loan:
    /// frames that named it and are done with.
    pub released: AtomicU64,
    /// When the last event of `released` was released, by `ticks::shared_now` (slot header only;
    /// statistics).
    pub released_at: AtomicU64,
    /// 1 when no one reads this block any more (heap blocks only).
    pub retired: AtomicU32,
    /// Counted events that were skipped since they were not wanted (slot header only; statistics).
    pub skipped: AtomicU64,
}

/// The shared half of a ring: one per direction of a slot, and one in front of each heap block.
#[repr(C)]
pub(crate) struct RingHeader {
    pub producer: CacheLine<ProducerLine>,
    pub consumer: CacheLine<ConsumerLine>,
    /// 1 while the producer waits for space: set by it, taken back by either (slot header, and blocks
    /// on loan).
    pub waiting: CacheLine<AtomicU32>,
}

impl RingHeader {
    pub(crate) fn new() -> Self {
        RingHeader {
            producer: CacheLine(ProducerLine {
                tail: AtomicU64::new(0),
                events: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                held: AtomicU32::new(0),
                evicted: AtomicU32::new(0),
                wanted: AtomicU64::new(0),
                median: AtomicU64::new(0),
                p99: AtomicU64::new(0),
            }),
            consumer: CacheLine(ConsumerLine {
                head: AtomicU64::new(0),
                released: AtomicU64::new(0),
                released_at: AtomicU64::new(0),
                retired: AtomicU32::new(0),
                skipped: AtomicU64::new(0),
            }),
            waiting: CacheLine(AtomicU32::new(0)),
        }
    }

    /// Makes it as good as new, while no one uses it.
    pub(crate) fn reset(&self) {
        let line = &self.producer;
        let (counts, times) = ([&line.events, &line.bytes], [&line.median, &line.p99]);
        for field in [&line.tail, &line.wanted]
            .into_iter()
            .chain(counts)
            .chain(times)
        {
            field.store(0, Ordering::Relaxed);
        }
        line.held.store(0, Ordering::Relaxed);
        line.evicted.store(0, Ordering::Relaxed);
        self.consumer.head.store(0, Ordering::Relaxed);
        self.consumer.released.store(0, Ordering::Relaxed);
        self.consumer.released_at.store(0, Ordering::Relaxed);
        self.consumer.retired.store(0, Ordering::Relaxed);
        self.consumer.skipped.store(0, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Release);
    }
}

/// Statistics of one direction; those of streams that are open are in their slots.
#[repr(C)]
pub(crate) struct CounterLine {
    pub closed_events: AtomicU64,
    pub closed_bytes: AtomicU64,
    pub wakes: AtomicU64,
    /// The core that the doorbell was last rung on.
    pub rung_on: AtomicU64,
}

/// How one side is told that it has something to do.
#[repr(C)]
pub(crate) struct Direction {
    /// 1 while the receiving side is about to wait on its doorbell, or does.
    pub sleeping: CacheLine<AtomicU32>,
    /// One bit per word of `words`.
    pub summary: CacheLine<[AtomicU64; SUMMARIES]>,
    /// One bit per slot.
    pub words: CacheLine<[AtomicU64; WORDS]>,
    pub counters: CacheLine<CounterLine>,
}

impl Direction {
    fn new() -> Self {
        Direction {
            sleeping: CacheLine(AtomicU32::new(0)),
            summary: CacheLine(std::array::from_fn(|_| AtomicU64::new(0))),
            words: CacheLine(std::array::from_fn(|_| AtomicU64::new(0))),
            counters: CacheLine(CounterLine {
                closed_events: AtomicU64::new(0),
                closed_bytes: AtomicU64::new(0),
                wakes: AtomicU64::new(0),
                rung_on: AtomicU64::new(cpu::UNKNOWN),
            }),
        }
    }
}

/// The numbers a link is described by, written once before anyone attaches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub magic: u64,
    pub version: u32,
    pub slots: u32,
    pub ring_bytes: u32,
    pub header_len: u32,
    pub heap_bytes: u64,
    pub slots_offset: u64,
    pub slot_stride: u64,
    pub heap_offsets: [u64; 2],
    pub total_len: u64,
}

/// How many streams live on the link.
#[repr(C)]
pub(crate) struct Residence {
    pub residents: AtomicU32,
    /// One more than the highest slot that was ever opened.
    pub slots_used: AtomicU32,
    pub opened: AtomicU64,
}

/// What the worker is doing right now. It alone writes here; others look after its death, or now
/// and then, and nobody waits for what they see.
#[repr(C)]
pub(crate) struct ActivityLine {
    /// Odd while a function runs; goes up whenever one begins or stops.
    pub step: AtomicU64,
    /// Whose function: its stream's number, as its client counts.
    pub stream: AtomicU64,
    /// Which event it took last, counted from 1; 0 before the first.
    pub event: AtomicU64,
    /// How often the worker has looked at what is ready on the link.
    pub looks: AtomicU64,
    /// The stream's slot.
    pub slot: AtomicU32,
    /// For how many milliseconds the step may go on, 0 for ever; the highest bit says which setting
    /// that is.
    pub limit: AtomicU32,
}

impl ActivityLine {
    fn new() -> Self {
        ActivityLine {
            step: AtomicU64::new(0),
            stream: AtomicU64::new(0),
            event: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            slot: AtomicU32::new(0),
            limit: AtomicU32::new(0),
        }
    }
}

/// What is said of the worker as a whole: whether the supervisor has an eye on it, for the streams
/// that have limits, and whether a core is free for it to spin on.
#[repr(C)]
pub(crate) struct WatchLine {
    /// Open streams with limits that the supervisor keeps: counted by the client.
    pub limited: AtomicU32,
    /// 1 while the supervisor looks: written by it.
    pub watched: AtomicU32,
    /// 1 while the worker had better not spin: written by the client.
    pub oversubscribed: AtomicU32,
}

/// The start of every segment.
#[repr(C)]
pub(crate) struct LinkHeader {
    /// In a cell since the other side could write to it: it is read once, by pointer.
    pub info: CacheLine<UnsafeCell<LinkInfo>>,
    pub residence: CacheLine<Residence>,
    pub activity: CacheLine<ActivityLine>,
    pub watch: CacheLine<WatchLine>,
    /// Indexed by [`Side`] of the one that is told.
    pub directions: [Direction; 2],
}

impl LinkHeader {
    pub(crate) fn new(info: LinkInfo) -> Self {
        LinkHeader {
            info: CacheLine(UnsafeCell::new(info)),
            residence: CacheLine(Residence {
                residents: AtomicU32::new(0),
                slots_used: AtomicU32::new(0),
                opened: AtomicU64::new(0),
            }),
            activity: CacheLine(ActivityLine::new()),
            watch: CacheLine(WatchLine {
                limited: AtomicU32::new(0),
                watched: AtomicU32::new(0),
                oversubscribed: AtomicU32::new(0),
            }),
            directions: [Direction::new(), Direction::new()],
        }
    }
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<RingHeader>() == 192);
    assert!(size_of::<LinkInfo>() == 72);
    assert!(size_of::<Direction>() == 64 + 64 + MAX_SLOTS as usize / 8 + 64);
    assert!(size_of::<LinkHeader>() == 128 + 64 + 64 + 64 + 2 * size_of::<Direction>());
    assert!(MAX_SLOTS as usize == 64 * WORDS && WORDS == 64 * SUMMARIES);
};
const _: () = assert!(size_of::<RingHeader>() <= PAGE);

impl LinkSpec {
    /// How long a segment for such a link has to be; `usize::MAX` where no segment could be.
    pub fn segment_len(&self) -> usize {
        Geometry::new(self).map_or(usize::MAX, |geometry| geometry.total_len)
    }
}

/// Where things lie in a segment: computed and checked here, never read from shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub slots: u32,
    pub ring_bytes: u32,
    pub heap_bytes: u64,
    slots_offset: usize,
    slot_stride: usize,
    heap_offsets: [usize; 2],
    pub total_len: usize,
}

impl Geometry {
    pub(crate) fn new(spec: &LinkSpec) -> Result<Self, LinkError> {
        if spec.slots == 0 || spec.slots > MAX_SLOTS {
            return Err(LinkError::Slots { slots: spec.slots });
        }
        let ring = u64::from(spec.ring_bytes);
        if !ring.is_power_of_two() || ring < MIN_RING {
            return Err(LinkError::RingBytes {
                ring_bytes: spec.ring_bytes,
            });
        }
        if !spec.heap_bytes.is_multiple_of(PAGE as u64) {
            return Err(LinkError::HeapBytes {
                heap_bytes: spec.heap_bytes,
            });
        }
        let too_large = LinkError::Unmappable {
            heap_bytes: spec.heap_bytes,
        };
        let sizes = || {
            let slots_offset = size_of::<LinkHeader>().next_multiple_of(PAGE);
            let slot_stride = (spec.ring_bytes as usize)
                .checked_mul(2)?
                .checked_add(2 * size_of::<RingHeader>())?;
            let heap = usize::try_from(spec.heap_bytes).ok()?;
            let first = slot_stride
                .checked_mul(spec.slots as usize)?
                .checked_add(slots_offset)?
                .checked_next_multiple_of(PAGE)?;
            let second = first.checked_add(heap)?;
            let total_len = second.checked_add(heap)?;
            (total_len <= isize::MAX as usize).then_some(Geometry {
                slots: spec.slots,
                ring_bytes: spec.ring_bytes,
                heap_bytes: spec.heap_bytes,
                slots_offset,
                slot_stride,
                heap_offsets: [first, second],
                total_len,
            })
        };
        sizes().ok_or(too_large)
    }

    pub(crate) fn info(&self) -> LinkInfo {
        LinkInfo {
            magic: MAGIC,
            version: VERSION,
            slots: self.slots,
            ring_bytes: self.ring_bytes,
            header_len: size_of::<LinkHeader>() as u32,
            heap_bytes: self.heap_bytes,
            slots_offset: self.slots_offset as u64,
            slot_stride: self.slot_stride as u64,
            heap_offsets: self.heap_offsets.map(|offset| offset as u64),
            total_len: self.total_len as u64,
        }
    }

    /// Offset and length of everything of one slot.
    pub(crate) fn slot_range(&self, slot: u32) -> (usize, usize) {
        (
            self.slots_offset + self.slot_stride * slot as usize,
            self.slot_stride,
        )
    }

    /// Offset and length of all slots of a group: memory is committed by groups.
    pub(crate) fn group_range(&self, group: usize) -> (usize, usize) {
        let first = (group as u32 * GROUP_SLOTS).min(self.slots);
        let slots = GROUP_SLOTS.min(self.slots - first);
        (self.slot_range(first).0, self.slot_stride * slots as usize)
    }

    /// Offset of the header of the ring that `to` reads.
    pub(crate) fn ring_header(&self, slot: u32, to: Side) -> usize {
        self.slot_range(slot).0 + to as usize * size_of::<RingHeader>()
    }

    /// Offset of the data of the ring that `to` reads.
    pub(crate) fn ring_data(&self, slot: u32, to: Side) -> usize {
        self.slot_range(slot).0
            + 2 * size_of::<RingHeader>()
            + to as usize * self.ring_bytes as usize
    }

    /// The heap that holds the grown rings that `to` reads.
    pub(crate) fn heap(&self, to: Side) -> HeapRange {
        let start = self.heap_offsets[to as usize];
        HeapRange {
            start,
            end: start + self.heap_bytes as usize,
        }
    }
}

/// Where the blocks of one direction may lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeapRange {
    pub start: usize,
    pub end: usize,
}

/// The address of `offset` in a segment.
///
/// # Safety
///
/// `offset` lies inside the segment that starts at `base`.
#[inline]
pub(crate) unsafe fn at<T>(base: NonNull<u8>, offset: usize) -> NonNull<T> {
    // SAFETY: the caller vouches for the offset, so the result stays inside one mapping.
    unsafe { base.add(offset) }.cast()
}
