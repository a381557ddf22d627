//! A link joins one client with one worker: slots of rings, ready bits and doorbells.
//!
//! It says who has something to do and wakes those who sleep. It never waits, never looks at an
//! event, and decides nothing about who gets which slot.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as LocalU64;

use crate::activity::{Allowance, Progress, Running};
use crate::doorbell::Bells;
use crate::error::{LinkError, RingCorrupted};
use crate::layout::{
    CLOSED, Direction, GROUP_SLOTS, Geometry, LinkHeader, RETIRED, RingHeader, WORDS, at,
};
use crate::ring::growth::Heap;
use crate::ring::{Consumer, Limits, Producer, SlotHold};
use crate::segment::Segment;
use crate::side::Side;
use crate::sync::{Ordering, full_fence};

mod figures;
mod setup;
mod waking;

pub use figures::SlotFigures;
pub use setup::initialise;
use setup::{read_geometry, says};

/// What went through one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Counted events published.
    pub events: u64,
    /// Payload bytes published, of uncounted frames too.
    pub bytes: u64,
    /// How often the receiving side was asleep and its doorbell was rung.
    pub wakes: u64,
}

/// What went through a link. Read while others write, so that neighbours may be a moment apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// From the client to the worker.
    pub to_worker: Counters,
    /// From the worker to the client.
    pub to_client: Counters,
}

/// One side's end of a link.
///
/// A process attaches once per side and shares the end; a second end of the same side, here or
/// elsewhere, would be two writers of one ring.
pub struct LinkEnd {
    pub(crate) segment: Arc<dyn Segment>,
    pub(crate) geometry: Geometry,
    pub(crate) side: Side,
    /// Blocks for the rings that this side writes.
    pub(crate) heap: Heap,
    header: NonNull<LinkHeader>,
    bells: Bells,
    core: waking::Core,
    /// Slots that something in this process still holds.
    held: [LocalU64; WORDS],
    /// Groups of slots whose pages are known to exist.
    committed: [LocalU64; WORDS],
}

// SAFETY: `header` points into `segment`, which the end keeps alive and which may be reached from
// any thread; all that is reached through it is atomic. The rest is Send and Sync by itself.
unsafe impl Send for LinkEnd {}
// SAFETY: as above.
unsafe impl Sync for LinkEnd {}

impl LinkEnd {
    /// Attaches to an initialised link, after checking its header.
    pub fn attach(
        segment: Arc<dyn Segment>,
        side: Side,
        bells: Bells,
    ) -> Result<Arc<LinkEnd>, LinkError> {
        let geometry = read_geometry(&*segment)?;
        Ok(Arc::new(LinkEnd {
            // SAFETY: offset 0 is inside every segment that has a geometry.
            header: unsafe { at(segment.base(), 0) },
            heap: Heap::new(segment.clone(), geometry.heap(side.peer())),
            segment,
            geometry,
            side,
            bells,
            core: waking::Core::default(),
            held: std::array::from_fn(|_| LocalU64::new(0)),
            committed: std::array::from_fn(|_| LocalU64::new(0)),
        }))
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// How many slots there are; slot 0 is the control slot.
    pub fn slots(&self) -> u32 {
        self.geometry.slots
    }

    /// Attaches to both rings of a slot, at their beginning.
    ///
    /// The client resets a slot before it opens it again ([`reset_slot`](Self::reset_slot)); the
    /// worker opens it when told to. The producer, the consumer and every lease of it keep the
    /// link alive and the slot in use.
    pub fn open_slot(
        self: &Arc<Self>,
        slot: u32,
        limits: Limits,
    ) -> Result<(Producer, Consumer), LinkError> {
        self.check_slot(slot)?;
        self.commit_slot(slot)
            .map_err(|source| LinkError::NoMemory { source })?;
        let (word, bit) = held_bit(slot);
        if self.held[word].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return Err(LinkError::SlotInUse { slot });
        }
        // What was lent in this slot before was to a stream that is over.
        self.heap
            .sweep(|other| other == slot || self.slot_idle(other));
        self.ring_header(slot, self.side.peer())
            .producer
            .held
            .store(1, Ordering::Release);
        self.header()
            .residence
            .slots_used
            .fetch_max(slot + 1, Ordering::Relaxed);
        let hold = Arc::new(SlotHold {
            link: self.clone(),
            slot,
        });
        Ok((
            Producer::new(hold.clone(), limits),
            Consumer::new(hold, limits),
        ))
    }

