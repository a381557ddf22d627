//! The writing half of a ring. It cannot read, never waits and never wakes anyone: it says what
//! there is to say, and the [link](crate::Link) passes it on.

use std::fmt;
use std::io;
use std::sync::Arc as LocalArc;

use super::consumer::Consumer;
use super::frame::{
    FrameHeader, HEADER, MOVED, MOVED_PAYLOAD, MOVED_ROOM, PADDING, frame_len, longest_frame,
};
use super::limits::Limits;
use super::loan::{Loan, Part, Shelf};
use super::refusal::{Full, ReserveError};
use crate::error::RingCorrupted;
use crate::region::heap::{Block, Until};
use crate::region::{RingMemory, SlotHold};
use crate::sync::{Ordering, full_fence};

mod reservation;

pub use reservation::{Reservation, lending_len};

/// Each growth multiplies the capacity by this, so that a ring that has to grow soon stops;
const GROWTH: u64 = 8;
/// but from this size on by no more than is needed: a ring is walked through from end to end, and one
/// that is larger than the caches makes every frame come from memory.
const LARGE: u64 = 1 << 20;
/// A ring grown for a large frame holds this many of it, so that both sides can be busy.
const FRAMES: u64 = 4;
/// The least that an event takes: a header and up to eight bytes.
const MINIMAL: u64 = 2 * HEADER;

/// Writes frames into one ring.
///
/// Dropping it gives back the blocks that the ring has grown into, once the consumer has let go of
/// them as well; frames that were committed but not published are lost.
pub struct Producer {
    ring: RingMemory,
    /// End of the committed frames.
    tail: u64,
    /// End of the published ones.
    published: u64,
    /// Everything before this is known to be released.
    head: u64,
    /// Counted events committed.
    committed: u64,
    /// Counted events known to be released.
    released: u64,
    /// Payload bytes committed.
    bytes: u64,
    /// Frames were published along with a move, and the other side was not notified yet.
    untold: bool,
    /// The last attempt to grow found no memory; more room only comes from the consumer.
    stuck: bool,
    limits: Limits,
    ceiling: u64,
    /// The longest frame that the ceiling allows.
    longest: u64,
    /// The slot's own ring: events are counted there, wherever the ring has moved to.
    base: RingMemory,
    block: Option<Block>,
    /// Blocks that the ring has left and that the consumer may still read.
    left: Vec<Block>,
    /// The loans, from the first one on.
    shelf: Option<LocalArc<Shelf>>,
    hold: LocalArc<SlotHold>,
}

// SAFETY: the pointers lead into the mapping that `hold` keeps alive, which is the same from every
// thread; a producer is not Clone, and everything that writes takes it by unique reference.
unsafe impl Send for Producer {}
// SAFETY: nothing is written through a shared reference.
unsafe impl Sync for Producer {}

impl Producer {
    pub(crate) fn new(hold: LocalArc<SlotHold>, limits: Limits) -> Self {
        let ring = hold.region.ring_memory(hold.slot, hold.region.side.peer());
        let ceiling = limits.ceiling(&hold.region.geometry);
        Producer {
            ring,
            tail: 0,
            published: 0,
            head: 0,
            committed: 0,
            released: 0,
            bytes: 0,
            untold: false,
            stuck: false,
            limits,
            ceiling,
            longest: longest_frame(ceiling),
            base: ring,
            block: None,
            left: Vec::new(),
            shelf: None,
            hold,
        }
    }

