//! What a frame says of loans, and what its reader makes of that.

use std::ptr::NonNull;

use super::loan::Part;
use crate::error::RingCorrupted;
use crate::layout::{HeapRange, PAGE, RingHeader, at};
use crate::region::{SlotHold, take_flag};
use crate::sync::{Ordering, full_fence};

/// One part of a loan: three numbers.
const ENTRY: usize = 24;
/// What a table ends with.
const END: usize = 8;

/// How many bytes a table of `parts` parts takes.
pub(super) fn table_len(parts: usize) -> usize {
    parts * ENTRY + END
}

/// Writes the table of a message of `used` bytes, to the end of its frame.
pub(super) fn write_table(frame: &mut [u8], used: usize, parts: &[Part]) {
    if parts.is_empty() {
        return;
    }
    let start = frame.len() - table_len(parts.len());
    frame[used..start].fill(0);
    let (table, end) = frame[start..].split_at_mut(parts.len() * ENTRY);
    for (entry, part) in table.chunks_exact_mut(ENTRY).zip(parts) {
        let (block, start) = part.origin();
        let numbers = [block, start, part.len()];
        for (place, number) in entry.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&(number as u64).to_ne_bytes());
        }
    }
    end[..4].copy_from_slice(&(used as u32).to_ne_bytes());
    end[4..].copy_from_slice(&(parts.len() as u32).to_ne_bytes());
}

/// A part of a loan, as the consumer found it named by a frame. It is done with once, by
/// [`give_back`](Self::give_back).
pub(super) struct Borrowed {
    pub payload: NonNull<u8>,
    pub len: usize,
    header: NonNull<RingHeader>,
}

// SAFETY: the pointers lead into the mapping of a link, which a consumer, or a lease made of this,
// keeps alive; only atomics are reached through the header.
unsafe impl Send for Borrowed {}
// SAFETY: as above.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    /// The frame that named it is done with.
    pub(super) fn give_back(&self, hold: &SlotHold) {
        hold.track(self.payload, self.len, false);
        // SAFETY: `read_table` checked that the header's page lies in the heap, which `hold` keeps
        // mapped; a ring header is nothing but atomics.
        let header = unsafe { self.header.as_ref() };
        // Everything read from the block happens before a producer sees this count. Also of what
        // other leases of it have read, hence both.
        header.consumer.released.fetch_add(1, Ordering::AcqRel);
        // Orders the count before the look at the flag; see `Shelf::wait_for`.
        full_fence();
        if take_flag(&header.waiting) {
            hold.region.notify(hold.slot);
        }
    }
}

/// Reads the table at the end of a frame's payload, into `lent`; gives how long the message before
/// it is. Every part lies in the heap, whatever is written there.
///
/// # Safety
///
/// `len` bytes at `payload` are ring memory, aligned to eight; the heap is that of the segment at
/// `base`.
pub(super) unsafe fn read_table(
    payload: NonNull<u8>,
    len: u32,
    base: NonNull<u8>,
    heap: HeapRange,
    lent: &mut Vec<Borrowed>,
) -> Result<u32, RingCorrupted> {
    let whole = len as usize;
    let word = |offset: usize| {
        debug_assert!(offset + 8 <= whole && offset.is_multiple_of(8));
        // SAFETY: inside the payload, by the caller's checks below. Volatile, so that a side that
        // writes to it meanwhile cannot change it between a check and a use.
        unsafe { payload.add(offset).cast::<u64>().read_volatile() }
    };
    let wrong = RingCorrupted::new("a frame has a table of loans that cannot be");
    if whole < END || !whole.is_multiple_of(8) {
        return Err(wrong);
    }
    let end = word(whole - END).to_ne_bytes();
    let [used, parts] = [&end[..4], &end[4..]].map(|half| {
        let half: [u8; 4] = half.try_into().expect("half of eight bytes");
        u32::from_ne_bytes(half)
    });
    let room = whole - END;
    if parts == 0 || parts as usize > room / ENTRY {
        return Err(wrong);
    }
    let start = room - parts as usize * ENTRY;
    if used as usize > start || start - used as usize >= 8 {
        return Err(wrong);
    }
    lent.clear();
    for entry in (start..room).step_by(ENTRY) {
        let part = borrow(base, heap, word(entry), word(entry + 8), word(entry + 16));
        lent.push(part.ok_or(RingCorrupted::new(
            "a frame names a loan outside of its heap",
        ))?);
    }
    Ok(used)
}

/// The part of a block that these numbers name, if it lies in the heap.
fn borrow(
    base: NonNull<u8>,
    heap: HeapRange,
    block: u64,
    start: u64,
    len: u64,
) -> Option<Borrowed> {
    let block = usize::try_from(block).ok()?;
    let len = usize::try_from(len).ok()?;
    let data = block
        .checked_add(PAGE)?
        .checked_add(usize::try_from(start).ok()?)?;
    let inside = block >= heap.start && data.checked_add(len)? <= heap.end;
    if !inside || !block.is_multiple_of(PAGE) {
        return None;
    }
    // SAFETY: header page and data lie in the heap, by the check above, which is inside the segment;
    // and the block's offset is aligned to a page.
    let (header, payload) = unsafe { (at(base, block), at(base, data)) };
    Some(Borrowed {
        payload,
        len,
        header,
    })
}