    /// Makes a slot as good as new; true if it was done. For the client only, and only while
    /// neither side uses the slot: otherwise nothing happens.
    ///
    /// # Errors
    ///
    /// [`LinkError::NoMemory`] when the slot was never used and the system has no pages for it.
    pub fn reset_slot(&self, slot: u32) -> Result<bool, LinkError> {
        if self.side != Side::Client || self.check_slot(slot).is_err() {
            return Ok(false);
        }
        // Before the first look: a page that cannot be had is an error here, and a signal there.
        self.commit_slot(slot)
            .map_err(|source| LinkError::NoMemory { source })?;
        if !self.slot_idle(slot) {
            return Ok(false);
        }
        for to in [Side::Client, Side::Worker] {
            self.ring_header(slot, to).reset();
        }
        Ok(true)
    }

    /// Whether no side holds a producer, a consumer or a lease of the slot, so that the client may
    /// reset it and open it for another stream.
    pub fn slot_idle(&self, slot: u32) -> bool {
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

    /// The worker: a function begins a step. It goes on the board, for those who ask after the
    /// worker's death what it was doing.
    #[inline]
    pub fn begin_step(&self, slot: u32, stream: u64, event: u64, allowance: Option<Allowance>) {
        let activity = &self.header().activity;
        activity.begin(slot, stream, event, allowance);
    }

    /// The worker: the function of this slot has taken an event, the `event`th, counted from 1.
    #[inline]
    pub fn took_event(&self, slot: u32, event: u64) {
        self.header().activity.took(slot, event);
    }

    /// The worker: the running function of this slot may go on for so long from now.
    #[inline]
    pub fn allow(&self, slot: u32, allowance: Option<Allowance>) {
        self.header().activity.allow(slot, allowance);
    }

    /// The worker: the function waits, or has ended.
    #[inline]
    pub fn end_step(&self) {
        self.header().activity.end();
    }

    /// The function that the worker runs, or was running when it died; None if it ran none, or
    /// was about to begin or to stop. What cannot be is taken for none.
    pub fn running(&self) -> Option<Running> {
        self.header().activity.running(self.geometry.slots)
    }

    /// How far the worker has come: two looks that give the same saw no work on this link between
    /// them.
    pub fn progress(&self) -> Progress {
        self.header().activity.progress()
    }

    /// Whether the worker is awake and has not looked at what is there for it, as far as one look
    /// can tell: true for a moment now and then, and for long if it stands still.
    pub fn worker_input_waits(&self) -> bool {
        let direction = self.direction(Side::Worker);
        direction.any() && direction.sleeping.load(Ordering::Acquire) == 0
    }

    /// The client: one more stream with limits is open. True if nobody watches the worker: the
    /// client has to ask the supervisor for it.
    pub fn begin_limit(&self) -> bool {
        let watch = &self.header().watch;
        let _ = watch
            .limited
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(1)
            });
        // See `stop_watching`.
        full_fence();
        watch.watched.load(Ordering::Relaxed) == 0
    }

    /// The client: one stream with limits less is open.
    pub fn end_limit(&self) {
        let limited = &self.header().watch.limited;
        let _ = limited.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            now.checked_sub(1)
        });
    }

    /// The supervisor: watches from now on.
    pub fn start_watching(&self) {
        self.header().watch.watched.store(1, Ordering::Relaxed);
    }

    /// The supervisor: stops watching if there is no reason to go on; true if it has stopped.
    pub fn stop_watching(&self) -> bool {
        let watch = &self.header().watch;
        if watch.limited.load(Ordering::Relaxed) > 0 {
            return false;
        }
        watch.watched.store(0, Ordering::Relaxed);
        // The client counts, fences, looks at the flag: one of the two sees what the other wrote.
        full_fence();
        let idle = watch.limited.load(Ordering::Relaxed) == 0;
        if !idle {
            watch.watched.store(1, Ordering::Relaxed);
        }
        idle
    }

    /// Counts one more open stream; false if the link is closed to new ones, or retired.
    pub fn enter(&self) -> bool {
        let residence = &self.header().residence;
        let entered = residence
            .residents
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
                (now < CLOSED - 1).then(|| now + 1)
            })
            .is_ok();
        if entered {
            residence.opened.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// Counts one open stream less.
    pub fn leave(&self) {
        // Nothing to take from a count that is zero or retired: the other side scribbled on it.
        let _ = self.header().residence.residents.fetch_update(
            Ordering::AcqRel,
            Ordering::Relaxed,
            |now| (now != RETIRED && now & !CLOSED > 0).then(|| now - 1),
        );
    }

    /// How many streams are open; none on a retired link.
    pub fn residents(&self) -> u32 {
        match self.header().residence.residents.load(Ordering::Acquire) {
            RETIRED => 0,
            residents => residents & !CLOSED,
        }
    }

    /// Lets no more streams in; those that are open go on. A worker that is about to end calls it.
    pub fn close_entry(&self) {
        let residents = &self.header().residence.residents;
        residents.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Retires the link if no stream is open; true if it is retired now.
    pub fn try_retire(&self) -> bool {
        let residents = &self.header().residence.residents;
        residents
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now == RETIRED || now & !CLOSED == 0).then_some(RETIRED)
            })
            .is_ok()
    }

    /// How many streams were ever opened: tells activity between two looks.
    pub fn opened_total(&self) -> u64 {
        self.header().residence.opened.load(Ordering::Relaxed)
    }

    /// Looks at what nobody may have changed: the numbers that the link is described by, and flags
    /// that have two values. For now and then; what is read on the way of an event is checked there.
    ///
    /// # Errors
    ///
    /// When the other side has written where it must not.
    pub fn check(&self) -> Result<(), RingCorrupted> {
        if !says(&*self.segment, &self.geometry) {
            return Err(RingCorrupted::new("the link's header was changed"));
        }
        let header = self.header();
        let asleep = header.directions.iter().map(|way| &way.sleeping);
        if asleep
            .into_iter()
            .any(|flag| flag.load(Ordering::Relaxed) > 1)
        {
            return Err(RingCorrupted::new("a side is neither asleep nor awake"));
        }
        if header.residence.slots_used.load(Ordering::Relaxed) > self.geometry.slots {
            return Err(RingCorrupted::new("more slots were used than there are"));
        }
        Ok(())
    }

    /// Makes what is marked visible again, for both sides, where someone wrote over the marks in a way
    /// that hides slots from those who look. For now and then, as it looks at all of them.
    pub fn mend(&self) {
        for side in [Side::Client, Side::Worker] {
            self.direction(side).mend();
        }
    }

    /// Gives memory of grown rings and loans that no one reads any more back to the system. This happens by
    /// itself as rings grow and slots open and close; call it when going idle.
    pub fn reclaim(&self) {
        self.heap.sweep(|slot| self.slot_idle(slot));
    }

    /// What went through so far. Looks at every slot that was ever open: for people, not for
    /// every event.
    pub fn counters(&self) -> LinkCounters {
        let mut counters = LinkCounters {
            to_worker: self.closed_counters(Side::Worker),
            to_client: self.closed_counters(Side::Client),
        };
        let used = self.header().residence.slots_used.load(Ordering::Relaxed);
        for slot in 0..used.min(self.geometry.slots) {
            for (to, sum) in [
                (Side::Worker, &mut counters.to_worker),
                (Side::Client, &mut counters.to_client),
            ] {
                let line = &self.ring_header(slot, to).producer;
                sum.events = sum.events.wrapping_add(line.events.load(Ordering::Relaxed));
                sum.bytes = sum.bytes.wrapping_add(line.bytes.load(Ordering::Relaxed));
            }
        }
        counters
    }

    fn closed_counters(&self, to: Side) -> Counters {
        let line = &self.direction(to).counters;
        Counters {
            events: line.closed_events.load(Ordering::Relaxed),
            bytes: line.closed_bytes.load(Ordering::Relaxed),
            wakes: line.wakes.load(Ordering::Relaxed),
        }
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

    /// Called when the last thing of a slot is dropped in this process.
    pub(crate) fn let_go(&self, slot: u32) {
        self.reclaim();
        self.ring_header(slot, self.side.peer())
            .producer
            .held
            .store(0, Ordering::Release);
        let (word, bit) = held_bit(slot);
        self.held[word].fetch_and(!bit, Ordering::AcqRel);
    }

    /// Makes sure that the slot's pages exist; no system call if they are known to.
    fn commit_slot(&self, slot: u32) -> io::Result<()> {
        let group = (slot / GROUP_SLOTS) as usize;
        let (word, bit) = (&self.committed[group / 64], 1 << (group % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            let (offset, len) = self.geometry.group_range(group);
            self.segment.commit(offset, len)?;
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    fn check_slot(&self, slot: u32) -> Result<(), LinkError> {
        let slots = self.geometry.slots;
        if slot < slots {
            Ok(())
        } else {
            Err(LinkError::NoSuchSlot { slot, slots })
        }
    }

    fn header(&self) -> &LinkHeader {
        // SAFETY: inside the segment and aligned, by `attach`; everything in it that is reached
        // through this reference is atomic.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    fn direction(&self, to: Side) -> &Direction {
        &self.header().directions[to as usize]
    }

    fn ring_header(&self, slot: u32, to: Side) -> &RingHeader {
        debug_assert!(slot < self.geometry.slots);
        // SAFETY: the offset is inside the segment for every slot there is, and a multiple of 64;
        // a ring header is nothing but atomics.
        unsafe { at(self.segment.base(), self.geometry.ring_header(slot, to)).as_ref() }
    }
}

impl fmt::Debug for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkEnd")
            .field("side", &self.side)
            .field("slots", &self.geometry.slots)
            .field("residents", &self.residents())
            .finish_non_exhaustive()
    }
}

fn held_bit(slot: u32) -> (usize, u64) {
    (slot as usize / 64, 1 << (slot % 64))
}
