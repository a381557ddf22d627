//! Short dict keys seen lately, so that the same key becomes the same `str` object again.
//!
//! A stream's events mostly have the same few keys. Reusing the object saves making it and hashing
//! it.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::decode::Fault;
use super::text;

/// Keys longer than this in UTF-8 are not kept.
pub const MAX_LEN: usize = 31;

/// A power of two; a key has one place it may lie in.
const SLOTS: usize = 256;

struct Slot {
    len: u8,
    bytes: [u8; MAX_LEN],
    text: Py<PyString>,
}

/// A table of recent keys.
pub struct Keys {
    slots: Box<[Option<Slot>; SLOTS]>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            slots: Box::new([const { None }; SLOTS]),
        }
    }
}

impl Keys {
    /// The `str` for `bytes`, of at most [`MAX_LEN`], kept or new.
    #[inline]
    pub fn get<'py>(
        &mut self,
        py: Python<'py>,
        bytes: &[u8],
    ) -> Result<Bound<'py, PyString>, Fault> {
        let slot = &mut self.slots[place(bytes)];
        if let Some(slot) = slot
            && slot.bytes[..usize::from(slot.len)] == *bytes
        {
            return Ok(slot.text.bind(py).clone());
        }
        let text = text::str(py, bytes)?;
        let mut kept = [0; MAX_LEN];
        kept[..bytes.len()].copy_from_slice(bytes);
        // Judged by the text itself: `bytes` may have changed since it was made.
        if text
            .to_str()
            .is_ok_and(|text| text.as_bytes() == &kept[..bytes.len()])
        {
            *slot = Some(Slot {
                len: bytes.len() as u8,
                bytes: kept,
                text: text.clone().unbind(),
            });
        }
        Ok(text)
    }
}

/// A number below [`SLOTS`] from the length, the beginning and the end of the key.
#[inline(always)]
fn place(bytes: &[u8]) -> usize {
    let words = if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        u64::from_le_bytes(*first) ^ u64::from_le_bytes(*last).rotate_left(29)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32
    } else {
        bytes
            .iter()
            .fold(0, |word, &byte| word << 8 | u64::from(byte))
    };
    let mixed = (words ^ (bytes.len() as u64) << 59).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % SLOTS
}
