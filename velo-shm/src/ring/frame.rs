//! What a message looks like in a ring: eight bytes of header, the payload, up to seven of nothing.
//!
//! Headers are written and read as one word, so that a check and the use that follows it see the
//! same value.

use std::ptr::NonNull;

use crate::error::RingCorrupted;

/// Bytes of a frame before its payload. Frames begin at multiples of it.
pub(super) const HEADER: u64 = 8;

/// Fills the end of a ring that the next frame does not fit into.
pub(super) const PADDING: u8 = 0;
/// The last frame of a ring: it goes on elsewhere.
pub(super) const MOVED: u8 = 1;
/// Kinds below this are the ring's own; the rest are the caller's, and mean nothing here.
pub const FIRST_KIND: u8 = 2;

/// Payload of a moved frame: where the block is and how many bytes of data it has.
pub(super) const MOVED_PAYLOAD: u64 = 16;
/// Room that is always kept for a moved frame: itself, and the most padding that can be before it.
pub(super) const MOVED_ROOM: u64 = (HEADER + MOVED_PAYLOAD) + MOVED_PAYLOAD;

const COUNTED: u8 = 1;
const LENDS: u8 = 2;

/// How many bytes a payload takes in the ring.
#[inline]
pub(super) fn frame_len(payload: u64) -> u64 {
    HEADER + (payload.saturating_add(7) & !7).min(u64::MAX - 2 * HEADER)
}

/// The longest frame that fits a ring of this capacity whenever it is empty, wherever it begins.
#[inline]
pub(super) fn longest_frame(capacity: u64) -> u64 {
    capacity / 2 - MOVED_ROOM
}

/// A frame's header, in private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub len: u32,
    pub kind: u8,
    pub counted: bool,
    /// Its payload ends with a table of loans, see `ring/loan.rs`.
    pub lends: bool,
}

impl FrameHeader {
    #[inline]
    pub(super) fn new(len: u32, kind: u8, counted: bool) -> Self {
        FrameHeader {
            len,
            kind,
            counted,
            lends: false,
        }
    }

    #[inline]
    fn to_word(self) -> u64 {
        u64::from(self.len)
            | u64::from(self.kind) << 32
            | u64::from(if self.counted { COUNTED } else { 0 }) << 40
            | u64::from(if self.lends { LENDS } else { 0 }) << 40
    }

    #[inline]
    fn from_word(word: u64) -> Result<Self, RingCorrupted> {
        if word >> 42 != 0 {
            return Err(RingCorrupted::new("a frame has flags that do not exist"));
        }
        Ok(FrameHeader {
            len: word as u32,
            kind: (word >> 32) as u8,
            counted: (word >> 40) as u8 & COUNTED != 0,
            lends: (word >> 40) as u8 & LENDS != 0,
        })
    }

    /// # Safety
    ///
    /// `to` is a multiple of eight, in ring memory that is the producer's at this time.
    #[inline]
    pub(super) unsafe fn write(self, to: NonNull<u8>) {
        // SAFETY: the caller's promise. Volatile, since it is read in another process.
        unsafe { to.cast::<u64>().write_volatile(self.to_word()) }
    }

    /// # Safety
    ///
    /// `from` is a multiple of eight, in ring memory.
    #[inline]
    pub(super) unsafe fn read(from: NonNull<u8>) -> Result<Self, RingCorrupted> {
        // SAFETY: the caller's promise. Volatile, so that a side that writes to it meanwhile
        // cannot change it between a check and a use.
        Self::from_word(unsafe { from.cast::<u64>().read_volatile() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_word() {
        for header in [
            FrameHeader::new(0, PADDING, false),
            FrameHeader::new(u32::MAX, u8::MAX, true),
            FrameHeader::new(17, FIRST_KIND, false),
            FrameHeader {
                lends: true,
                ..FrameHeader::new(40, FIRST_KIND, true)
            },
        ] {
            assert_eq!(FrameHeader::from_word(header.to_word()), Ok(header));
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(FrameHeader::from_word(1 << 42).is_err());
        assert!(FrameHeader::from_word(1 << 63).is_err());
    }

    #[test]
    fn frame_lengths_are_multiples_of_eight_and_never_overflow() {
        assert_eq!(frame_len(0), 8);
        assert_eq!(frame_len(1), 16);
        assert_eq!(frame_len(8), 16);
        assert_eq!(frame_len(9), 24);
        assert!(frame_len(u64::MAX) > u64::MAX / 2);
    }
}
