//! Room that was reserved: written in place, then committed as a message, or given back.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::super::frame::{FIRST_KIND, FrameHeader, HEADER, frame_len};
use super::super::loan::Part;
use super::super::loan_table::{table_len, write_table};
use super::{Producer, Span};

/// How many bytes ahead of what is written lines are asked for: a few small events.
const AHEAD: u64 = 256;

/// Room in a ring that is being written to. Dropping it without [`commit`](Self::commit) gives the
/// room back.
pub struct Reservation<'a> {
    pub(super) producer: &'a mut Producer,
    pub(super) span: Span,
    pub(super) counted: bool,
}

impl Reservation<'_> {
    /// Makes a message of the first `used` bytes, to be seen after the next
    /// [`publish`](Producer::publish).
    ///
    /// # Panics
    ///
    /// If `used` is more than there is, or `kind` is one of the ring's own (below
    /// [`FIRST_KIND`]).
    #[inline]
    pub fn commit(self, kind: u8, used: usize) {
        self.commit_as(kind, used, false);
    }

    /// The same, for a message that names parts of loans: the consumer can
    /// [`borrow`](crate::Consumer::borrow) them, in this order. It takes [`lending_len`] bytes.
    ///
    /// # Panics
    ///
    /// If the message with its table of loans is more than there is, or as for
    /// [`commit`](Self::commit).
    pub fn commit_lending(mut self, kind: u8, used: usize, parts: &[Part]) {
        assert!(used as u64 <= self.span.room, "more used than reserved");
        let whole = lending_len(used, parts.len());
        write_table(&mut self[..whole], used, parts);
        // Before a consumer can say that it is done with them.
        parts.iter().for_each(Part::count);
        self.producer.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.commit_as(kind, whole, !parts.is_empty());
    }

    #[inline]
    fn commit_as(self, kind: u8, used: usize, lends: bool) {
        assert!(used as u64 <= self.span.room, "more used than reserved");
        assert!(kind >= FIRST_KIND, "kinds 0 and 1 are the ring's own");
        let Span { start, .. } = self.span;
        let producer = self.producer;
        if start != producer.tail {
            producer.pad(start - producer.tail);
        }
        let header = FrameHeader {
            lends,
            ..FrameHeader::new(used as u32, kind, self.counted)
        };
        // SAFETY: the span begins with room for a header, and is the producer's until published.
        unsafe { header.write(producer.ring.at(start)) };
        producer.tail = start + frame_len(used as u64);
        producer.ring.will_write(producer.tail + AHEAD);
        producer.committed += u64::from(self.counted);
        producer.bytes += used as u64;
    }

    fn payload(&self) -> NonNull<u8> {
        // SAFETY: a span has a header's length before its payload, both inside the ring.
        unsafe { self.producer.ring.at(self.span.start).add(HEADER as usize) }
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the span is `room` bytes inside the ring that the consumer is done with and has
        // not been given; shared memory always holds some value.
        unsafe { std::slice::from_raw_parts(self.payload().as_ptr(), self.span.room as usize) }
    }
}

impl DerefMut for Reservation<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; and there is one reservation of one producer.
        unsafe { std::slice::from_raw_parts_mut(self.payload().as_ptr(), self.span.room as usize) }
    }
}

/// How many bytes a message of `used` bytes takes that names `parts` parts of loans.
pub fn lending_len(used: usize, parts: usize) -> usize {
    match parts {
        0 => used,
        _ => used.next_multiple_of(8) + table_len(parts),
    }
}

impl fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.span.room)
    }
}