    /// Contiguous room for a message of at least `min` bytes. It gives all the room there is in
    /// one piece, so that an encoder that does not know its length may try in place.
    ///
    /// The ring grows when `min` bytes do not fit and its ceiling allows. `counted` messages are
    /// bounded by [`Limits::events`]; others are not.
    #[inline]
    pub fn reserve(&mut self, min: usize, counted: bool) -> Result<Reservation<'_>, ReserveError> {
        if counted && self.events_left() == 0 {
            self.refresh_released()?;
            if self.events_left() == 0 {
                return Err(ReserveError::Full(Full::Events));
            }
        }
        let need = frame_len(min as u64);
        let span = match self.span(need) {
            Some(span) if need <= self.longest => span,
            _ => self.make_room(min, need)?,
        };
        self.hold
            .track_ring(&self.ring, span.start, HEADER + span.room, true);
        Ok(Reservation {
            span,
            counted,
            producer: self,
        })
    }

    /// Makes committed frames visible to the consumer; true if there were any. It does not notify.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return std::mem::take(&mut self.untold);
        }
        self.publish_tail();
        if !self.left.is_empty() {
            self.free_left();
        }
        self.untold = false;
        true
    }

    /// Writes the published position again, in case another process wrote over it: the consumer would wait
    /// for it for ever. For now and then.
    pub fn restate(&self) {
        let tail = &self.ring.header().producer.tail;
        if tail.load(Ordering::Relaxed) != self.published {
            tail.store(self.published, Ordering::Release);
        }
    }

    /// How many counted events may be committed before the bound is reached.
    pub fn free_events(&mut self) -> u32 {
        if self.events_left() == 0 && self.refresh_released().is_err() {
            // Nothing to be had from a broken ring; waiting for it says why.
            return 0;
        }
        self.events_left().min(u64::from(u32::MAX)) as u32
    }

    /// Counted events that were committed and that the consumer has not released.
    pub fn in_flight(&mut self) -> u32 {
        // From a broken ring comes the last count that was right.
        let _ = self.refresh_released();
        (self.committed - self.released).min(u64::from(u32::MAX)) as u32
    }

    /// Counted events committed so far.
    #[inline]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Counted events that the consumer has released so far.
    pub fn released(&mut self) -> u64 {
        // From a broken ring comes the last count that was right.
        let _ = self.refresh_released();
        self.released
    }

    /// When the consumer released the last event that it has published as released, by its
    /// `ticks::shared_now`; of several published at once, when it published them. Unchecked: for
    /// figures only.
    pub fn released_at(&self) -> u64 {
        self.base
            .header()
            .consumer
            .released_at
            .load(Ordering::Relaxed)
    }

    /// Says that only counted events from number `first` on are wanted: a consumer that looks
    /// ([`Consumer::skip_unwanted`](super::Consumer::skip_unwanted)) drops those before that it has
    /// not peeked at.
    pub fn want_from(&self, first: u64) {
        let wanted = &self.base.header().producer.wanted;
        wanted.store(first, Ordering::Release);
    }

    /// Publishes how long events take: the median and the 99th percentile, in
    /// nanoseconds.
    pub fn show_latencies(&self, median: u64, p99: u64) {
        let line = &self.base.header().producer;
        line.median.store(median, Ordering::Relaxed);
        line.p99.store(p99, Ordering::Relaxed);
    }

    /// Publishes how many keys of a lane were ended for others.
    pub fn show_evicted(&self, evicted: u32) {
        let line = &self.base.header().producer;
        line.evicted.store(evicted, Ordering::Relaxed);
    }

    /// How many counted events the consumer says it has skipped.
    pub fn skipped(&self) -> u64 {
        let skipped = &self.base.header().consumer.skipped;
        skipped.load(Ordering::Relaxed).min(self.committed)
    }

    /// From which counted event on events are wanted: see [`want_from`](Self::want_from).
    pub fn wanted(&self) -> u64 {
        self.base.header().producer.wanted.load(Ordering::Relaxed)
    }

    /// All that was published, for a producer whose consumer is gone without having opened the slot.
    pub fn unread(&self) -> Consumer {
        let side = self.hold.region.side.peer();
        Consumer::on_behalf(self.hold.clone(), side, self.limits)
    }

    /// Payload bytes committed so far.
    #[inline]
    pub fn committed_bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes the ring has at present.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity
    }

    /// Whether a message of `len` bytes can ever be reserved under the ceiling.
    #[inline]
    pub fn would_fit(&self, len: usize) -> bool {
        frame_len(len as u64) <= self.longest
    }

    /// The longest message that can ever be reserved.
    pub fn max_len(&self) -> u64 {
        self.longest - HEADER
    }

    /// Asks for a wake-up when there is space for a counted event; true if there is none now, and the
    /// caller may sleep. Publish before, or there may never be any.
    pub fn wait_for_space(&mut self) -> Result<bool, RingCorrupted> {
        self.wait_until(|producer| producer.events_left() > 0 && producer.has_room(MINIMAL))
    }

    /// Asks for a wake-up when there is room for `min` bytes; true if there is none now, and the
    /// caller may sleep. For a reservation that failed with [`Full::Bytes`].
    pub fn wait_for_bytes(&mut self, min: usize) -> Result<bool, RingCorrupted> {
        let need = frame_len(min as u64);
        self.wait_until(|producer| producer.has_room(need))
    }

    /// Memory of `len` bytes to be filled and then named by a frame, instead of being copied into
    /// one. It comes out of the link's heap; all that a producer has lent and the consumer has not
    /// let go of takes at most [`Limits::bytes`], beside the ring.
    ///
    /// [`ReserveError::Full`] says that as much is on loan; wait by
    /// [`wait_for_loan`](Self::wait_for_loan).
    pub fn loan(&mut self, len: usize) -> Result<LocalArc<Loan>, ReserveError> {
        if !self.would_fit(len) {
            return Err(ReserveError::TooLarge {
                len,
                limit: self.max_len(),
            });
        }
        let ceiling = self.ceiling;
        let shelf = self
            .shelf
            .get_or_insert_with(|| LocalArc::new(Shelf::new(&self.hold, ceiling)));
        shelf.lend(len, &self.hold)
    }

    /// Asks for a wake-up when memory of `len` bytes can be lent; true if it cannot be now, and the
    /// caller may sleep. The wake-up comes through its own side's ready slots, as for space.
    pub fn wait_for_loan(&self, len: usize) -> bool {
        self.shelf.as_ref().is_some_and(|shelf| shelf.wait_for(len))
    }

    /// Whether anything may lie in a loan of this producer that its borrower still has.
    #[inline]
    pub fn lends(&self) -> bool {
        self.shelf.as_ref().is_some_and(|shelf| shelf.lends())
    }

    /// Where these bytes lie in a loan of this producer, if all of them do: what a frame can name
    /// instead of holding them.
    pub fn part(&self, start: *const u8, len: usize) -> Option<Part> {
        self.shelf.as_ref()?.part(start.addr(), len)
    }

    /// Asks for a wake-up when the consumer releases any space, whether there is space or not.
    pub fn watch_releases(&mut self) -> Result<(), RingCorrupted> {
        self.base.header().waiting.store(1, Ordering::Relaxed);
        // As in `wait_until`.
        full_fence();
        self.refresh_released()
    }

    /// Takes back the request for a wake-up.
    pub fn stop_waiting(&mut self) {
        self.base.header().waiting.store(0, Ordering::Relaxed);
    }

    fn wait_until(&mut self, enough: impl Fn(&Producer) -> bool) -> Result<bool, RingCorrupted> {
        self.base.header().waiting.store(1, Ordering::Relaxed);
        // Orders the flag before the look: the consumer publishes, fences, looks at the flag, so
        // that one of the two sees what the other wrote.
        full_fence();
        let seen = self.refresh_released().and_then(|()| self.refresh_head());
        if seen.is_ok() && !enough(self) {
            return Ok(true);
        }
        self.stop_waiting();
        seen.map(|()| false)
    }

    fn has_room(&self, need: u64) -> bool {
        self.span(need).is_some() || (self.ring.capacity < self.ceiling && !self.stuck)
    }

    #[inline]
    fn events_left(&self) -> u64 {
        u64::from(self.limits.events).saturating_sub(self.committed - self.released)
    }

    /// Where a frame of `need` bytes goes, by what is known of the consumer.
    #[inline]
    fn span(&self, need: u64) -> Option<Span> {
        // What is in use is at most the capacity without the room for a move: `head` is checked
        // to be a position that this side has been at, and it never goes back.
        let usable = self.ring.capacity - (self.tail - self.head) - MOVED_ROOM;
        let to_end = self.ring.until_end(self.tail);
        let here = usable.min(to_end);
        if need <= here {
            Some(Span {
                start: self.tail,
                room: here.min(self.longest) - HEADER,
            })
        } else if usable > to_end && need <= usable - to_end {
            Some(Span {
                start: self.tail + to_end,
                room: (usable - to_end).min(self.longest) - HEADER,
            })
        } else {
            None
        }
    }

    /// The consumer may have gone on; otherwise the ring grows, if it may.
    #[cold]
    fn make_room(&mut self, len: usize, need: u64) -> Result<Span, ReserveError> {
        // Said of every message of this length, also of one that would fit just now by chance.
        if need > self.longest {
            return Err(ReserveError::TooLarge {
                len,
                limit: self.max_len(),
            });
        }
        self.refresh_head()?;
        if let Some(span) = self.span(need) {
            return Ok(span);
        }
        let patient = need <= longest_frame(self.ring.capacity);
        match self.grow(need) {
            Ok(true) => Ok(self.span(need).expect("a ring is grown to fit")),
            Ok(false) => Err(ReserveError::Full(Full::Bytes)),
            // What fits an empty ring can wait for that.
            Err(_) if patient => Err(ReserveError::Full(Full::Bytes)),
            Err(error) => Err(ReserveError::NoMemory(error)),
        }
    }

    /// Moves to a larger ring; false if this one is as large as may be.
    fn grow(&mut self, need: u64) -> io::Result<bool> {
        self.free_left();
        let mut least = self.ring.capacity * 2;
        while longest_frame(least) < need {
            least *= 2;
        }
        if least > self.ceiling {
            return Ok(false);
        }
        let frames = need.saturating_mul(FRAMES).next_power_of_two();
        let wanted = (self.ring.capacity * GROWTH)
            .min(LARGE)
            .max(frames)
            .min(self.ceiling)
            .max(least);
        let block = self
            .allocate(wanted, least)
            .inspect_err(|_| self.stuck = true)?;
        self.stuck = false;
        self.move_to(block);
        Ok(true)
    }

    /// A block of the wanted capacity, or of what can be had.
    fn allocate(&self, wanted: u64, least: u64) -> io::Result<Block> {
        let heap = &self.hold.region.heap;
        self.hold.region.reclaim();
        let mut capacity = wanted;
        loop {
            match heap.allocate(capacity) {
                Err(_) if capacity > least => capacity /= 2,
                done => return done,
            }
        }
    }

    fn move_to(&mut self, block: Block) {
        let to_end = self.ring.until_end(self.tail);
        self.hold
            .track_ring(&self.ring, self.tail, to_end.min(MOVED_ROOM), true);
        if to_end < HEADER + MOVED_PAYLOAD {
            self.pad(to_end);
            self.tail += to_end;
        }
        let at = self.ring.at(self.tail);
        // SAFETY: there is always room for a moved frame and its padding after the last frame, and
        // it is still the producer's.
        unsafe {
            FrameHeader::new(MOVED_PAYLOAD as u32, MOVED, false).write(at);
            let payload = at.add(HEADER as usize).cast::<u64>();
            payload.write_volatile(block.offset as u64);
            payload.add(1).write_volatile(block.capacity);
        }
        self.untold |= self.tail != self.published;
        self.tail += HEADER + MOVED_PAYLOAD;
        self.publish_tail();
        self.left.extend(self.block.replace(block));
        self.ring = self.hold.region.heap.ring(block);
        (self.tail, self.published, self.head) = (0, 0, 0);
    }

    /// Fills the rest of the ring, `to_end` bytes from the tail on.
    fn pad(&mut self, to_end: u64) {
        let header = FrameHeader::new((to_end - HEADER) as u32, PADDING, false);
        // SAFETY: positions are multiples of eight, so that a header always fits before the end;
        // what lies between the tail and the head is the producer's.
        unsafe { header.write(self.ring.at(self.tail)) };
    }

    #[inline]
    fn publish_tail(&mut self) {
        // Everything written to the frames happens before a consumer sees this tail.
        self.ring
            .header()
            .producer
            .tail
            .store(self.tail, Ordering::Release);
        self.published = self.tail;
        let counters = &self.base.header().producer;
        counters.events.store(self.committed, Ordering::Relaxed);
        counters.bytes.store(self.bytes, Ordering::Relaxed);
    }

    /// Gives back the blocks that the consumer has left as well.
    #[cold]
    fn free_left(&mut self) {
        let heap = &self.hold.region.heap;
        self.left
            .extract_if(.., |block| heap.is_retired(*block))
            .for_each(|block| heap.free(block));
    }

    fn refresh_released(&mut self) -> Result<(), RingCorrupted> {
        let released = self.base.header().consumer.released.load(Ordering::Acquire);
        if !(self.released..=self.committed).contains(&released) {
            return Err(RingCorrupted::new(
                "events were released that were never sent",
            ));
        }
        self.released = released;
        Ok(())
    }

    fn refresh_head(&mut self) -> Result<(), RingCorrupted> {
        // The consumer is done with everything before the head that is seen here.
        let head = self.ring.header().consumer.head.load(Ordering::Acquire);
        if !(self.head..=self.published).contains(&head) || !head.is_multiple_of(HEADER) {
            return Err(RingCorrupted::new("space was released that was never used"));
        }
        self.head = head;
        Ok(())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let region = &self.hold.region;
        region.close_counters(self.hold.slot);
        if let Some(shelf) = self.shelf.take() {
            shelf.close();
        }
        for block in self.left.drain(..).chain(self.block.take()) {
            region.heap.abandon(block, Until::Retired);
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("slot", &self.hold.slot)
            .field("capacity", &self.ring.capacity)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
struct Span {
    /// Where the frame begins: at the tail, or at the beginning of the ring.
    start: u64,
    /// How many bytes of payload fit.
    room: u64,
}
