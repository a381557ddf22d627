//! Shared by the targets: a segment whose bounds a sanitizer knows, and values that are nearly
//! valid.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use velo_shm::{Bells, Doorbell, Link, LinkError, LinkSpec, Segment, Side};

pub mod python;

const PAGE: usize = 4096;

/// A segment on the heap of this process: the memory before and behind it is poisoned, so that a
/// sanitizer sees each access outside it.
#[derive(Debug)]
pub struct HeapSegment {
    base: NonNull<u8>,
    len: usize,
}

impl HeapSegment {
    /// `len` zeros.
    pub fn new(len: usize) -> Arc<Self> {
        let layout = Self::layout(len);
        // SAFETY: the length is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        Arc::new(HeapSegment { base, len })
    }

    fn layout(len: usize) -> Layout {
        assert!(len > 0);
        Layout::from_size_align(len, PAGE).expect("a segment that a fuzz target can have")
    }

    /// The eight bytes at an offset, or the last ones.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        let offset = (offset & !7).min(self.len - 8);
        // SAFETY: inside the segment and aligned, by the line above; and everything that is written
        // through shared references is atomic, as far as this crate goes. The code under test calls
        // the other side's writes what they are.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Writes bytes where they fit, as another process would.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            if offset + index < self.len {
                // SAFETY: inside the segment; volatile, as the other side does not expect it.
                unsafe { self.base.as_ptr().add(offset + index).write_volatile(byte) };
            }
        }
    }
}

impl Drop for HeapSegment {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) };
    }
}

// SAFETY: it owns plain memory, and gives out its address.
unsafe impl Send for HeapSegment {}
// SAFETY: as above.
unsafe impl Sync for HeapSegment {}

// SAFETY: allocated once, aligned to a page, readable and writable until it is dropped.
unsafe impl Segment for HeapSegment {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len, "committed outside of the segment");
        Ok(())
    }

    fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len, "discarded outside of the segment");
        // SAFETY: inside the segment, by the line above; the caller owns the bytes that it discards.
        unsafe { self.base.add(offset).write_bytes(0, len) };
        Ok(())
    }
}

/// A number as a peer might write it: any, or nearly the right one.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Value {
    Any(u64),
    /// The present value, and a little more or less.
    Near(i8),
    /// A multiple of eight.
    Position(u16),
    /// A frame's header.
    Frame {
        len: u16,
        kind: u8,
        counted: bool,
    },
    /// All bits but a few.
    High(u8),
}

impl Value {
    /// The number to write where `old` is.
    pub fn from(self, old: u64) -> u64 {
        match self {
            Value::Any(value) => value,
            Value::Near(by) => old.wrapping_add_signed(by.into()),
            Value::Position(position) => u64::from(position) * 8,
            Value::Frame { len, kind, counted } => {
                u64::from(len) | u64::from(kind % 6) << 32 | u64::from(counted) << 40
            }
            Value::High(less) => u64::MAX - u64::from(less),
        }
    }
}

/// Both ends of the link in a segment, in one process.
pub fn attach(segment: &Arc<HeapSegment>) -> Result<[Link; 2], LinkError> {
    let bells = || Doorbell::create().expect("a doorbell");
    let (a, b) = (bells(), bells());
    let copy = |bell: &Doorbell| bell.try_clone().expect("a copy of a doorbell");
    let client = Bells {
        mine: copy(&a),
        theirs: copy(&b),
    };
    let worker = Bells { mine: b, theirs: a };
    Ok([
        Link::attach(segment.clone(), Side::Client, client)?,
        Link::attach(segment.clone(), Side::Worker, worker)?,
    ])
}

/// A fresh link.
pub fn link(spec: &LinkSpec) -> (Arc<HeapSegment>, [Link; 2]) {
    let segment = HeapSegment::new(spec.segment_len());
    velo_shm::initialise(&*segment, spec).expect("a link that fits its segment");
    let ends = attach(&segment).expect("a link that was just made");
    (segment, ends)
}

/// Stores numbers at random places of a segment, as fast as possible, for some rounds.
pub fn scribble(segment: &HeapSegment, seed: u64, from: usize, bytes: usize, rounds: u32) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    for _ in 0..rounds {
        let word = segment.word(from + next() as usize % bytes);
        let value = match next() % 5 {
            0 => next(),
            1 => (next() % 1024) & !7,
            2 => u64::MAX - next() % 16,
            3 => next() % 64 | (next() % 6) << 32 | (next() & 1) << 40,
            _ => word
                .load(Ordering::Relaxed)
                .wrapping_add(next() % 17)
                .wrapping_sub(8),
        };
        word.store(value, Ordering::SeqCst);
    }
}
