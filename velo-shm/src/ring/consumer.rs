//! The reading half of a ring. It cannot write, never waits and never wakes anyone; everything it
//! reads is checked before it is used.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc as LocalArc;

use super::frame::{FIRST_KIND, FrameHeader, HEADER, MOVED, MOVED_PAYLOAD, PADDING, frame_len};
use super::lease::{Book, Lease, RingHold};
use super::limits::Limits;
use super::loan_table::{Borrowed, read_table};
use crate::error::RingCorrupted;
use crate::layout::HeapRange;
use crate::region::heap::follow;
use crate::region::{RingMemory, SlotHold, take_flag};
use crate::side::Side;
use crate::sync::{Arc, AtomicU32, Ordering, full_fence};
use crate::ticks;

/// A message, where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the producer committed it as.
    pub kind: u8,
    /// Whether it counts as an event.
    pub counted: bool,
    /// Whether it names loans, to be [borrowed](Consumer::borrow).
    pub lends: bool,
    /// Its bytes, aligned to eight.
    pub payload: &'a [u8],
}

/// The frame that was peeked at and is not done with.
#[derive(Clone, Copy)]
struct Peeked {
    header: FrameHeader,
    end: u64,
}

/// Space that was leased and not yet passed on.
struct Leased {
    start: u64,
    done: Arc<AtomicU32>,
}

/// Reads frames out of one ring.
pub struct Consumer {
    ring: RingMemory,
    /// Where the next frame begins.
    position: u64,
    /// Everything before this is known to be published.
    tail: u64,
    peeked: Option<Peeked>,
    /// The loans that the peeked frame names and that were not borrowed.
    lent: Vec<Borrowed>,
    /// The space and the counted events that were published to the producer.
    head: u64,
    told: u64,
    /// Counted events released.
    released: u64,
    /// When the first of them that the producer was not told of was released.
    first_at: u64,
    /// Leases of this ring, oldest first: the head cannot pass the first that is not done.
    leases: VecDeque<Leased>,
    broken: Option<RingCorrupted>,
    ceiling: u64,
    /// The slot's own ring: events are counted there, wherever the ring has moved to.
    base: RingMemory,
    heap: HeapRange,
    book: LocalArc<Book>,
    ring_hold: Arc<RingHold>,
    hold: LocalArc<SlotHold>,
}

// SAFETY: the pointers lead into the mapping that `hold` keeps alive, which is the same from every
// thread; a consumer is not Clone, and everything that moves on takes it by unique reference.
unsafe impl Send for Consumer {}
// SAFETY: through a shared reference only its own numbers are read.
unsafe impl Sync for Consumer {}

/// How many events are skipped in one go at most.
const SKIPS: usize = 1 << 20;

impl Consumer {
    pub(crate) fn new(hold: LocalArc<SlotHold>, limits: Limits) -> Self {
        let side = hold.region.side;
        Consumer::on_behalf(hold, side, limits)
    }

    /// Of the ring that `side` reads.
    pub(super) fn on_behalf(hold: LocalArc<SlotHold>, side: Side, limits: Limits) -> Self {
        let ring = hold.region.ring_memory(hold.slot, side);
        Consumer {
            ring,
            position: 0,
            tail: 0,
            peeked: None,
            lent: Vec::new(),
            head: 0,
            told: 0,
            released: 0,
            first_at: 0,
            leases: VecDeque::new(),
            broken: None,
            ceiling: limits.ceiling(&hold.region.geometry),
            base: ring,
            heap: hold.region.geometry.heap(side),
            book: LocalArc::new(Book::new(hold.clone())),
            ring_hold: Arc::new(RingHold::new(ring, false, hold.clone())),
            hold,
        }
    }

