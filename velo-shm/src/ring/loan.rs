//! Memory that is filled first and named by a frame afterwards, so that sending it copies nothing.
//!
//! A loan is a block of the heap, beside the ring: loans come back in any order. A frame that names
//! parts of loans ends with a table of them, behind its payload padded to eight bytes:
//!
//! ```text
//! for each part: offset of its block u64, start in the block's data u64, length u64
//! length of the payload u32, number of parts u32
//! ```
//!
//! The producer counts the frames that name a block; the consumer counts, in the block's header,
//! those of them that it is done with. Once the two agree, and the borrower has let go of the block
//! as well, it is lent again. A producer that waits for that sets the flag in the block's header.
//! Once the slot is idle its blocks are free, whatever was counted, since frames can be lost.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64 as LocalU64, AtomicUsize as LocalUsize};
use std::sync::{Arc as LocalArc, Mutex, MutexGuard, OnceLock, PoisonError, Weak as LocalWeak};

use super::refusal::{Full, ReserveError};
use crate::layout::PAGE;
use crate::region::heap::{Block, Until};
use crate::region::{Region, RingMemory, SlotHold};
use crate::sync::{Ordering, full_fence};

/// Memory to be filled, in the segment that the other side maps too.
///
/// A frame can [name](Part) parts of it. The borrower has it until this is dropped, and the consumer
/// until it is done with the frames that named it; then it is lent again. It stays mapped, and
/// nobody else's, when the producer or the other side is gone.
pub struct Loan {
    block: Block,
    len: usize,
    /// Frames that named it.
    frames: LocalU64,
    tag: OnceLock<Box<dyn Any + Send + Sync>>,
    shelf: LocalArc<Shelf>,
    /// Last: the slot must not be used again before the block is put away.
    hold: LocalArc<SlotHold>,
}

impl Loan {
    /// Where its memory begins, aligned to a page. What is written there after a frame has named it
    /// may or may not be what the consumer sees.
    pub fn start(&self) -> NonNull<u8> {
        let ring = self.shelf.ring(self.block);
        self.hold.track(ring.data, self.len, true);
        ring.data
    }

    /// How many bytes it has.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a loan of no bytes is never made"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A thing of the borrower's, to be found again from a [`Part`].
    pub fn tag(&self) -> &OnceLock<Box<dyn Any + Send + Sync>> {
        &self.tag
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let frames = self.frames.load(Ordering::Relaxed);
        self.shelf.put_away(self.block, frames);
        if self.shelf.waited_for() {
            // The task that waits for a loan is on this side.
            self.hold.region.notify_self(self.hold.slot);
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loan({} bytes)", self.len)
    }
}

/// A part of a loan, which it keeps.
#[derive(Clone, Debug)]
pub struct Part {
    loan: LocalArc<Loan>,
    start: usize,
    len: usize,
}

impl Part {
    /// What it is a part of.
    pub fn loan(&self) -> &Loan {
        &self.loan
    }

    /// How many bytes it has.
    #[allow(clippy::len_without_is_empty, reason = "see `Loan::len`")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where its block begins in the segment, and where in the block's data it begins.
    pub(super) fn origin(&self) -> (usize, usize) {
        (self.loan.block.offset, self.start)
    }

