//! Recent short dict keys, so that an equal key becomes the same `str` object again.
//!
//! Most events of a stream have the same few keys. Reusing an object saves the time to make it and to
//! hash it.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::error::Fault;
use super::utf8;
use crate::ffi::objects;

/// Keys longer than this in UTF-8 are not kept.
pub const MAX_LEN: usize = 31;

/// The size of the table, a power of two. A key has exactly one slot.
const SLOTS: usize = 256;

struct Slot {
    len: u8,
    ends: Ends,
    text: Py<PyString>,
}

/// A table of recent keys.
pub struct RecentKeys {
    slots: Box<[Option<Slot>; SLOTS]>,
}

impl Default for RecentKeys {
    fn default() -> Self {
        Self {
            slots: Box::new([const { None }; SLOTS]),
        }
    }
}

impl RecentKeys {
    /// The `str` for `bytes`, of at most [`MAX_LEN`], kept or new.
    #[inline]
    pub fn get<'py>(
        &mut self,
        py: Python<'py>,
        bytes: &[u8],
    ) -> Result<Bound<'py, PyString>, Fault> {
        let ends = Ends::of(bytes);
        let slot = &mut self.slots[ends.place(bytes.len())];
        if let Some(slot) = slot
            && usize::from(slot.len) == bytes.len()
            && slot.ends == ends
            && (bytes.len() <= Ends::COVER || objects::utf8(slot.text.bind(py)) == Some(bytes))
        {
            return Ok(slot.text.bind(py).clone());
        }
        let text = utf8::text(py, bytes)?;
        // Computed from the text itself: another process may have changed `bytes` since the lookup.
        if let Some(kept) = objects::utf8(&text) {
            *slot = Some(Slot {
                len: kept.len() as u8,
                ends: Ends::of(kept),
                text: text.clone().unbind(),
            });
        }
        Ok(text)
    }
}

/// The first and the last bytes of a key.
#[derive(PartialEq, Eq)]
struct Ends(u64, u64);

impl Ends {
    /// Its ends and its length identify a key of at most this many bytes. Comparing them costs less
    /// than a call that compares bytes.
    const COVER: usize = 16;

    #[inline(always)]
    fn of(bytes: &[u8]) -> Self {
        if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            Self(u64::from_le_bytes(*first), u64::from_le_bytes(*last))
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            let [first, last] = [first, last].map(|word| u32::from_le_bytes(*word).into());
            Self(first, last)
        } else {
            let fold = |word, &byte| word << 8 | u64::from(byte);
            Self(bytes.iter().fold(0, fold), 0)
        }
    }

    /// A number below [`SLOTS`].
    #[inline(always)]
    fn place(&self, len: usize) -> usize {
        let words = self.0 ^ self.1.rotate_left(29) ^ (len as u64) << 59;
        let mixed = words.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 56) as usize % SLOTS
    }
}
