//! Memory of a ring, or of a loan, that outlives its turn: what a zero-copy read holds on to.
//!
//! The frame is done with for the order of things; its bytes stay until the lease is dropped, by
//! whichever thread, in whichever order.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc as LocalArc;
use std::sync::atomic::{AtomicU64 as LocalU64, AtomicUsize as LocalUsize};

use super::loan_table::Borrowed;
use crate::region::{RingMemory, SlotHold};
use crate::sync::{Arc, AtomicU32, Ordering};

/// A payload that stays where it is until this is dropped.
///
/// The other process could still write there if it means to: what is seen is then wrong, as the
/// payload could have been to begin with.
pub struct Lease {
    payload: NonNull<u8>,
    len: usize,
    book: LocalArc<Book>,
    /// Last, so that a ring's block is retired after everything else was said.
    claim: Claim,
}

/// What a lease keeps from being used again.
enum Claim {
    /// Space in a ring: `done` is set when it may be.
    Space {
        done: Arc<AtomicU32>,
        _ring: Arc<RingHold>,
    },
    /// A block on loan.
    Block(Borrowed),
}

// SAFETY: a lease is a read-only view of shared memory that its book keeps mapped; what it does on
// drop is atomic.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    /// A lease of `len` bytes at `payload`, in a ring that `ring` keeps.
    pub(super) fn of_space(
        payload: NonNull<u8>,
        len: usize,
        done: Arc<AtomicU32>,
        book: LocalArc<Book>,
        ring: Arc<RingHold>,
    ) -> Self {
        Self::new(payload, len, book, Claim::Space { done, _ring: ring })
    }

    /// A lease of all that was borrowed.
    pub(super) fn of_block(borrowed: Borrowed, book: LocalArc<Book>) -> Self {
        Self::new(borrowed.payload, borrowed.len, book, Claim::Block(borrowed))
    }

    fn new(payload: NonNull<u8>, len: usize, book: LocalArc<Book>, claim: Claim) -> Self {
        book.sum(&claim).fetch_add(len as u64, Ordering::Relaxed);
        book.count.fetch_add(1, Ordering::Relaxed);
        Lease {
            payload,
            len,
            book,
            claim,
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the consumer checked that these bytes lie in the ring, or in the heap, and what
        // they lie in is not given back before this is dropped; the book keeps the mapping.
        unsafe { std::slice::from_raw_parts(self.payload.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Book { count, hold, .. } = &*self.book;
        hold.track(self.payload, self.len, false);
        let sum = self.book.sum(&self.claim);
        sum.fetch_sub(self.len as u64, Ordering::Relaxed);
        count.fetch_sub(1, Ordering::Relaxed);
        match &self.claim {
            Claim::Space { done, .. } => {
                done.store(1, Ordering::Release);
                // Only the consumer can pass the space on, and it may be waiting for nothing but
                // this.
                hold.region.notify_self(hold.slot);
            }
            Claim::Block(borrowed) => borrowed.give_back(hold),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.len)
    }
}

/// What a consumer has given away.
#[derive(Debug)]
pub(super) struct Book {
    /// Bytes of its ring.
    pub bytes: LocalU64,
    /// Bytes of loans.
    pub borrowed: LocalU64,
    pub count: LocalUsize,
    pub hold: LocalArc<SlotHold>,
}

impl Book {
    pub(super) fn new(hold: LocalArc<SlotHold>) -> Self {
        Book {
            bytes: LocalU64::new(0),
            borrowed: LocalU64::new(0),
            count: LocalUsize::new(0),
            hold,
        }
    }

    /// Where a lease is counted.
    fn sum(&self, claim: &Claim) -> &LocalU64 {
        match claim {
            Claim::Space { .. } => &self.bytes,
            Claim::Block(_) => &self.borrowed,
        }
    }
}

/// Keeps one ring of a slot readable; the last to go tells the producer that it may be reused.
pub(super) struct RingHold {
    ring: RingMemory,
    /// Rings in the slot itself are never reused while the slot is held.
    in_heap: bool,
    _slot: LocalArc<SlotHold>,
}

// SAFETY: `ring` points into the mapping that the slot's link keeps alive, and only its atomics
// are reached through it.
unsafe impl Send for RingHold {}
// SAFETY: as above.
unsafe impl Sync for RingHold {}

impl RingHold {
    pub(super) fn new(ring: RingMemory, in_heap: bool, slot: LocalArc<SlotHold>) -> Self {
        RingHold {
            ring,
            in_heap,
            _slot: slot,
        }
    }
}

impl Drop for RingHold {
    fn drop(&mut self) {
        if self.in_heap {
            self.ring
                .header()
                .consumer
                .retired
                .store(1, Ordering::Release);
        }
    }
}
