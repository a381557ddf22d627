//! Where larger rings and loans come from: a private allocator of blocks in the shared heap of a
//! direction.
//!
//! A block is a page with a [`RingHeader`] and then room for a power of two of data. The allocator's state
//! is this process's own; the other side only ever sees offsets, and checks them.

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc as LocalArc, Mutex, MutexGuard, PoisonError};

use super::ring_memory::RingMemory;
use crate::error::RingCorrupted;
use crate::layout::{HeapRange, MAX_RING, MIN_RING, PAGE, RingHeader, at};
use crate::segment::Segment;
use crate::sync::Ordering;

/// Blocks of at least this much data give their pages back while they are free.
const DISCARD: u64 = 1 << 20;
/// Size classes are powers of two, up to the largest ring.
const CLASSES: usize = MAX_RING.ilog2() as usize + 1;

/// Memory in a heap: of a ring, or on loan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub offset: usize,
    pub capacity: u64,
    /// The class it was cut for; it may serve a smaller ring.
    class: u32,
}

/// The condition under which a block that its producer has left can be used again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// The consumer has retired the ring in it.
    Retired,
    /// `frames` frames that named it are done with, or the slot that they were in is idle.
    Released { frames: u64, slot: u32 },
}

impl Block {
    fn total_len(class: u32) -> usize {
        PAGE + (1usize << class)
    }
}

/// The blocks of one direction, as its producer's side sees them.
#[derive(Debug)]
pub(crate) struct Heap {
    segment: LocalArc<dyn Segment>,
    range: HeapRange,
    state: Mutex<State>,
    /// The process that it belongs to: a fork of it has a copy of the books, and no say.
    owner: u32,
}

#[derive(Debug)]
struct State {
    /// Everything from here on was never used, or is not any more.
    top: usize,
    free: [Vec<usize>; CLASSES],
    /// Blocks whose producer is gone and whose consumer may still be reading.
    limbo: Vec<(Block, Until)>,
}

impl Heap {
    pub(crate) fn new(segment: LocalArc<dyn Segment>, range: HeapRange) -> Self {
        let free = std::array::from_fn(|_| Vec::new());
        let state = Mutex::new(State {
            top: range.start,
            free,
            limbo: Vec::new(),
        });
        Heap {
            segment,
            range,
            state,
            owner: std::process::id(),
        }
    }

    /// A block of this capacity, with pages behind it and an empty header in front.
    pub(crate) fn allocate(&self, capacity: u64) -> io::Result<Block> {
        let class = capacity.max(PAGE as u64).next_power_of_two().ilog2();
        let (class, offset) = self.take(class).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("no room for `{capacity}` bytes in the link's heap"),
            )
        })?;
        let block = Block {
            offset,
            capacity,
            class,
        };
        if let Err(error) = self.segment.commit(offset, PAGE + capacity as usize) {
            self.free(block);
            return Err(error);
        }
        // SAFETY: the block lies in the heap, page-aligned, and belongs to no one else: its last
        // consumer said that it is done with it.
        unsafe { self.header(block).write(RingHeader::new()) };
        Ok(block)
    }

    fn take(&self, class: u32) -> Option<(u32, usize)> {
        let mut state = self.lock();
        if let Some(offset) = state.free[class as usize].pop() {
            return Some((class, offset));
        }
        let end = state.top.checked_add(Block::total_len(class))?;
        if end <= self.range.end {
            let offset = std::mem::replace(&mut state.top, end);
            return Some((class, offset));
        }
        let larger = (class + 1..CLASSES as u32).find(|&c| !state.free[c as usize].is_empty())?;
        state.free[larger as usize]
            .pop()
            .map(|offset| (larger, offset))
    }

    /// Takes a block back that no one reads any more.
    pub(crate) fn free(&self, block: Block) {
        let len = Block::total_len(block.class);
        if block.capacity >= DISCARD && self.owner == std::process::id() {
            // Pages that cannot be given back are only kept longer than they need to be.
            let _ = self.segment.discard(block.offset, len);
        }
        let mut state = self.lock();
        if block.offset + len == state.top {
            state.top = block.offset;
        } else {
            state.free[block.class as usize].push(block.offset);
        }
    }

    /// Takes a block back whose consumer may still be reading it.
    pub(crate) fn abandon(&self, block: Block, until: Until) {
        if self.is_done(block, until) {
            self.free(block);
        } else {
            self.lock().limbo.push((block, until));
        }
    }

    /// Frees the abandoned blocks that have been let go of meanwhile, where `over` says that no
    /// side reads a slot any more.
    pub(crate) fn sweep(&self, over: impl Fn(u32) -> bool) {
        let done: Vec<(Block, Until)> = {
            let mut state = self.lock();
            if state.limbo.is_empty() {
                return;
            }
            state
                .limbo
                .extract_if(.., |&mut (block, until)| {
                    matches!(until, Until::Released { slot, .. } if over(slot))
                        || self.is_done(block, until)
                })
                .collect()
        };
        done.into_iter().for_each(|(block, _)| self.free(block));
    }

    /// Whether the consumer is done with the ring in a block: all released, every lease dropped.
    pub(crate) fn is_retired(&self, block: Block) -> bool {
        self.is_done(block, Until::Retired)
    }

    /// Whether the consumer is done with a block.
    pub(crate) fn is_done(&self, block: Block, until: Until) -> bool {
        let ring = self.ring(block);
        let said = &ring.header().consumer;
        match until {
            Until::Retired => said.retired.load(Ordering::Acquire) != 0,
            Until::Released { frames, .. } => said.released.load(Ordering::Acquire) >= frames,
        }
    }

    pub(crate) fn ring(&self, block: Block) -> RingMemory {
        // SAFETY: a block was cut out of the heap's range, which is inside the segment.
        let data = unsafe { at(self.segment.base(), block.offset + PAGE) };
        RingMemory {
            header: self.header(block),
            data,
            capacity: block.capacity,
        }
    }

    fn header(&self, block: Block) -> NonNull<RingHeader> {
        // SAFETY: a block was cut out of the heap's range, which is inside the segment.
        unsafe { at(self.segment.base(), block.offset) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No one panics with it held; and if they did, the lists would still be lists of blocks.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ring that a moved frame speaks of, if there can be one: the consumer's check.
pub(crate) fn follow(
    base: NonNull<u8>,
    heap: HeapRange,
    offset: u64,
    capacity: u64,
) -> Result<RingMemory, RingCorrupted> {
    if !capacity.is_power_of_two() || !(MIN_RING..=MAX_RING).contains(&capacity) {
        return Err(RingCorrupted::new(
            "a ring moved to one of an impossible size",
        ));
    }
    let inside = || {
        let offset = usize::try_from(offset).ok()?;
        let end = offset
            .checked_add(PAGE)?
            .checked_add(usize::try_from(capacity).ok()?)?;
        (offset >= heap.start && end <= heap.end && offset.is_multiple_of(PAGE)).then_some(offset)
    };
    let offset = inside().ok_or(RingCorrupted::new(
        "a ring moved to a place outside of its heap",
    ))?;
    // SAFETY: header page and data lie in the heap, by the check above, which is inside the
    // segment; and the offset is aligned to a page.
    let (header, data) = unsafe { (at(base, offset), at(base, offset + PAGE)) };
    Ok(RingMemory {
        header,
        data,
        capacity,
    })
}