    /// One more frame names the loan.
    pub(super) fn count(&self) {
        self.loan.frames.fetch_add(1, Ordering::Relaxed);
    }
}

/// The loans of one producer.
#[derive(Debug)]
pub(super) struct Shelf {
    region: LocalArc<Region>,
    slot: u32,
    /// How many bytes all blocks may have together.
    limit: u64,
    /// How many loans their borrowers have.
    lent: LocalUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The loans that their borrowers have, by where in the segment they begin.
    out: BTreeMap<usize, (usize, LocalWeak<Loan>)>,
    /// Blocks that the consumer has yet to let go of, and how many frames named each.
    away: Vec<(Block, u64)>,
    /// Blocks that can be lent, the one that was used last at the end: it is in the caches.
    idle: Vec<Block>,
    /// Of all of these blocks.
    bytes: u64,
    /// A task waits for a loan.
    waits: bool,
    /// The producer is gone: what comes back goes to the heap.
    closed: bool,
}

impl Shelf {
    pub(super) fn new(hold: &SlotHold, limit: u64) -> Self {
        Shelf {
            region: hold.region.clone(),
            slot: hold.slot,
            limit,
            lent: LocalUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// A loan of `len` bytes, of which two fit the limit.
    pub(super) fn lend(
        self: &LocalArc<Self>,
        len: usize,
        hold: &LocalArc<SlotHold>,
    ) -> Result<LocalArc<Loan>, ReserveError> {
        let mut state = self.lock();
        let block = self.block(&mut state, len)?;
        state.waits = false;
        self.ring(block).header().reset();
        let loan = LocalArc::new(Loan {
            block,
            len,
            frames: LocalU64::new(0),
            tag: OnceLock::new(),
            shelf: self.clone(),
            hold: hold.clone(),
        });
        state
            .out
            .insert(block.offset + PAGE, (len, LocalArc::downgrade(&loan)));
        self.lent.fetch_add(1, Ordering::Relaxed);
        Ok(loan)
    }

    /// A block that was lent before, if one does, else a new one.
    fn block(&self, state: &mut State, len: usize) -> Result<Block, ReserveError> {
        self.sweep(state);
        let need = room(len);
        if let Some(place) = state.idle.iter().rposition(|block| suits(block, need)) {
            return Ok(state.idle.remove(place));
        }
        if !self.fits(state, need) {
            return Err(ReserveError::Full(Full::Bytes));
        }
        while state.bytes + need > self.limit {
            // Of other sizes, the one that was not used for longest.
            let block = state.idle.remove(0);
            state.bytes -= block.capacity;
            self.region.heap.free(block);
        }
        self.region.reclaim();
        let block = self
            .region
            .heap
            .allocate(need)
            .map_err(ReserveError::NoMemory)?;
        state.bytes += need;
        Ok(block)
    }

    /// Whether there is a block, or room for one once idle blocks are given up.
    fn fits(&self, state: &State, need: u64) -> bool {
        let idle: u64 = state.idle.iter().map(|block| block.capacity).sum();
        state.bytes - idle + need <= self.limit
    }

    /// Asks to be told when there is room for a loan; true if there is none now.
    pub(super) fn wait_for(&self, len: usize) -> bool {
        let mut state = self.lock();
        state.waits = true;
        for (block, _) in &state.away {
            self.ring(*block)
                .header()
                .waiting
                .store(1, Ordering::Relaxed);
        }
        // Orders the flags before the look: the consumer counts, fences, looks at the flag, so that
        // one of the two sees what the other wrote.
        full_fence();
        self.sweep(&mut state);
        let full = !self.fits(&state, room(len));
        state.waits = full;
        full
    }

    /// Whether a task waits for a loan.
    fn waited_for(&self) -> bool {
        self.lock().waits
    }

    /// Whether any borrower has a loan.
    #[inline]
    pub(super) fn lends(&self) -> bool {
        self.lent.load(Ordering::Relaxed) > 0
    }

    /// The part that these bytes are, at an address of this process.
    pub(super) fn part(&self, address: usize, len: usize) -> Option<Part> {
        let offset = address.checked_sub(self.region.segment.base().as_ptr().addr())?;
        let (loan, start) = {
            let state = self.lock();
            let (&begin, (room, loan)) = state.out.range(..=offset).next_back()?;
            let start = offset - begin;
            if start.checked_add(len)? > *room {
                return None;
            }
            (loan.upgrade()?, start)
        };
        Some(Part { loan, start, len })
    }

    /// Takes a block back from its borrower.
    fn put_away(&self, block: Block, frames: u64) {
        self.lent.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.out.remove(&(block.offset + PAGE));
        if state.closed {
            drop(state);
            self.give_up(block, frames);
        } else {
            state.away.push((block, frames));
            self.sweep(&mut state);
        }
    }

    /// The producer is gone.
    pub(super) fn close(&self) {
        let (away, idle) = {
            let mut state = self.lock();
            state.closed = true;
            (
                std::mem::take(&mut state.away),
                std::mem::take(&mut state.idle),
            )
        };
        idle.into_iter()
            .for_each(|block| self.region.heap.free(block));
        away.into_iter()
            .for_each(|(block, frames)| self.give_up(block, frames));
    }

    fn give_up(&self, block: Block, frames: u64) {
        self.region.heap.abandon(block, self.until(frames));
    }

    /// Finds the blocks that the consumer has let go of.
    fn sweep(&self, state: &mut State) {
        let heap = &self.region.heap;
        let done = |&mut (block, frames): &mut _| heap.is_done(block, self.until(frames));
        let State { away, idle, .. } = state;
        idle.extend(away.extract_if(.., done).map(|(block, _)| block));
    }

    fn until(&self, frames: u64) -> Until {
        Until::Released {
            frames,
            slot: self.slot,
        }
    }

    fn ring(&self, block: Block) -> RingMemory {
        self.region.heap.ring(block)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No one panics with it held; and if they did, the lists would still be lists of blocks.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The capacity of a block for `len` bytes.
fn room(len: usize) -> u64 {
    len.next_multiple_of(PAGE).max(PAGE) as u64
}

/// Whether a block may be lent for this: it is large enough, and wastes little.
fn suits(block: &Block, need: u64) -> bool {
    (need..=need + need / 4).contains(&block.capacity)
}
