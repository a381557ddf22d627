//! Compares encoded values by a hash, without decoding them.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::array::PICKLED_DTYPE;
use super::marker::{self, ext, own};

/// A hash of the value in `payload`. None if equal values may have different bytes, or the bytes are no
/// value.
///
/// Sets have no order of their own, pickles depend on the identity of objects, and some dtypes leave
/// gaps between their numbers. The hash leaves out the padding before array data, because it depends on
/// the address of the bytes.
pub fn fingerprint(payload: &[u8]) -> Option<u64> {
    let mut walk = Walk {
        payload,
        at: 0,
        hashed: 0,
        pieces: None,
    };
    walk.values()?;
    match walk.pieces {
        None => Some(xxh3_64(payload)),
        Some(mut hash) => {
            hash.update(&payload[walk.hashed..]);
            Some(hash.digest())
        }
    }
}

struct Walk<'a> {
    payload: &'a [u8],
    at: usize,
    /// Everything before this is in `pieces`, or left out.
    hashed: usize,
    /// Once something was left out.
    pieces: Option<Box<Xxh3Default>>,
}

impl<'a> Walk<'a> {
    /// Skips one value, which must be the whole payload.
    fn values(&mut self) -> Option<()> {
        if self.payload.is_empty() {
            return Some(()); // how `None` may travel
        }
        let mut owed = 1_u64;
        while owed > 0 {
            owed = owed - 1 + self.value()?;
        }
        (self.at == self.payload.len()).then_some(())
    }

    /// Skips the head of a value; returns the number of values in it.
    fn value(&mut self) -> Option<u64> {
        let head = self.u8()?;
        let skipped = match head {
            ..=marker::FIXINT_MAX | marker::NEGATIVE_FIXINT.. => 0,
            marker::NIL | marker::FALSE | marker::TRUE => 0,
            marker::FIXMAP..marker::FIXARRAY => return Some(2 * u64::from(head & 0x0f)),
            marker::FIXARRAY..marker::FIXSTR => return Some(u64::from(head & 0x0f)),
            marker::FIXSTR..marker::NIL => usize::from(head & 0x1f),
            marker::OWN => return self.own(),
            marker::BIN8..=marker::BIN32 => self.len(head - marker::BIN8)?,
            marker::EXT8..=marker::EXT32 => return self.extension(head - marker::EXT8),
            marker::UINT8 | marker::INT8 => 1,
            marker::UINT16 | marker::INT16 => 2,
            marker::UINT32 | marker::INT32 => 4,
            marker::UINT64 | marker::INT64 | marker::FLOAT64 => 8,
            marker::STR8..=marker::STR32 => self.len(head - marker::STR8)?,
            marker::ARRAY16 | marker::ARRAY32 => {
                return Some(self.len(head - marker::ARRAY16 + 1)? as u64);
            }
            marker::MAP16 | marker::MAP32 => {
                return Some(2 * self.len(head - marker::MAP16 + 1)? as u64);
            }
            _ => return None,
        };
        self.slice(skipped)?;
        Some(0)
    }

    fn own(&mut self) -> Option<u64> {
        match self.u8()? {
            own::TUPLE => Some(1), // its items follow as a list
            own::ARRAY => self.array(),
            own::RECORD => Some(7),
            _ => None,
        }
    }

    fn array(&mut self) -> Option<u64> {
        let flags = self.u8()?;
        let dtype_len = u32::from_le_bytes(*self.slice(4)?.first_chunk()?) as usize;
        let dtype = self.slice(dtype_len)?;
        if flags & PICKLED_DTYPE != 0 || has_gaps(dtype) {
            return None;
        }
        let dimensions = usize::from(self.u8()?);
        self.slice(8 * dimensions)?;
        let len = u64::from_le_bytes(*self.slice(8)?.first_chunk()?);
        let from = self.at;
        let padding = usize::from(self.u8()?);
        self.slice(padding)?;
        let hash = self.pieces.get_or_insert_default();
        hash.update(&self.payload[self.hashed..from]);
        self.hashed = self.at;
        self.slice(usize::try_from(len).ok()?)?;
        Some(0)
    }

    fn extension(&mut self, size: u8) -> Option<u64> {
        let len = self.len(size)?;
        let kind = self.u8()?;
        let bytes = self.slice(len)?;
        if kind == ext::NUMPY_SCALAR {
            let (&len, rest) = bytes.split_first()?;
            if has_gaps(rest.get(..usize::from(len))?) {
                return None;
            }
        }
        Some(0)
    }

    #[inline]
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.payload.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let slice = self.payload[self.at..].get(..len)?;
        self.at += len;
        Some(slice)
    }

    /// A big-endian length of 8, 16 or 32 bits.
    fn len(&mut self, size: u8) -> Option<usize> {
        Some(match size {
            0 => usize::from(self.u8()?),
            1 => usize::from(u16::from_be_bytes(*self.slice(2)?.first_chunk()?)),
            _ => u32::from_be_bytes(*self.slice(4)?.first_chunk()?) as usize,
        })
    }
}

/// Whether items of this dtype hold meaningless bytes, as C's `long double` does.
fn has_gaps(dtype: &[u8]) -> bool {
    [&b"f16"[..], b"f12", b"c32", b"c24"]
        .iter()
        .any(|name| dtype.ends_with(name))
}