    /// The next frame, if there is one. Peeking again gives the same frame, until it is released
    /// or leased. A ring that was found broken stays so.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<Frame<'_>>, RingCorrupted> {
        let peeked = match self.peeked {
            Some(peeked) => peeked,
            None => match self.advance() {
                Ok(Some(peeked)) => peeked,
                Ok(None) => return Ok(None),
                Err(broken) => return Err(self.give_up(broken)),
            },
        };
        let FrameHeader {
            len,
            kind,
            counted,
            lends,
        } = peeked.header;
        self.hold
            .track_ring(&self.ring, self.position, HEADER + u64::from(len), false);
        // SAFETY: `advance` checked that the frame lies between here and the end of the ring, and
        // it was published; the producer does not write there before it is released.
        let payload = unsafe {
            let start = self.ring.at(self.position).add(HEADER as usize);
            std::slice::from_raw_parts(start.as_ptr(), len as usize)
        };
        Ok(Some(Frame {
            kind,
            counted,
            lends,
            payload,
        }))
    }

    /// Says that the peeked frame is done with. Nothing happens if there is none.
    #[inline]
    pub fn release(&mut self) {
        if let Some(peeked) = self.peeked.take() {
            let len = peeked.end - self.position;
            self.hold.track_ring(&self.ring, self.position, len, false);
            self.position = peeked.end;
            self.count(peeked.header);
            if peeked.header.lends {
                self.give_back();
            }
        }
    }

    /// Counts a frame that is released. The time is read for the first one that the producer was not told
    /// of: events that come one at a time have their own time, and many at once cost no more.
    #[inline]
    fn count(&mut self, frame: FrameHeader) {
        if frame.counted {
            if self.released == self.told {
                self.first_at = ticks::shared_now();
            }
            self.released += 1;
        }
    }

    /// Takes the loans that the peeked frame names out of it, in the order in which they were named.
    /// Each is kept until its lease is dropped, whatever becomes of the frame. Those that were not
    /// taken are given back as the frame is released or leased.
    pub fn borrow(&mut self) -> Vec<Lease> {
        self.lent
            .drain(..)
            .map(|lent| Lease::of_block(lent, self.book.clone()))
            .collect()
    }

    #[cold]
    fn give_back(&mut self) {
        for lent in self.lent.drain(..) {
            lent.give_back(&self.hold);
        }
    }

    /// Says that the peeked frame had its turn, and keeps its payload where it is until the lease
    /// is dropped.
    ///
    /// # Panics
    ///
    /// If no frame is peeked at.
    pub fn lease(&mut self) -> Lease {
        let peeked = self
            .peeked
            .take()
            .expect("a frame is peeked at before it is leased");
        let done = Arc::new(AtomicU32::new(0));
        self.leases.push_back(Leased {
            start: self.position,
            done: done.clone(),
        });
        // SAFETY: `advance` checked that the frame lies between here and the end of the ring.
        let payload = unsafe { self.ring.at(self.position).add(HEADER as usize) };
        self.position = peeked.end;
        self.count(peeked.header);
        let len = peeked.header.len as usize;
        if peeked.header.lends {
            self.give_back();
        }
        Lease::of_space(
            payload,
            len,
            done,
            self.book.clone(),
            self.ring_hold.clone(),
        )
    }

    /// Releases the counted events at the front that the producer does not want any more
    /// ([`Producer::want_from`](super::Producer::want_from)).
    pub fn skip_unwanted(&mut self) -> Result<(), RingCorrupted> {
        let wanted = self.base.header().producer.wanted.load(Ordering::Acquire);
        let before = self.released;
        // No more than were ever queued at a time; a producer that goes on and on has to wait.
        for _ in 0..SKIPS {
            if self.released >= wanted || !self.peek()?.is_some_and(|frame| frame.counted) {
                break;
            }
            self.release();
        }
        if self.released > before {
            let skipped = &self.base.header().consumer.skipped;
            // Only this side writes it; the other one takes it for no more than a number.
            let sum = skipped.load(Ordering::Relaxed);
            skipped.store(sum.wrapping_add(self.released - before), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether a lease can do no harm: false once the ring is as large as it may be, where a lease
    /// that is kept for long would in the end stop the stream. Copy then.
    pub fn may_lease(&self) -> bool {
        self.ring.capacity < self.ceiling
    }

    /// Tells the producer what was released, and what space dropped leases have left. True if it
    /// waits for that: the caller then notifies the link.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let head = if self.leases.is_empty() {
            self.position
        } else {
            self.sweep()
        };
        if head == self.head && self.released == self.told {
            return false;
        }
        let base = self.base.header();
        // The end of the input is released too, long after the last event.
        if self.released != self.told {
            let last_at = match self.released - self.told {
                1 => self.first_at,
                _ => ticks::shared_now(),
            };
            base.consumer.released_at.store(last_at, Ordering::Relaxed);
        }
        base.consumer
            .released
            .store(self.released, Ordering::Release);
        // Everything read from the frames happens before a producer sees this head.
        self.ring
            .header()
            .consumer
            .head
            .store(head, Ordering::Release);
        self.head = head;
        self.told = self.released;
        // Orders both before the look at the flag; see `Producer::wait_for_space`.
        full_fence();
        take_flag(&base.waiting)
    }

    /// Writes the released position again, in case another process wrote over it: the producer
    /// would wait for room for ever. For now and then.
    pub fn restate(&self) {
        let head = &self.ring.header().consumer.head;
        if head.load(Ordering::Relaxed) != self.head {
            head.store(self.head, Ordering::Release);
        }
        let released = &self.base.header().consumer.released;
        if released.load(Ordering::Relaxed) != self.told {
            released.store(self.told, Ordering::Release);
        }
    }

    /// Whether there may be a frame to peek at; cheap. It can be true of a ring that has only moved.
    #[inline]
    pub fn has_data(&mut self) -> bool {
        self.peeked.is_some()
            || self.position != self.tail
            || self.broken.is_some()
            || self.ring.header().producer.tail.load(Ordering::Acquire) != self.position
    }

    /// How many payload bytes of the ring are leased at present.
    pub fn leased_bytes(&self) -> u64 {
        self.book.bytes.load(Ordering::Relaxed)
    }

    /// How many bytes of loans are leased at present.
    pub fn borrowed_bytes(&self) -> u64 {
        self.book.borrowed.load(Ordering::Relaxed)
    }

    /// How many leases there are at present.
    pub fn outstanding_leases(&self) -> usize {
        self.book.count.load(Ordering::Relaxed)
    }

    /// Counted events released so far.
    #[inline]
    pub fn released(&self) -> u64 {
        self.released
    }

    /// How many bytes the ring has at present, as far as it was read.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity
    }

    /// Goes on to the next frame of the caller's, over padding and moves.
    #[inline]
    fn advance(&mut self) -> Result<Option<Peeked>, RingCorrupted> {
        if self.position == self.tail {
            self.refresh_tail()?;
            if self.position == self.tail {
                return Ok(None);
            }
        }
        let (header, end) = self.read_header()?;
        if header.kind >= FIRST_KIND {
            return self.arrive(header, end);
        }
        self.advance_slow(header, end)
    }

    /// A frame of the caller's.
    #[inline]
    fn arrive(
        &mut self,
        mut header: FrameHeader,
        end: u64,
    ) -> Result<Option<Peeked>, RingCorrupted> {
        if header.lends {
            header.len = self.read_loans(header.len)?;
        }
        let peeked = Peeked { header, end };
        self.peeked = Some(peeked);
        Ok(Some(peeked))
    }

    /// Reads what loans the frame at the position names; how long its payload is before that.
    #[cold]
    fn read_loans(&mut self, len: u32) -> Result<u32, RingCorrupted> {
        self.hold
            .track_ring(&self.ring, self.position, HEADER + u64::from(len), false);
        let base = self.hold.region.segment.base();
        // SAFETY: `read_header` checked that the frame lies between here and the end of the ring.
        unsafe {
            let payload = self.ring.at(self.position).add(HEADER as usize);
            read_table(payload, len, base, self.heap, &mut self.lent)
        }
    }

    /// Every round goes to the beginning of a ring or to a larger ring, and no frame of the ring's
    /// own but a moved one may begin a ring: so there are few rounds, whatever is written there.
    #[cold]
    fn advance_slow(
        &mut self,
        mut header: FrameHeader,
        mut end: u64,
    ) -> Result<Option<Peeked>, RingCorrupted> {
        loop {
            match header.kind {
                PADDING => self.skip_padding(end)?,
                MOVED => self.follow_move(header, end)?,
                _ => return self.arrive(header, end),
            }
            if self.position == self.tail {
                self.refresh_tail()?;
                if self.position == self.tail {
                    return Ok(None);
                }
            }
            (header, end) = self.read_header()?;
        }
    }

    /// Reads the header at the position, and where the frame ends if that is possible.
    #[inline]
    fn read_header(&self) -> Result<(FrameHeader, u64), RingCorrupted> {
        self.hold
            .track_ring(&self.ring, self.position, HEADER, false);
        // SAFETY: the position is a multiple of eight, and whatever it is, its index is inside the
        // ring.
        let header = unsafe { FrameHeader::read(self.ring.at(self.position)) }?;
        let len = frame_len(u64::from(header.len));
        if len > self.ring.until_end(self.position) {
            return Err(RingCorrupted::new(
                "a frame goes beyond the end of its ring",
            ));
        }
        if len > self.tail - self.position {
            return Err(RingCorrupted::new("a frame goes beyond what was published"));
        }
        Ok((header, self.position + len))
    }

    /// Whatever is read there next, this ring stays broken.
    #[cold]
    fn give_up(&mut self, broken: RingCorrupted) -> RingCorrupted {
        // With nothing left to read, every later look goes by way of `refresh_tail`.
        self.tail = self.position;
        *self.broken.get_or_insert(broken)
    }

    fn skip_padding(&mut self, end: u64) -> Result<(), RingCorrupted> {
        if self.ring.index(end) != 0 || self.ring.index(self.position) == 0 {
            return Err(RingCorrupted::new(
                "padding lies elsewhere than at the end of a ring",
            ));
        }
        self.position = end;
        Ok(())
    }

    fn follow_move(&mut self, header: FrameHeader, end: u64) -> Result<(), RingCorrupted> {
        if u64::from(header.len) != MOVED_PAYLOAD || end != self.tail {
            return Err(RingCorrupted::new(
                "a moved frame is not the last of its ring",
            ));
        }
        self.hold
            .track_ring(&self.ring, self.position, HEADER + MOVED_PAYLOAD, false);
        // SAFETY: the frame lies inside the ring, and positions are multiples of eight.
        let (offset, capacity) = unsafe {
            let payload = self
                .ring
                .at(self.position)
                .add(HEADER as usize)
                .cast::<u64>();
            (payload.read_volatile(), payload.add(1).read_volatile())
        };
        let base = self.hold.region.segment.base();
        let ring = follow(base, self.heap, offset, capacity)?;
        if ring.capacity <= self.ring.capacity {
            return Err(RingCorrupted::new("a ring moved to one that is not larger"));
        }
        self.ring = ring;
        (self.position, self.tail, self.head) = (0, 0, 0);
        // The space of the ring that was left goes back as a whole, when the last lease of it is
        // dropped and with it the last hold.
        self.leases.clear();
        self.ring_hold = Arc::new(RingHold::new(ring, true, self.hold.clone()));
        Ok(())
    }

    #[inline]
    fn refresh_tail(&mut self) -> Result<(), RingCorrupted> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        // Everything written to the frames before this tail is visible from here on.
        let tail = self.ring.header().producer.tail.load(Ordering::Acquire);
        if tail < self.tail
            || tail - self.tail > self.ring.capacity - (self.tail - self.head)
            || !tail.is_multiple_of(HEADER)
        {
            return Err(RingCorrupted::new("more was published than a ring holds"));
        }
        self.tail = tail;
        Ok(())
    }

    /// How far the space before the position is free, now that some leases may have been dropped.
    #[cold]
    fn sweep(&mut self) -> u64 {
        while let Some(oldest) = self.leases.front() {
            // What was read through the lease happens before its space is passed on.
            if oldest.done.load(Ordering::Acquire) == 0 {
                return oldest.start;
            }
            self.leases.pop_front();
        }
        self.position
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("slot", &self.hold.slot)
            .field("capacity", &self.ring.capacity)
            .field("released", &self.released)
            .field("leases", &self.outstanding_leases())
            .finish_non_exhaustive()
    }
}
